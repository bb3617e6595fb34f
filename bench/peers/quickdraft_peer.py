"""quickdraft as a peer process: MODEL is a bundle folder; plain decoding unless asked otherwise."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from serve import serve

from quickdraft.bundle import open_bundle
from quickdraft.drafters.tree import Tree
from quickdraft.runtime.backends.opening import open_backend, variant_for


def main(folder: str, threads: int, kv_cache: str | None = None) -> None:
    """Load the bundle and serve. kv_cache: how keys and values are stored; None: as usual."""
    bundle = open_bundle(Path(folder))
    manifest = bundle.manifest
    backend = open_backend(bundle.folder, manifest, "auto", threads, kv_cache).backend
    variant = variant_for(manifest, backend.name)

    def prefill(tokens: list[int], cache: Any) -> int:
        for start in range(0, len(tokens), 256):
            chunk = tokens[start : start + 256]
            last = np.array([len(chunk) - 1], np.int64)
            output = backend.step(Tree.chain(chunk), cache, last)
            cache.commit(range(len(chunk)))
        return int(output.logits[0].argmax())

    def decode(request: dict[str, Any]) -> dict[str, Any]:
        cache = backend.new_cache()
        started = time.perf_counter()
        token = prefill(request["prompt"], cache)
        first = time.perf_counter()
        for _ in range(request["tokens"] - 1):
            token = int(backend.step(Tree.chain([token]), cache).logits[0].argmax())
            cache.commit([0])
        return {"prefill_s": first - started, "decode_s": time.perf_counter() - first}

    def score(request: dict[str, Any]) -> dict[str, Any]:
        tokens = request["tokens"]
        logits = backend.step(Tree.chain(tokens[:-1]), backend.new_cache()).logits
        shifted = logits.astype(np.float64)
        shifted -= shifted.max(-1, keepdims=True)
        picked = shifted[np.arange(len(tokens) - 1), tokens[1:]]
        return {"logprobs": (picked - np.log(np.exp(shifted).sum(-1))).tolist()}

    facts = {
        "engine": "quickdraft",
        "backend": backend.name,
        "weights": variant.weight_format,
        "kv_cache": backend.kv_type,
        "threads": threads,
    }
    serve(facts | {"versions": dict(manifest.written_by)}, {"decode": decode, "score": score})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
