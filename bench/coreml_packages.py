"""What does a Core ML package cost to make on Linux, and does it compute what the model does?

    python bench/coreml_packages.py NAME MODEL FOLDER [--parity 32]

`quickdraft export MODEL --format coreml,reference` runs in a process of its own (FOLDER must not be
there yet): its time, its time on the processor, and the most memory it held. With --parity N the
package is then walked by the evaluator (docs/coreml.md) over a chat prompt and N tokens that the
NumPy reference generates greedily from the same weights: how often the likeliest token is the same,
and how far the logits are apart. The result goes to bench/results/coreml-NAME.json.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from harness import write_result

import quickdraft
from quickdraft.drafters.tree import Tree
from quickdraft.runtime.backends.base import Backend

QUESTION = "What is the capital of France?"


def export(model: str, folder: Path, formats: str) -> dict[str, Any]:
    """Make the bundle; what that took."""
    command = [sys.executable, "-m", "quickdraft", "export", model, "-o", str(folder)]
    started = time.perf_counter()
    process = os.posix_spawn(command[0], [*command, "--format", formats], os.environ)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"export ended with exit code {os.waitstatus_to_exitcode(status)}")
    package = [file.stat().st_size for file in folder.rglob("coreml/**/*") if file.is_file()]
    return {
        "formats": formats,
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_bytes": usage.ru_maxrss * 1024,
        "package_bytes": sum(package),
    }


def parity(folder: Path, count: int) -> dict[str, Any]:
    """The package in the evaluator beside the reference, fed the reference's own greedy tokens."""
    with (
        quickdraft.load(str(folder), backend="reference", drafter="none", device="cpu") as exact,
        quickdraft.load(str(folder), backend="coreml:EVALUATOR", drafter="none") as package,
    ):
        prompt = exact.tokenize_chat([{"role": "user", "content": QUESTION}])
        backends: tuple[Backend, Backend] = (exact.backend, package.backend)
        caches = [backend.new_cache() for backend in backends]
        tokens, same, apart, largest, seconds = list(prompt), 0, 0.0, 0.0, []
        given = prompt
        for _ in range(count):
            rows = []
            for backend, cache in zip(backends, caches, strict=True):
                started = time.perf_counter()
                step = backend.step(Tree.chain(given), cache, np.array([len(given) - 1]))
                seconds.append(time.perf_counter() - started)
                cache.commit(range(len(given)))
                rows.append(np.asarray(step.logits[0], np.float64))
            same += int(rows[0].argmax() == rows[1].argmax())
            apart = max(apart, float(np.abs(rows[0] - rows[1]).max()))
            largest = max(largest, float(np.abs(rows[0]).max()))
            given = [int(rows[0].argmax())]
            tokens += given
        return {
            "prompt_tokens": len(prompt),
            "tokens": count,
            "same_likeliest": same,
            "largest_difference": round(apart, 4),
            "largest_logit": round(largest, 3),
            "seconds_of_an_evaluated_step": round(float(np.median(seconds[3::2])), 2),
            "text": exact.detokenize(tokens[len(prompt) :]),
        }


def main() -> None:
    """Export, compare, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parity", type=int, default=0, metavar="TOKENS")
    options = parser.parse_args()
    formats = "coreml,reference" if options.parity else "coreml"
    figures: dict[str, Any] = {
        "model": options.name,
        "versions": {
            "quickdraft": quickdraft.__version__,
            "coremltools": version("coremltools"),
            "numpy": np.__version__,
        },
        "export": export(options.model, options.folder, formats),
    }
    print(figures["export"], file=sys.stderr)
    if options.parity:
        figures["parity"] = parity(options.folder, options.parity)
        print(figures["parity"], file=sys.stderr)
    print(write_result(f"coreml-{options.name}", figures))


if __name__ == "__main__":
    main()
