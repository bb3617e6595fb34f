"""Greedy answers of an engine to texts, for bench/adapters.py: tokenised and decoded by itself.

    PYTHON answers_peer.py FOLDER THREADS ENGINE

ENGINE is onnxruntime-genai, openvino-genai, optimum-intel or optimum-onnx, and PYTHON that of its
environment. One request more than those of serve.py:

    {"op": "answer", "text": text, "prompt": [ids], "tokens": most}
                                                        {"prompt": [ids], "ids": [...], "text"}

`text` has its chat template applied already; the answer's `prompt` is what the engine's tokenizer
makes of it, and `ids` follow the prompt of the request, whatever that is. An answer ends at an
end-of-text token, which `ids` does not hold, or after `tokens`. OpenVINO is told to compute in
float32, keys and values included, and not to round activations, as ours is; else it takes bfloat16
where the processor has it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from serve import serve

Answer = Callable[[str, list[int], int], dict[str, Any]]
FLOAT32 = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


def onnxruntime_genai(folder: Path, threads: int) -> Answer:
    """Its generator, with its tokenizer."""
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    options = {"session_options": {"intra_op_num_threads": threads}}
    config.overlay(json.dumps({"model": {"decoder": options}}))
    model = og.Model(config)
    tokenizer = og.Tokenizer(model)
    ends = set(map(int, tokenizer.eos_token_ids))

    def answer(text: str, given: list[int], tokens: int) -> dict[str, Any]:
        prompt = [int(token) for token in tokenizer.encode(text)]
        params = og.GeneratorParams(model)
        longest = len(given) + tokens
        params.set_search_options(do_sample=False, max_length=longest, repetition_penalty=1.0)
        generator = og.Generator(model, params)
        generator.append_tokens(given)
        while not generator.is_done():
            generator.generate_next_token()
        ids = [int(token) for token in generator.get_sequence(0)][len(given) :]
        kept = without_end(ids, ends)
        return {"prompt": prompt, "ids": kept, "text": tokenizer.decode(kept)}

    return answer


def openvino_genai(folder: Path, threads: int) -> Answer:
    """Its pipeline. The tokenizer becomes a graph, and so does its decoder, unless the converter
    fails."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai
    from openvino_tokenizers import convert_tokenizer
    from transformers import PreTrainedTokenizerFast

    known = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    with tempfile.TemporaryDirectory() as name:
        graph = convert_tokenizer(known)
        ov.save_model(graph, Path(name) / "openvino_tokenizer.xml")
        try:
            _, graph = convert_tokenizer(known, with_detokenizer=True)
            ov.save_model(graph, Path(name) / "openvino_detokenizer.xml")
        except RuntimeError as error:  # of decoders that transformers writes for some GGUF files
            print("text is decoded by transformers: the converter says", error, file=sys.stderr)
            decode = known.decode
        else:
            decode = None
        tokenizer = genai.Tokenizer(name)
    decode = decode or tokenizer.decode
    setting = FLOAT32 | {"INFERENCE_NUM_THREADS": threads}
    pipeline = genai.LLMPipeline(str(folder), tokenizer, "CPU", **setting)
    ends = read_ends(folder)

    def answer(text: str, given: list[int], tokens: int) -> dict[str, Any]:
        config = genai.GenerationConfig(max_new_tokens=tokens, do_sample=False)
        config.apply_chat_template, config.stop_token_ids = False, ends
        prompt = np.array([given], np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(prompt), ov.Tensor(np.ones_like(prompt)))
        result = pipeline.generate(inputs, config)
        ids = without_end([int(token) for token in result.tokens[0]], ends)
        own = tokenizer.encode(text, add_special_tokens=False).input_ids
        return {"prompt": np.asarray(own.data)[0].tolist(), "ids": ids, "text": decode(ids)}

    return answer


def optimum_intel(folder: Path, threads: int) -> Answer:
    """transformers' own loop over OpenVINO."""
    from optimum.intel import OVModelForCausalLM

    setting = FLOAT32 | {"INFERENCE_NUM_THREADS": threads}
    return in_transformers(folder, OVModelForCausalLM.from_pretrained(folder, ov_config=setting))


def optimum_onnx(folder: Path, threads: int) -> Answer:
    """transformers' own loop over ONNX Runtime."""
    import onnxruntime
    from optimum.onnxruntime import ORTModelForCausalLM

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return in_transformers(
        folder, ORTModelForCausalLM.from_pretrained(folder, session_options=options)
    )


def in_transformers(folder: Path, model: Any) -> Answer:
    """Answers by `generate`."""
    import torch
    from transformers import AutoTokenizer

    tokenizer, ends = AutoTokenizer.from_pretrained(folder), read_ends(folder)

    def answer(text: str, given: list[int], tokens: int) -> dict[str, Any]:
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        output = model.generate(
            torch.tensor([given]),
            attention_mask=torch.ones(1, len(given), dtype=torch.long),
            max_new_tokens=tokens,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=sorted(ends),
            pad_token_id=0,
        )
        ids = without_end(output[0, len(given) :].tolist(), ends)
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return {"prompt": prompt, "ids": ids, "text": text}

    return answer


def read_ends(folder: Path) -> set[int]:
    """End-of-text tokens that the configs of a folder name."""
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            value = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
            found |= set(value if isinstance(value, list) else [value])
    return found - {None}


def without_end(ids: Sequence[int], ends: set[int]) -> list[int]:
    """The tokens before the first that ends a text."""
    return list(ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))])


ENGINES: dict[str, tuple[Callable[[Path, int], Answer], tuple[str, ...]]] = {
    "onnxruntime-genai": (onnxruntime_genai, ("onnxruntime-genai", "onnxruntime")),
    "openvino-genai": (openvino_genai, ("openvino-genai", "openvino", "openvino-tokenizers")),
    "optimum-intel": (optimum_intel, ("optimum-intel", "openvino", "transformers")),
    "optimum-onnx": (optimum_onnx, ("optimum-onnx", "onnxruntime", "transformers")),
}


def main(folder: str, threads: int, engine: str) -> None:
    """Load, and serve."""
    make, packages = ENGINES[engine]
    answer = make(Path(folder), threads)
    facts = {"engine": engine, "versions": {name: version(name) for name in packages}}

    def asked(request: dict[str, Any]) -> dict[str, Any]:
        return answer(request["text"], request["prompt"], request["tokens"])

    serve(facts, {"answer": asked})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
