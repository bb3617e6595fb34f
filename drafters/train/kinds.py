"""Kinds of drafts that `quickdraft train draft` trains: a new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from quickdraft.drafters.train.data import Corpus
from quickdraft.drafters.train.loop import LoopOptions, Trainee
from quickdraft.export.trained import Target, TargetWithEncoder

Hear = Callable[[str, int], NDArray[Any]]


@dataclass(frozen=True)
class Request:
    """What a kind of draft is prepared from.

    target: what it is for. training, held_out: answers of the target. options: of this kind, by
    name; text is read as what it should be. seed: of the first weights and of the order of data.
    """

    target: Target
    training: Corpus
    held_out: Corpus
    options: Mapping[str, Any]
    seed: int
    device: torch.device


@dataclass(frozen=True)
class RequestWithEncoder:
    """The same for an encoder-decoder model. hear: of one that reads sound, its features float32
    [frames, width] from a file and a sample on."""

    target: TargetWithEncoder
    training: Corpus
    held_out: Corpus
    options: Mapping[str, Any]
    seed: int
    device: torch.device
    hear: Hear | None = None


@dataclass(frozen=True)
class DraftTraining:
    """A draft that is ready to be trained.

    options: all of its options, plain JSON values. loop: of the training, where the user gives
    nothing else. settings: of the trained part. tensors: what it has learnt so far, to be written
    (see export.trained.write_trained). recipe: one line for the card.
    """

    trainee: Trainee
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    tensors: Callable[[], Mapping[str, NDArray[Any]]]
    recipe: str
    loop: Callable[..., LoopOptions] = LoopOptions


Prepare = Callable[[Request], DraftTraining]
"""What KINDS names.

Raises:
    OptionError: an option is unknown or has a bad value.
"""

KINDS: Mapping[str, str] = {
    "chimera": "quickdraft.drafters.train.chimera:prepare_chimera",
    "clover": "quickdraft.drafters.train.clover:prepare_clover",
    "compact": "quickdraft.drafters.train.compact:prepare_compact",
    "eagle": "quickdraft.drafters.train.eagle:prepare_eagle",
    "falcon": "quickdraft.drafters.train.falcon:prepare_falcon",
    "hydra": "quickdraft.drafters.train.hydra:prepare_hydra",
    "judge": "quickdraft.drafters.train.judge:prepare_judge",
    "medusa": "quickdraft.drafters.train.medusa:prepare_medusa",
    "nested": "quickdraft.drafters.train.nested:prepare_nested",
}
"""Also the kinds of trained parts in registry.TRAINED."""
KINDS_WITH_ENCODER: Mapping[str, str] = {
    "shallow": "quickdraft.drafters.train.shallow:prepare_shallow",
}
"""The same for encoder-decoder models, of which requests are RequestWithEncoder."""
