"""What heads share: settings from a file, a trimmed vocabulary, graphs that do not attend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import CheckpointError
from quickdraft.export.architectures.decoder import Linear, Norm
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.trained import Target
from quickdraft.export.weights import Weight, dense_weight
from quickdraft.types import ModelSpec


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


S = TypeVar("S", bound=_Dataclass)

EPS = 1e-6
"""Of norms that heads have of their own."""
TOP = 16
"""Logits of a row that a drafter may see."""
MOST_HEADS = 8
MOST = 1 << 24
"""Of any number that a file says."""


@dataclass(frozen=True)
class HeadsSettings:
    """The shape of heads that draft so many tokens ahead, as their trained file says it.

    heads: one for every token ahead. vocab_size: tokens they can draft. name: of the part, or what
    the names of the parts begin with.
    """

    heads: int
    vocab_size: int
    name: str

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> HeadsSettings:
        """Check what a file says.

        Raises:
            CheckpointError: a setting is missing, unknown, or impossible.
        """
        limits = {"heads": (1, MOST_HEADS), "vocab_size": (2, MOST)}
        return checked_settings(cls, "heads", values, limits)


def checked_settings(
    cls: type[S], what: str, values: Mapping[str, Any], limits: Mapping[str, tuple[int, int]]
) -> S:
    """What a trained file says of its shape, as the frozen dataclass `cls`, whose fields are
    numbers, `name`, which is text, and what the caller has checked. limits: lowest and highest of
    the numbers. what: names the part in errors.

    Raises:
        CheckpointError: a setting is missing, unknown, or impossible.
    """
    names = {field.name for field in fields(cls)}
    if set(values) != names:
        raise CheckpointError(f"the settings of {what} are {sorted(names)}, not {sorted(values)}")
    for name, (least, most) in limits.items():
        if type(values[name]) is not int or not least <= values[name] <= most:
            raise CheckpointError(f"{name} of {what} is {values[name]!r}")
    if not isinstance(values["name"], str):
        raise CheckpointError(f"name of {what} is {values['name']!r}")
    return cls(**values)


def own_weights(
    weights: WeightMap, shapes: Mapping[str, tuple[int, ...]], name: str
) -> dict[str, Weight]:
    """The weights of a trained part, as its graphs call them.

    Raises:
        CheckpointError: one is missing or has another shape.
    """
    return {
        key: replace(weights.expect(key, shape), name=f"{name}.{key}")
        for key, shape in shapes.items()
    }


def as_weights(tensors: Mapping[str, NDArray[Any]]) -> WeightMap:
    """Arrays as what a file would hold."""
    return WeightMap({name: dense_weight(name, values) for name, values in tensors.items()})


def token_ids(weights: WeightMap, vocab_size: int, target_size: int) -> NDArray[np.int64]:
    """int64 [vocab_size], ascending: the target's token for each of a head's own.

    Raises:
        CheckpointError: there are none, or they are others than the target's.
    """
    tokens = np.asarray(weights.expect("tokens", (vocab_size,)).dense(), np.int64)
    if tokens[0] < 0 or tokens[-1] >= target_size or (np.diff(tokens) <= 0).any():
        raise CheckpointError(
            f"the tokens of a head must ascend and be among the {target_size} of its target"
        )
    return tokens


def trimmed_head(head: Linear, tokens: NDArray[np.int64], name: str) -> Linear:
    """The rows of the target's output matrix that are `tokens`: nothing to train or to store."""
    bias = head.bias
    return Linear(
        head.weight.take_rows(tokens, f"{name}.head"),
        None if bias is None else bias.take_rows(tokens, f"{name}.head_bias"),
    )


def rowwise_spec(kind: str, target: Target, vocab_size: int) -> ModelSpec:
    """Facts of a graph that computes every row by itself. A model has at least one layer, so there
    is one of four bytes a slot."""
    return ModelSpec(
        family=kind,
        num_layers=1,
        hidden_size=target.spec.hidden_size,
        vocab_size=vocab_size,
        context_length=target.spec.context_length,
        num_heads=(1,),
        num_kv_heads=(1,),
        head_dim=1,
        windows=(None,),
    )


def norm_scale(target: Target) -> NDArray[np.float32]:
    """float32 [hidden]: what the target's last norm multiplies by."""
    norm: Norm | None = target.weights.final_norm
    if norm is None or norm.weight is None:
        return np.ones(target.spec.hidden_size, np.float32)
    scale: NDArray[np.float32] = norm.weight.dense() + np.float32(target.spec.norm_offset)
    return scale
