"""Convert a GGUF file to what a peer opens, with the tools its makers publish for that.

    PYTHON convert.py {onnxruntime-genai,openvino-genai,transformers} FILE.gguf FOLDER
        [--decoder PYTHON]

PYTHON is the interpreter of the peer's environment. transformers, in the environment of --decoder,
decodes the blocks of the file to float32 (in the folder `huggingface` beside FOLDER, kept for the
other peers), and the peer's own tool quantises them to 4 bits:
onnxruntime-genai's builder with blocks of 32 and accuracy level 4 (int8 products), optimum-intel
with symmetric groups of 128, or of 64 where 128 does not divide the widths. transformers takes
the decoded folder as it is.

Both tools make graphs that compute the logits of every row. A prefill needs one row, so the graph
is given an input `output_rows` int64 [m]: the rows whose logits are wanted. Nothing else changes.
FOLDER appears when it is complete. Runs in a peer's environment, so it imports nothing of ours.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROWS = "output_rows"


def to_huggingface(gguf: Path, folder: Path) -> None:
    """Write the checkpoint in float32 as a Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def to_onnx(checkpoint: Path, folder: Path) -> None:
    """model.onnx for the GenAI API, rows.onnx over the same weights for plain ONNX Runtime."""
    import onnx

    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    options = ["int4_accuracy_level=4", "int4_block_size=32"]
    where = ["-i", str(checkpoint), "-o", str(folder), "-c", str(folder / "cache")]
    subprocess.run(
        [*builder, *where, "-p", "int4", "-e", "cpu", "--extra_options", *options],
        check=True,
        stdout=sys.stderr,
    )
    shutil.rmtree(folder / "cache", ignore_errors=True)
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    nodes = list(model.graph.node)
    head = next(i for i, node in enumerate(nodes) if "logits" in node.output)
    if nodes[head].op_type != "MatMulNBits":
        raise SystemExit(f"the builder ended its graph with {nodes[head].op_type}, not MatMulNBits")
    pick = onnx.helper.make_node("Gather", [nodes[head].input[0], ROWS], ["rows"], axis=1)
    nodes[head].input[0] = "rows"
    model.graph.node.insert(head, pick)
    model.graph.input.append(
        onnx.helper.make_tensor_value_info(ROWS, onnx.TensorProto.INT64, ["wanted"])
    )
    for output in model.graph.output:
        if output.name == "logits":
            output.type.tensor_type.shape.dim[1].dim_param = "wanted"
    onnx.save(model, str(folder / "rows.onnx"))


def to_openvino(checkpoint: Path, folder: Path) -> None:
    """openvino_model.xml (stateful), and rows.xml."""
    import json

    import openvino as ov
    from openvino import opset13 as ops
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    widths = (config["hidden_size"], config["intermediate_size"])
    group = next(size for size in (128, 64, 32) if all(width % size == 0 for width in widths))
    quantised = OVWeightQuantizationConfig(bits=4, sym=True, group_size=group, ratio=1.0)
    exported = OVModelForCausalLM.from_pretrained(
        str(checkpoint), export=True, compile=False, quantization_config=quantised
    )
    exported.save_pretrained(str(folder))
    model = ov.Core().read_model(folder / "openvino_model.xml")
    node = model.output("logits").get_node().input_value(0).get_node()
    while node.get_type_name() != "MatMul":  # a conversion may stand behind it
        node = node.input_value(0).get_node()
    rows = ops.parameter([-1], ov.Type.i64, name=ROWS)
    rows.output(0).set_names({ROWS})
    picked = ops.gather(node.input_value(0), rows, ops.constant(1, ov.Type.i64))
    node.input(0).replace_source_output(picked.output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()
    ov.save_model(model, folder / "rows.xml", compress_to_fp16=False)


def to_transformers(checkpoint: Path, folder: Path) -> None:
    """The checkpoint itself, under a second name where the file system has such."""
    for file in checkpoint.iterdir():
        try:
            (folder / file.name).hardlink_to(file)
        except OSError:
            shutil.copyfile(file, folder / file.name)


CONVERTERS: dict[str, Callable[[Path, Path], None]] = {
    "huggingface": to_huggingface,
    "onnxruntime-genai": to_onnx,
    "openvino-genai": to_openvino,
    "transformers": to_transformers,
}


def complete(folder: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a new folder, and give it its name when it is whole."""
    if folder.exists():
        return
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write(unfinished)
    unfinished.rename(folder)


def main() -> None:
    """Convert once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=CONVERTERS)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--decoder", default=sys.executable)
    options = parser.parse_args()
    convert, source = CONVERTERS[options.target], options.gguf
    if options.target != "huggingface" and not options.folder.exists():
        source = options.folder.with_name("huggingface")
        decode = [options.decoder, __file__, "huggingface", str(options.gguf), str(source)]
        subprocess.run(decode, check=True, stdout=sys.stderr)
    complete(options.folder, lambda place: convert(source, place))


if __name__ == "__main__":
    main()
