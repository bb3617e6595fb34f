"""A judge: from the target's last hidden state at a drafted token, whether the token will do.

After Bachmann et al., Judge Decoding (arXiv 2501.19309): a linear classifier at the token's own
place, where the target has read it, so that a mistake shows. What it lets pass need not be what the
target would have said: answers are lossy, and only those that ask for it by name. Ours: the state
is normed; and on request there is a hidden layer before the classifier, for small targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from quickdraft.export.architectures.decoder import DecoderSpec
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.emitters.base import Part
from quickdraft.export.heads.parts import (
    EPS,
    MOST,
    checked_settings,
    own_weights,
    rowwise_spec,
    token_ids,
)
from quickdraft.export.ops import Ops
from quickdraft.export.quantize import FORMATS
from quickdraft.export.trained import Target, Trained
from quickdraft.export.weights import Weight

V = TypeVar("V")

KIND = "judge"
VERDICTS = 2
"""Its vocabulary: 0, that a token is a mistake; 1, that it will do."""


@dataclass(frozen=True)
class JudgeSettings:
    """The shape of a judge, as its trained file says it. width: of the hidden layer, 0 for none.
    name: of the part."""

    width: int = 0
    name: str = KIND

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> JudgeSettings:
        """Check what a file says.

        Raises:
            CheckpointError: a setting is missing, unknown, or impossible.
        """
        return checked_settings(cls, "a judge", values, {"width": (0, MOST)})


def attach_judge(trained: Trained, target: Target) -> Sequence[Part]:
    """The part of a trained judge; see export.trained.Attach.

    Raises:
        CheckpointError: its weights or settings do not fit the target.
    """
    settings = JudgeSettings.of(trained.settings)
    target.hidden_states.add(len(target.spec.layers))
    return [judge_part(target, settings, trained.weights)]


def judge_part(target: Target, settings: JudgeSettings, weights: WeightMap) -> Part:
    """The graph of a judge with these weights (names and shapes: `tensor_shapes`), never quantised.
    Its features are the target's stream after the last layer.

    Raises:
        CheckpointError: a weight is missing or has another shape.
    """
    own = own_weights(weights, tensor_shapes(target.spec, settings), settings.name)
    token_ids(weights, VERDICTS, VERDICTS)
    return Part(
        role="judge",
        name=settings.name,
        build=_builder(own),
        spec=rowwise_spec(KIND, target, VERDICTS),
        features=target.spec.hidden_size,
        fmt=FORMATS["fp32"],
        top=VERDICTS,
        token_map=weights["tokens"],
        details={"kind": KIND, "hidden_states": [len(target.spec.layers)]},
    )


def tensor_shapes(target: DecoderSpec, settings: JudgeSettings) -> dict[str, tuple[int, ...]]:
    """Its own float weights. Besides there is `tokens`, int32 [2]: its verdicts."""
    read = settings.width or target.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"verdict": (VERDICTS, read), "bias": (VERDICTS,)}
    if settings.width:
        shapes |= {"hidden": (read, target.hidden_size), "hidden_bias": (read,)}
    return shapes


def initial_weights(target: Target, settings: JudgeSettings, seed: int = 0) -> dict[str, Any]:
    """Weights to train from: it lets every second token pass."""
    rng = np.random.default_rng(seed)
    made: dict[str, NDArray[Any]] = {}
    for name, shape in tensor_shapes(target.spec, settings).items():
        made[name] = np.zeros(shape, np.float32)
        if name == "hidden":
            made[name] = (rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
    return {**made, "tokens": np.arange(VERDICTS, dtype=np.int32)}


def _builder(own: Mapping[str, Weight]) -> Callable[[Ops[Any]], None]:
    def build(ops: Ops[V]) -> None:
        x = ops.rms_norm(ops.features(), None, EPS)
        if "hidden" in own:
            x = ops.activate(ops.linear(x, own["hidden"], own["hidden_bias"]), "silu")
        ops.logits(ops.linear(ops.take_rows(x, ops.output_rows()), own["verdict"], own["bias"]))

    return build
