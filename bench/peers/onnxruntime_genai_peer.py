"""ONNX Runtime GenAI as a peer process: MODEL is a folder its builder wrote."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import onnxruntime_genai as og
from serve import serve


def main(folder: str, threads: int) -> None:
    """Load the folder and serve."""
    config = og.Config(folder)
    options = {"session_options": {"intra_op_num_threads": threads}}
    config.overlay(json.dumps({"model": {"decoder": options}}))
    model = og.Model(config)

    def decode(request: dict[str, Any]) -> dict[str, Any]:
        params = og.GeneratorParams(model)
        total = len(request["prompt"]) + request["tokens"]
        params.set_search_options(do_sample=False, max_length=total, min_length=total)
        generator = og.Generator(model, params)
        started = time.perf_counter()
        generator.append_tokens(request["prompt"])
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(request["tokens"] - 1):
            generator.generate_next_token()
        return {"prefill_s": first - started, "decode_s": time.perf_counter() - first}

    versions = {"onnxruntime-genai": og.__version__}
    facts = {"engine": "onnxruntime-genai", "threads": threads, "versions": versions}
    serve(facts, {"decode": decode})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
