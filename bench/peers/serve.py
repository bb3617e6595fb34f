"""The line protocol of a peer process: one JSON request a line in, one JSON answer a line out.

Requests: {"op": "decode", "prompt": [ids], "tokens": n} answers {"prefill_s", "decode_s"} (prefill
ends with the first token decided; decode_s covers the n - 1 tokens after it, greedy), and
{"op": "score", "tokens": [ids]} answers {"logprobs": [...]}, natural logs of tokens 1.. given the
ones before. The first line a peer prints is {"ready": true, ...facts about itself}.

Peers live in environments of their own, so this file uses the standard library only.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Handler = Callable[[dict[str, Any]], dict[str, Any]]


def serve(facts: dict[str, Any], handlers: dict[str, Handler]) -> None:
    """Answer requests until standard input ends. Libraries may print; answers go elsewhere."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    answers.write(json.dumps({"ready": True, **facts}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(handlers[request["op"]](request)) + "\n")
