"""llama.cpp (package llama-cpp-python) as a peer process: MODEL is a .gguf file."""

from __future__ import annotations

import sys
import time
from typing import Any

import llama_cpp
import numpy as np
from serve import serve


def main(path: str, threads: int) -> None:
    """Load the file and serve."""
    model = llama_cpp.Llama(
        path,
        n_ctx=2048,
        n_batch=512,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        verbose=False,
    )

    def decode(request: dict[str, Any]) -> dict[str, Any]:
        model.reset()
        started = time.perf_counter()
        model.eval(request["prompt"])
        token = int(model.scores[model.n_tokens - 1].argmax())
        first = time.perf_counter()
        for _ in range(request["tokens"] - 1):
            model.eval([token])
            token = int(model.scores[model.n_tokens - 1].argmax())
        return {"prefill_s": first - started, "decode_s": time.perf_counter() - first}

    def score(request: dict[str, Any]) -> dict[str, Any]:
        tokens = request["tokens"]
        model.reset()
        model.eval(tokens[:-1])
        shifted = np.array(model.scores[: len(tokens) - 1], np.float64)
        shifted -= shifted.max(-1, keepdims=True)
        picked = shifted[np.arange(len(tokens) - 1), tokens[1:]]
        return {"logprobs": (picked - np.log(np.exp(shifted).sum(-1))).tolist()}

    versions = {"llama-cpp-python": llama_cpp.__version__}
    facts = {"engine": "llama.cpp", "threads": threads, "versions": versions}
    serve(facts, {"decode": decode, "score": score})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
