"""Does flan-t5-small-titles answer as its own ONNX graphs do, and how much faster?

    python bench/titles.py TEXTS [--inputs 100] [--tokens 48] [--rounds 2] [--threads 1]
        [--peer PYTHON [--peer-model FOLDER]] [--clock processor|wall] [--out NAME]

TEXTS: JSON lines, gzipped or not, with `input`; the first --length tokens of each are the source.
The naive run is what the package's files offer by themselves: the encoder once, then the decoder
over the whole answer for every token, greedily, in onnxruntime with as many threads. "in floats" is
the same with its activations left unrounded, which tells what the weights say. PYTHON is the
interpreter of CTranslate2's environment (`bench/peers/install.py ctranslate2`), which runs the same
weights in float32 and int8: converted for this run, or from FOLDER, which is made where there is
none and kept. Everybody gets the same ids and takes turns; the best time of each input counts, by
default in seconds of the processor, which hardly depend on what else the machine does; with these
take one thread, as threads may wait actively. --out writes bench/results/NAME.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from harness import PEERS, start_peer, write_result

import quickdraft
from quickdraft.export.architectures.t5 import FAMILY as T5
from quickdraft.export.pipeline import read_checkpoint
from quickdraft.kvcache.memory import Memories
from quickdraft.models.resolve import find_checkpoint
from quickdraft.runtime.engine_process import EngineProcess
from quickdraft.runtime.model import Model

MODEL = "flan-t5-small-titles"
START, END = 0, 1
REST = 0.2
"""Seconds between engines: threads of the one before may wait for more work actively."""

OURS = (
    ("quickdraft plain", "none", None),
    ("quickdraft source_lookup", "source_lookup", None),
    ("quickdraft plain, float32", "none", "fp32"),
)

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
Clock = Callable[[], float]
Answer = Callable[[list[int]], tuple[list[int], float]]
"""Ids, without the end, and seconds of a source."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", type=Path)
    for name, default in (("inputs", 100), ("length", 256), ("tokens", 48), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer")
    parser.add_argument("--peer-model", type=Path)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="processor")
    parser.add_argument("--out")
    options = parser.parse_args()
    tokens, threads = options.tokens, options.threads
    now = CLOCKS[options.clock]
    with ExitStack() as stack:
        engines: dict[str, Answer] = {}
        for name, drafter, weights in OURS:
            model = quickdraft.load(
                MODEL, drafter=drafter, threads=threads, store=False, weights=weights
            )
            stack.enter_context(model)
            engines[name] = ours(model, tokens, now)
        folder = find_checkpoint(MODEL)
        assert folder is not None  # it is an alias of a checkpoint
        engines["own graphs"] = own_graphs(folder, tokens, threads, now)
        engines["own graphs in floats"] = own_graphs(folder, tokens, threads, now, floats=True)
        versions = {"onnxruntime": onnxruntime.__version__}
        if options.peer:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            made = options.peer_model or place / "ctranslate2"
            if not made.exists():
                convert(folder, place / "checkpoint", made, options.peer)
            engine = start_peer("ctranslate2_peer.py", options.peer, str(made), threads)
            stack.enter_context(engine)
            versions |= engine.facts["versions"]
            for compute in ("float32", "int8"):
                found = peer(engine, compute, tokens, options.clock)
                engines[f"ctranslate2 {compute}"] = found
        sources = read_sources(options.texts, options.inputs, options.length, model)
        figures = compare(engines, sources, options.rounds)
    figures |= {"threads": threads, "clock": options.clock, "versions": versions}
    print(json.dumps(figures, indent=1))
    if options.out:
        write_result(options.out, figures)


def read_sources(file: Path, count: int, length: int, model: Model) -> list[list[int]]:
    """The first tokens of the first texts, each with its end."""
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["input"] for line in lines][:count]
    sources = [model.tokenizer.encode_source(text) for text in texts]
    return [ids if len(ids) <= length else [*ids[: length - 1], END] for ids in sources]


