"""Coverage-guided fuzzing of the GGUF reader, alone: python tests/fuzz/fuzz_gguf.py --seconds 60.

Needs `atheris`. Anything but a CheckpointError or a checkpoint is a finding; so is an input that
takes over a second, or memory beyond what a parse may take. The input that did it is kept.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["quickdraft"]):
    from quickdraft.errors import CheckpointError
    from quickdraft.export.checkpoints.gguf import read_gguf
    from quickdraft.export.checkpoints.gguf_header import PARSE_MEMORY_BYTES, parse_header

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny.gguf_file import GgufFile, pair, tensor
from tiny.gguf_models import SHAPE, byte_level, model_file, sentencepiece, tiny_llama

SLOW_SECONDS = 1.0
_counts = {"runs": 0, "headers": 0, "models": 0, "slowest": 0.0, "report_at": 0.0}
_scratch = Path(tempfile.mkdtemp()) / "fuzz.gguf"


def _one(data: bytes) -> None:
    """Parse, and go on to the whole model where the header is good."""
    _counts["runs"] += 1
    start = time.perf_counter()
    try:
        parse_header(data, "fuzz.gguf")
        _counts["headers"] += 1
        _scratch.write_bytes(data)
        checkpoint = read_gguf(_scratch)
        for name in checkpoint.weights:
            checkpoint.weights[name].load()
        _counts["models"] += 1
    except CheckpointError:
        pass
    elapsed = time.perf_counter() - start
    _counts["slowest"] = max(_counts["slowest"], elapsed)
    # libFuzzer leaves without running exit handlers, so the summary comes a second before.
    if time.monotonic() > _counts["report_at"] > 0:
        _counts["report_at"] = 0.0
        print({name: value for name, value in _counts.items() if name != "report_at"}, flush=True)
    if elapsed > SLOW_SECONDS:
        raise AssertionError(f"an input of {len(data)} bytes took {elapsed:.2f} s")


def _seeds() -> Iterator[bytes]:
    import numpy as np

    arrays = {"token_embd.weight": np.ones((280, 32), np.float32)}
    rms = {**SHAPE, "attention.layer_norm_rms_epsilon": 1e-5}
    yield tiny_llama().to_bytes()
    yield model_file("gemma2", rms, arrays, sentencepiece()).to_bytes()
    yield model_file("qwen2", {**rms, "rope.scaling.type": "yarn"}, arrays).to_bytes()
    yield GgufFile(byte_level()).to_bytes()
    yield GgufFile([pair("general.alignment", 4, 64)], [tensor("t", np.ones(8))]).to_bytes()


def main() -> None:
    """Run for some seconds and print what was done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="keep what was learned in this folder")
    options = parser.parse_args()
    corpus = options.corpus or Path(tempfile.mkdtemp())
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(_seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    # What the imports took, one parse, and the fuzzer's own corpus and tables.
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    rss_limit = used + (PARSE_MEMORY_BYTES >> 20) + 256
    flags = [
        f"-max_total_time={options.seconds}",
        f"-rss_limit_mb={rss_limit}",
        "-timeout=5",
        "-max_len=65536",
        "-print_final_stats=1",
        "-verbosity=0",
        f"-artifact_prefix={corpus}/finding-",
    ]
    print(f"limits: {rss_limit} MB, {SLOW_SECONDS} s an input; corpus and findings in {corpus}")
    _counts["report_at"] = time.monotonic() + options.seconds - 1
    atheris.Setup([sys.argv[0], *flags, str(corpus)], _one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
