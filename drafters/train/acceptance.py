"""What drafts would bring, counted on text that the target wrote."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def chain_tokens_per_step(
    hits: NDArray[np.bool_], documents: NDArray[np.int64], length: int
) -> float:
    """Tokens per step of the target when chains of `length` tokens are drafted.

    hits: bool [n], whether the draft finds each token likeliest, given those before it. documents:
    int64 [n], which answer each belongs to; those of one follow each other.

    What is drafted after tokens that were right is what it drafts after the target's own, so that
    this is exact for greedy answers; drawn ones are as if chosen tokens were drafted for them. The
    step that reads the prompt says the first token and is not counted.
    """
    steps = tokens = at = 0
    ends = np.append(np.flatnonzero(np.diff(documents)) + 1, len(documents)).tolist()
    right = hits.tolist()
    for end in ends:
        at += 1  # the prefill says it
        while at < end:
            first = at
            while at < end and at - first < length and right[at]:
                at += 1
            at = min(at + 1, end)
            tokens += at - first
            steps += 1
        at = end
    return tokens / steps if steps else 1.0
