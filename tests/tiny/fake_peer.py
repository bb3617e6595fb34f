"""A peer that measures nothing and says made-up times.

    python fake_peer.py BEHAVIOUR MODEL THREADS [SETTING]

BEHAVIOUR: `answers`; `dies` at its first step or answer; `babbles` instead of answering it.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(behaviour: str, model: str, threads: str, *setting: str) -> None:
    facts = {"threads": int(threads), "setting": setting, "modes": ["plain", "ngram"]}
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(behaviour, json.loads(line))), flush=True)


def answer(behaviour: str, request: dict[str, Any]) -> object:
    if request["op"] == "open":
        return {"kv_bytes": None}
    if request["op"] == "memory":
        return {"peak_bytes": 5_000_000}
    if behaviour == "dies":
        sys.exit("out of ideas")
    if request["op"] == "generate":
        count, seconds = request["tokens"], {"plain": 0.02, "ngram": 0.01}[request["mode"]]
        decoded = count - 1
        ids = request["prompt"][:1] * count
        times = {"prefill_s": 0.5, "decode_s": seconds * decoded}
        return {"ids": ids, "decoded": decoded, **times}
    ms = len(request["tokens"]) / 1000
    if request["op"] == "prefill":
        return {"ms": ms}
    return 7 if behaviour == "babbles" else {"ms": [ms + 1, ms, ms + 2]}


if __name__ == "__main__":
    main(*sys.argv[1:])
