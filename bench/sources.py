"""What does it cost each backend to read a source, and to answer about it?

    python bench/sources.py [--rounds N] [--threads N] [--out NAME]

flan-t5-small-titles over 60 tokens and whisper-tiny.en over 30 seconds of noise, as the hotpath,
onnx, openvino and openvino-static formats of one export. Milliseconds of processor time, so that
what else the machine does counts little: of an encoding, and of a greedy token, in which the
encoding has no part. All take turns round by round, and the best round counts. The ids of all
formats are compared. --out writes bench/results/NAME.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from harness import write_result

from quickdraft.bundle import open_bundle
from quickdraft.drafters.tree import Tree
from quickdraft.export.pipeline import export_model
from quickdraft.kvcache.memory import Source
from quickdraft.models.resolve import find_checkpoint
from quickdraft.runtime.backends.opening import open_backend

MODELS = ("flan-t5-small-titles", "whisper-tiny.en")
FORMATS = {
    "hotpath": "hotpath",
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "openvino-static": "openvino",
}
SOURCE_TOKENS = 60
NEW = 24


def source_of(spec: Any) -> Source:
    """As the docstring says."""
    random, reads = np.random.default_rng(0), spec.source
    if reads.width:
        return Source(features=random.standard_normal((3000, reads.width)).astype(np.float32))
    return Source(tokens=random.integers(100, 20000, SOURCE_TOKENS))


def answer(backend: Any, source: Source) -> tuple[float, float, list[int]]:
    """Milliseconds of the encoding and of a token, and the ids of a greedy answer from token 1."""
    start = time.process_time()
    memory = backend.encode(source)
    encoded = time.process_time()
    cache, ids = backend.new_cache(memory), [1]
    for _ in range(NEW):
        logits = backend.step(Tree.chain(ids[-1:]), cache).logits
        cache.commit([0])
        ids.append(int(logits[0].argmax()))
    end = time.process_time()
    return 1e3 * (encoded - start), 1e3 * (end - encoded) / NEW, ids


def measure(name: str, rounds: int, threads: int) -> dict[str, Any]:
    """Figures of a model by format."""
    with tempfile.TemporaryDirectory() as folder:
        backends = {}
        for form, engine in FORMATS.items():
            path = Path(folder) / form
            export_model(find_checkpoint(name), path, formats=(form,))
            bundle = open_bundle(path)
            backends[form] = open_backend(bundle.folder, bundle.manifest, engine, threads).backend
        source = source_of(backends["hotpath"].spec)
        found: dict[str, dict[str, Any]] = {}
        ids = {}
        for _ in range(rounds + 1):  # the first one warms up
            for form, backend in backends.items():
                encode, token, ids[form] = answer(backend, source)
                best = found.setdefault(form, {"encode_ms": encode, "token_ms": token})
                best["encode_ms"] = min(best["encode_ms"], encode)
                best["token_ms"] = min(best["token_ms"], token)
        for form, backend in backends.items():
            found[form] = {key: round(value, 2) for key, value in found[form].items()}
            found[form]["same_ids_as_hotpath"] = ids[form] == ids["hotpath"]
            backend.close()
        return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out")
    asked = parser.parse_args()
    figures = {name: measure(name, asked.rounds, asked.threads) for name in MODELS}
    for name, formats in figures.items():
        for form, values in formats.items():
            print(f"{name:22}{form:17}{values}")
    if asked.out:
        versions = {name: version(name) for name in ("openvino", "onnxruntime", "numpy")}
        facts = {"threads": asked.threads, "rounds": asked.rounds, "versions": versions}
        write_result(asked.out, facts | {"figures": figures})


if __name__ == "__main__":
    main()
