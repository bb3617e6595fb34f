"""The line protocol of a peer process: one JSON request a line in, one JSON answer a line out.

The first line a peer prints is {"ready": true, ...facts about itself}. Requests and answers:

    {"op": "decode", "prompt": [ids], "tokens": n}      {"prefill_s", "decode_s"}
    {"op": "score", "tokens": [ids]}                    {"logprobs": [...]}
    {"op": "open", "context": n, "tokens": [ids]}       {"kv_bytes"}
    {"op": "step", "context": n, "tokens": [ids], "repeats": k}     {"ms": [k times]}
    {"op": "prefill", "tokens": [ids]}                  {"ms": time}
    {"op": "memory"}                                    {"peak_bytes"}
    {"op": "generate", "prompt": [ids], "tokens": n, "mode": name}
                                            {"ids", "prefill_s", "decode_s", "decoded"}

`decode`: prefill ends with the first token decided; decode_s covers the n - 1 tokens after it,
greedy. `score`: natural logs of tokens 1.. given the ones before. The others are asked by
`quickdraft bench curve`: `open` keeps a cache of n tokens; `step` times steps of those tokens over
it, the logits of all rows computed, nothing committed, after one step that is not timed; `prefill`
times a prompt from an empty cache, the logits of its last row computed. kv_bytes and peak_bytes are
null where they are not known. `generate` is asked by `quickdraft bench speculation`: n tokens after
a prompt, greedy, end-of-text tokens included, in one of the modes that the facts name ("modes":
[...], "plain" among them). decode_s covers `decoded` tokens: those after the first step.

Peers live in environments of their own, so this file uses the standard library only.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

Handler = Callable[[dict[str, Any]], dict[str, Any]]


class Stepper(Protocol):
    """What an engine shows of itself to be measured step by step."""

    def open(self, context: int, tokens: Sequence[int]) -> int | None:
        """Keep a cache of these `context` tokens, ready for steps; its bytes."""

    def begin(self, context: int, rows: int) -> None:
        """Get the cache ready for a series of steps of `rows` rows; not timed."""

    def rewind(self, context: int) -> None:
        """Forget the rows of the last step; not timed."""

    def step(self, context: int, tokens: Sequence[int]) -> None:
        """One step; returns when the logits of all rows are there."""

    def prefill(self, tokens: Sequence[int]) -> None:
        """Run a prompt from an empty cache; returns when the logits of its last row are there."""


def serve(facts: dict[str, Any], handlers: dict[str, Handler]) -> None:
    """Answer requests until standard input ends. Libraries may print; answers go elsewhere."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    answers.write(json.dumps({"ready": True, **facts}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(handlers[request["op"]](request)) + "\n")


def curve_handlers(engine: Stepper) -> dict[str, Handler]:
    """Handlers of the requests of `quickdraft bench curve`."""

    def timed(work: Callable[[], None]) -> float:
        started = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - started)

    def step(request: dict[str, Any]) -> dict[str, Any]:
        context, tokens = request["context"], request["tokens"]
        engine.begin(context, len(tokens))
        engine.step(context, tokens)
        times = []
        for _ in range(request["repeats"]):
            engine.rewind(context)
            times.append(timed(lambda: engine.step(context, tokens)))
        engine.rewind(context)
        return {"ms": times}

    return {
        "open": lambda request: {"kv_bytes": engine.open(request["context"], request["tokens"])},
        "step": step,
        "prefill": lambda request: {"ms": timed(lambda: engine.prefill(request["tokens"]))},
        "memory": lambda request: {"peak_bytes": peak_memory()},
    }


def peak_memory() -> int | None:
    """Largest resident size of this process so far, in bytes.

    getrusage counts what the parent held when it started us, so Linux is asked elsewhere.
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
