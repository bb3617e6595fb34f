"""When does the first token come, and how long do 128 take?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from prediction.ways import EXACT, Way

from quickdraft.drafters.tree import Tree
from quickdraft.runtime.benchmark import random_tokens
from quickdraft.runtime.clock import now
from quickdraft.runtime.engine_process import EngineProcess

Progress = Callable[[str, int, int], None]
Times = dict[str, dict[int, list[float]]]


def measure_first_token(
    ways: Sequence[Way],
    peers: Mapping[str, EngineProcess],
    lengths: Sequence[int],
    rounds: int,
    progress: Progress,
) -> dict[str, Any]:
    """Milliseconds to the first token, by engine and prompt length: minimum over the rounds, in
    which all engines take turns at every length, and who is first changes.

    Ours are from the call to the first token, tokenising left out; those of peers a prefill with
    the logits of its last row, which is the same but for choosing the token.
    """
    ids = random_tokens(ways[0].model.spec.vocab_size, max(lengths)).tolist()
    engines: dict[str, Callable[[int], float]] = {}
    for way in ways:
        engines[way.name] = lambda count, way=way: _first_token(way, ids[:count])
    for name, peer in peers.items():
        engines[name] = lambda count, peer=peer: float(
            peer.ask(op="prefill", tokens=ids[:count])["ms"]
        )
    times: Times = {name: {count: [] for count in lengths} for name in engines}
    names = list(engines)
    for name in names:  # a warm-up, not counted
        engines[name](min(lengths))
    total = rounds * len(lengths)
    for turn in range(rounds):
        first = turn % len(names)
        for number, count in enumerate(lengths):
            for name in names[first:] + names[:first]:
                times[name][count].append(engines[name](count))
            progress("first token", turn * len(lengths) + number + 1, total)
    best = {
        name: {str(count): round(min(found), 3) for count, found in by_length.items()}
        for name, by_length in times.items()
    }
    return {
        "lengths": list(lengths),
        "rounds": rounds,
        "ttft_ms": {way.name: best[way.name] for way in ways},
        "multiplications": {
            way.name: {str(count): way.cost.of_prompt(count) for count in lengths} for way in ways
        },
        "peers": {name: {"ttft_ms": best[name], "facts": peers[name].facts} for name in peers},
    }


def _first_token(way: Way, ids: Sequence[int]) -> float:
    result = way.answer(ids, max_new_tokens=1, ignore_eos=True)
    return result.timings.ttft_ms


def measure_refresh(
    ways: Sequence[Way], lengths: Sequence[int], tokens: int, rounds: int, progress: Progress
) -> dict[str, Any]:
    """Milliseconds to the first and to the last of `tokens`, exact and refreshed in turns, the
    longest that one of them waited, and whether the cache is exact afterwards: the next step over
    it has the bits it has over a cache that read the same text plainly."""
    exact = ways[0]
    kinds = {EXACT: (exact, exact.prefill)}
    for way in ways:
        if way.kind == "predicted":
            kinds[way.name] = (way, way.prefill)
            kinds[f"{way.name}+refresh"] = (way, f"{way.prefill}+refresh")
    ids = random_tokens(exact.model.spec.vocab_size, max(lengths)).tolist()
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in kinds}
    total = rounds * len(lengths)
    for turn in range(rounds):
        for number, count in enumerate(lengths):
            for name, (way, prefill) in kinds.items():
                point = _answer(way, prefill, ids[:count], tokens)
                best = found[name].setdefault(str(count), point)
                for key in ("ttft_ms", "total_ms", "longest_ms"):
                    best[key] = min(best[key], point[key])
                best["exact_after"] &= point["exact_after"]
            progress("refresh", turn * len(lengths) + number + 1, total)
    return {"lengths": list(lengths), "rounds": rounds, "tokens": tokens, "ways": found}


def _answer(way: Way, prefill: str, ids: Sequence[int], tokens: int) -> dict[str, Any]:
    session = way.model.session()
    moments: list[float] = []
    options = {"prefill": prefill, "max_new_tokens": tokens, "ignore_eos": True}
    result = way.answer(ids, session, callback=lambda text: moments.append(now()), **options)
    times = result.timings
    waits = np.diff(moments)
    point = {
        "ttft_ms": round(times.ttft_ms, 3),
        "total_ms": round(times.ttft_ms + times.predicted_ms, 3),
        "longest_ms": round(1e3 * float(waits.max(initial=0.0)), 3),
        "exact_after": session.cache.predicted == 0 and _is_exact(way, session),
    }
    if result.prediction is not None:
        point["exact_from"] = result.prediction.exact_from
    return point


def _is_exact(way: Way, session: Any) -> bool:
    """Compare the next step over the session's cache with that over a plainly read one."""
    backend, held = way.model.backend, session.tokens[: session.cache.length]
    cache = backend.new_cache()
    for start in range(0, len(held), 256):
        chunk = held[start : start + 256]
        backend.step(Tree.chain(chunk), cache, np.array([len(chunk) - 1]), full_logits=False)
        cache.commit(range(len(chunk)))
    token = Tree.chain(session.tokens[-1:])
    expected = np.array(backend.step(token, cache).logits)
    return bool((np.array(backend.step(token, session.cache).logits) == expected).all())
