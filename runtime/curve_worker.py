"""Our side of the verify-cost curve: a loaded model, measured step by step.

`python -m quickdraft.runtime.curve_worker BUNDLE OPTIONS` serves requests, one JSON object a line,
until standard input ends. OPTIONS is a JSON object of options of `Model.open`. Requests: `open`,
`step`, `prefill` and `memory`, as bench/peers/serve.py describes them for all engines.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quickdraft.drafters.tree import Tree
from quickdraft.errors import QuickdraftError
from quickdraft.kvcache.base import KvCache
from quickdraft.runtime.backends.base import Backend
from quickdraft.runtime.benchmark import PREFILL_CHUNK, Clock, prefill_seconds
from quickdraft.runtime.sources import trial_cache


class CurveWorker:
    """Caches of several lengths over one backend, and the clock."""

    def __init__(self, backend: Backend, clock: Clock = time.perf_counter) -> None:
        self._backend = backend
        self._clock = clock
        self._caches: dict[int, KvCache] = {}

    def open(self, context: int, tokens: Sequence[int]) -> dict[str, Any]:
        """Keep a cache of these `context` tokens."""
        cache = self._caches[context] = trial_cache(self._backend)
        for start in range(0, len(tokens), PREFILL_CHUNK):
            part = tokens[start : start + PREFILL_CHUNK]
            last = np.array([len(part) - 1], np.int64)
            self._backend.step(Tree.chain(part), cache, last, full_logits=False)
            cache.commit(range(len(part)))
        return {"kv_bytes": cache.nbytes}

    def step(self, context: int, tokens: Sequence[int], repeats: int) -> dict[str, Any]:
        """Milliseconds of steps of a chain whose rows are all wanted; nothing is committed.

        The largest logits of every row are computed, all of them where the backend has no others.
        """
        cache, tree = self._caches[context], Tree.chain(tokens)
        times = []
        for _ in range(repeats + 1):
            started = self._clock()
            self._backend.step(tree, cache, full_logits=False)
            times.append(1e3 * (self._clock() - started))
        return {"ms": times[1:]}

    def prefill(self, tokens: Sequence[int]) -> dict[str, Any]:
        """Milliseconds of a prompt from an empty cache; the last row is wanted."""
        seconds = prefill_seconds(self._backend, np.asarray(tokens, np.int64), clock=self._clock)
        return {"ms": 1e3 * seconds}

    def memory(self) -> dict[str, Any]:
        """Largest resident size of this process so far."""
        return {"peak_bytes": peak_memory()}

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Serve one request."""
        operations: dict[str, Callable[..., dict[str, Any]]] = {
            "open": self.open,
            "step": self.step,
            "prefill": self.prefill,
            "memory": self.memory,
        }
        given = dict(request)
        return operations[given.pop("op")](**given)


def peak_memory() -> int | None:
    """Largest resident size of this process so far, in bytes; None where it is not known.

    On Linux getrusage also counts what the parent held when it started this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(encoding="ascii"), re.M)
        return int(found[1]) * 1024 if found else None
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(folder: str, options: str) -> None:
    """Load the bundle and serve. Libraries may print; answers go elsewhere."""
    from quickdraft.bundle import open_bundle
    from quickdraft.runtime.drafting import DraftingSetup
    from quickdraft.runtime.model import Model

    plain = DraftingSetup("none")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    bundle = open_bundle(Path(folder))
    chosen = json.loads(options)
    with Model.open(bundle.folder, manifest=bundle.manifest, drafting=plain, **chosen) as model:
        backend = model.backend
        facts: dict[str, Any] = {
            "engine": "quickdraft",
            "backend": backend.name,
            "flavour": backend.flavour,
        }
        facts |= {"device": backend.device, "isa": backend.isa, "kv_cache": backend.kv_type}
        answers.write(json.dumps(facts) + "\n")
        worker = CurveWorker(backend)
        for line in sys.stdin:
            answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except QuickdraftError as error:
        sys.exit(f"error: {error}")
