"""What a speech model may say next when it says times as well.

The rules of OpenAI's Whisper (`decoding.py`, ApplyTimestampRules): an answer begins with a time,
times come in pairs around what is said between them, never go back, and win as soon as they are
together more likely than the likeliest word.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SECONDS_PER_TOKEN = 0.02
LATEST_FIRST = 50
"""The largest time, in tokens, that an answer may begin with: one second."""


def follow_timestamps(
    logits: NDArray[np.float32], answer: NDArray[np.int64], begin: int, end: int
) -> NDArray[np.float32]:
    """Rule out, in float32 logits [vocabulary], what must not follow the tokens of an answer.

    begin: the token of time 0; those of later times follow it. end: the end-of-text token, which
    comes after all words and before all times.
    """
    logits[begin - 1] = -np.inf  # <|notimestamps|>
    if len(answer) == 0:
        logits[:begin] = -np.inf
        logits[begin + LATEST_FIRST + 1 :] = -np.inf
        return logits
    after_time = answer[-1] >= begin
    if after_time and (len(answer) < 2 or answer[-2] >= begin):
        logits[begin:] = -np.inf
    elif after_time:
        logits[:end] = -np.inf
    times = answer[answer >= begin]
    if len(times):
        closing = after_time and len(answer) > 1 and answer[-2] < begin
        logits[begin : int(times[-1]) + (0 if closing else 1)] = -np.inf
    if _log_sum(logits[begin:]) > logits[:begin].max():
        logits[:begin] = -np.inf
    return logits


def _log_sum(values: NDArray[np.float32]) -> float:
    if len(values) == 0 or (most := float(values.max())) == -np.inf:
        return -np.inf
    return most + float(np.log(np.exp(values - np.float32(most)).sum()))
