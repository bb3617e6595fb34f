"""Which layers make the first token of a text large, so that others can rest their attention on it.

Sun et al. 2024, arXiv 2402.17762 (massive activations); Xiao et al. 2023, arXiv 2309.17453 (sinks).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.train.streams import LayerRunner

_GROWTH = 5.0
_OVER_OTHERS = 20.0
_NEIGHBOURS = 4
"""Tokens after the first that may be large as well."""


def enlarging_layers(runner: LayerRunner, tokens: NDArray[np.int32]) -> tuple[int, ...]:
    """The layers after which the first token of the rows [rows, length] is suddenly many times as
    large as the others: an auxiliary without them has nothing to rest on."""
    x = runner.embed(tokens)
    found: list[int] = []
    before = _size(x[:, :1])
    for index in range(len(runner.spec.layers)):
        x = runner.layer(index, x)
        after = _size(x[:, :1])
        if after > _GROWTH * before and after > _OVER_OTHERS * _size(x[:, _NEIGHBOURS:]):
            found.append(index)
        before = after
    return tuple(found)


def _size(x: NDArray[np.float32]) -> float:
    return float(np.median(np.linalg.norm(x, axis=-1)))
