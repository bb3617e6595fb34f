"""Ridge regression over more rows than fit in memory: sums of products, then one solve.

Everything is closed form: rows are seen once, in chunks, and what is kept of them does not grow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]

GRID = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Penalties that are tried, relative to the mean variance of the (standardised) inputs."""
_TINY = 1e-12


class NormalEquations:
    """What least squares needs to know of rows x [n, inputs] and y [n, outputs].

    Sums are float64; the products of a chunk are float32, of rows less the mean of the first
    chunk, so that large means do not eat the digits of small variances.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.weight = 0.0
        self.shift_x: Doubles | None = None
        self.shift_y: Doubles = np.zeros(outputs)
        self.sum_x, self.sum_y = np.zeros(inputs), np.zeros(outputs)
        self.xx, self.xy = np.zeros((inputs, inputs)), np.zeros((inputs, outputs))
        self.yy = np.zeros(outputs)

    def add(self, x: Array, y: Array, weights: Array | None = None) -> None:
        """Count in some rows. weights: [n], how much each counts; 1 unless given."""
        if self.shift_x is None:
            self.shift_x, self.shift_y = x.mean(0, np.float64), y.mean(0, np.float64)
        x = np.asarray(x - self.shift_x.astype(np.float32), np.float32)
        y = np.asarray(y - self.shift_y.astype(np.float32), np.float32)
        each = np.ones(len(x), np.float32) if weights is None else weights.astype(np.float32)
        weighted = x * each[:, None]
        self.weight += float(each.sum(dtype=np.float64))
        self.sum_x += weighted.sum(0, np.float64)
        self.sum_y += (y * each[:, None]).sum(0, np.float64)
        self.xx += weighted.T @ x
        self.xy += weighted.T @ y
        self.yy += np.einsum("ij,ij,i->j", y, y, each, dtype=np.float64)

    def moments(self, like: NormalEquations | None = None) -> Moments:
        """Means and, about the means of `like` (its own unless given), second moments.

        Raises:
            ValueError: no row was counted in.
        """
        if self.shift_x is None or self.weight <= 0:
            raise ValueError("no rows to fit")
        # Rounded as they were when they were taken off.
        base_x = self.shift_x.astype(np.float32).astype(np.float64)
        base_y = self.shift_y.astype(np.float32).astype(np.float64)
        mean_x, mean_y = base_x + self.sum_x / self.weight, base_y + self.sum_y / self.weight
        about = (mean_x, mean_y) if like is None else like.means()
        dx, dy = base_x - about[0], base_y - about[1]
        ax, ay = self.sum_x / self.weight, self.sum_y / self.weight
        return Moments(
            about[0],
            about[1],
            self.xx / self.weight + np.outer(ax, dx) + np.outer(dx, ax) + np.outer(dx, dx),
            self.xy / self.weight + np.outer(ax, dy) + np.outer(dx, ay) + np.outer(dx, dy),
            self.yy / self.weight + 2 * ay * dy + dy * dy,
        )

    def means(self) -> tuple[Doubles, Doubles]:
        """Of x and y."""
        own = self.moments()
        return own.mean_x, own.mean_y


@dataclass(frozen=True)
class Moments:
    """Second moments about (mean_x, mean_y), per row: x'x, x'y and the diagonal of y'y."""

    mean_x: Doubles
    mean_y: Doubles
    xx: Doubles
    xy: Doubles
    yy: Doubles

    def errors(self, weight: Doubles) -> Doubles:
        """Mean squared error of y ~ mean_y + (x - mean_x) @ weight, by output."""
        explained = 2 * np.einsum("ij,ij->j", weight, self.xy)
        found: Doubles = self.yy - explained + np.einsum("ij,ij->j", weight, self.xx @ weight)
        return np.maximum(found, 0.0)


@dataclass(frozen=True)
class Solution:
    """y ~ x @ weight.T + bias.

    weight: float32 [outputs, inputs]; bias: float32 [outputs]. By group of outputs: penalties, and
    the shares of the variance of held-out (errors) and training rows that are not explained.
    """

    weight: Floats
    bias: Floats
    penalties: Mapping[str, float]
    errors: Mapping[str, float]
    training_errors: Mapping[str, float]


def solve_ridge(
    training: NormalEquations,
    held_out: NormalEquations,
    groups: Mapping[str, slice],
    grid: Sequence[float] = GRID,
) -> Solution:
    """Fit every group of outputs with the penalty that does best on the held-out rows.

    Inputs are standardised for the penalty, which the bias does not pay.

    Raises:
        ValueError: there are no rows, or they hold what is not a number.
    """
    own = training.moments()
    other = held_out.moments(like=training)
    spread = np.sqrt(np.diag(own.xx))
    # An input that hardly varies gets no say.
    scale = np.where(spread > _TINY * max(float(spread.max()), _TINY), spread, np.inf)
    values, vectors = np.linalg.eigh(own.xx / np.outer(scale, scale))
    turned = vectors.T @ (own.xy / scale[:, None])
    weight = np.zeros_like(own.xy)
    penalties, errors, training_errors = {}, {}, {}
    candidates = [
        (vectors @ (turned / (np.maximum(values, 0.0) + penalty)[:, None])) / scale[:, None]
        for penalty in grid
    ]
    losses = [other.errors(candidate) for candidate in candidates]
    for name, columns in groups.items():
        sums = [float(loss[columns].sum()) for loss in losses]
        best = int(np.argmin(sums))
        chosen = candidates[best]
        weight[:, columns] = chosen[:, columns]
        penalties[name] = grid[best]
        errors[name] = sums[best] / max(_variance(held_out, columns), _TINY)
        total = max(float(own.yy[columns].sum()), _TINY)
        training_errors[name] = float(own.errors(chosen)[columns].sum()) / total
    if not np.isfinite(weight).all():
        raise ValueError("the rows hold values that are no numbers")
    return Solution(
        weight=np.ascontiguousarray(weight.T, np.float32),
        bias=np.asarray(own.mean_y - own.mean_x @ weight, np.float32),
        penalties=penalties,
        errors=errors,
        training_errors=training_errors,
    )


def _variance(rows: NormalEquations, columns: slice) -> float:
    return float(rows.moments().yy[columns].sum())