def convert(folder: Path, place: Path, made: Path, python: str) -> None:
    """The package's weights, decoded to float32 at `place`, in CTranslate2's form at `made`."""
    checkpoint = read_checkpoint(folder)
    place.mkdir()
    weights = {name: weight.dense() for name, weight in checkpoint.weights.items()}
    np.savez(place / "weights.npz", **weights)
    whole = {**T5.defaults, **checkpoint.config}
    if whole["num_decoder_layers"] is None:
        whole["num_decoder_layers"] = whole["num_layers"]
    (place / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    (place / "tokenizer.json").write_bytes(checkpoint.tokenizer.tokenizer_json)
    script = str(PEERS / "convert_t5.py")
    subprocess.run([python, script, str(place), str(made.absolute())], check=True)


def ours(model: Model, tokens: int, now: Clock) -> Answer:
    """A loaded model; every source is encoded anew."""
    model.memories = Memories(0)

    def answer(source: list[int]) -> tuple[list[int], float]:
        started = now()
        result = model.generate(source, max_new_tokens=tokens, do_sample=False)
        seconds = now() - started
        return [token for token in result.token_ids if token != END], seconds

    return answer


def own_graphs(
    folder: Path, tokens: int, threads: int, now: Clock, *, floats: bool = False
) -> Answer:
    """The graphs of the package, without anything of ours. floats: activations are not rounded."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3

    def opened(name: str) -> onnxruntime.InferenceSession:
        model = onnx.load(f"{folder}/{name}.onnx")
        if floats:
            keep_floats(model.graph)
        data = model.SerializeToString()
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    encoder, decoder = opened("encoder"), opened("decoder")

    def answer(source: list[int]) -> tuple[list[int], float]:
        started = now()
        ids = np.array([source], np.int64)
        mask = np.ones_like(ids)
        hidden = encoder.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        said = [START]
        while len(said) <= tokens:
            feeds = {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}
            logits = decoder.run(None, feeds | {"input_ids": np.array([said], np.int64)})[0]
            said.append(int(logits[0, -1].argmax()))
            if said[-1] == END:
                break
        return [token for token in said[1:] if token != END], now() - started

    return answer


def keep_floats(graph: onnx.GraphProto) -> None:
    """Multiply the same 8-bit weights by activations as they are.

    DynamicQuantizeLinear takes one scale for a whole tensor, so what it rounds off a row depends on
    the rows beside it.
    """
    tensors = {each.name: each for each in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type == "DynamicQuantizeLinear":
            values, scale, zero = node.output
            kept.append(onnx.helper.make_node("Identity", node.input, [values]))
            for name, value in ((scale, 1.0), (zero, 0.0)):
                constant = onnx.numpy_helper.from_array(np.float32(value), name)
                kept.append(onnx.helper.make_node("Constant", [], [name], value=constant))
        elif node.op_type == "MatMulInteger":
            weights, zero = (onnx.numpy_helper.to_array(tensors[node.input[i]]) for i in (1, 3))
            values = weights.astype(np.float32) - zero.astype(np.float32)
            name = f"{node.input[1]}.{node.output[0]}"
            graph.initializer.append(onnx.numpy_helper.from_array(values, name))
            kept.append(onnx.helper.make_node("MatMul", [node.input[0], name], node.output))
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def peer(engine: EngineProcess, compute: str, tokens: int, clock: str) -> Answer:
    """CTranslate2."""

    def answer(source: list[int]) -> tuple[list[int], float]:
        found = engine.ask(op="answer", compute=compute, source=source, tokens=tokens, clock=clock)
        return found["ids"], found["seconds"]

    return answer


def compare(
    engines: dict[str, Answer], sources: Sequence[list[int]], rounds: int
) -> dict[str, Any]:
    """Seconds of all inputs by engine, and how many answers are those of the own graphs."""
    ids: dict[str, list[list[int]]] = {}
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, answer in engines.items():
            time.sleep(REST)
            found = [answer(source) for source in sources]
            ids[name] = [answered for answered, _ in found]
            times = [took for _, took in found]
            seconds[name] = list(map(min, seconds.get(name, times), times))
    plain = sum(seconds["quickdraft plain"])
    return {
        "inputs": len(sources),
        "source_tokens": sum(map(len, sources)),
        "answer_tokens": sum(map(len, ids["quickdraft plain"])),
        "engines": {
            name: {
                "seconds": round(sum(times), 4),
                "ours_plain_times_as_fast": round(sum(times) / plain, 3),
                "answers_as": {other: alike(ids[name], ids[other]) for other in ids},
            }
            for name, times in seconds.items()
        },
    }


def alike(some: Sequence[list[int]], others: Sequence[list[int]]) -> int:
    """How many answers are the same."""
    return sum(one == other for one, other in zip(some, others, strict=True))


if __name__ == "__main__":
    main()
