"""A compact draft that the training of another one goes on from: the next stage of FastDraft."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.train.kinds import Request
from quickdraft.errors import OptionError
from quickdraft.export.heads.compact import KIND, CompactSettings, tensor_shapes
from quickdraft.export.trained import read_trained

SHAPE = ("layers", "width", "head_dim", "mlp_width", "window")
"""Options that the draft to start from has decided on."""

Weights = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Start:
    """A draft to go on from. settings: of its file; weights, tokens: what it learnt, and the tokens
    it drafts; facts: its file, hash and recipe, for the card."""

    settings: CompactSettings
    weights: Weights
    tokens: NDArray[np.int32]
    facts: Mapping[str, Any]

    def shape(self, options: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Values of options that it decides. given: what the user said, of `options`.

        Raises:
            OptionError: another shape was given.
        """
        for name in SHAPE:
            own, wanted = getattr(self.settings, name), options[name]
            if name in given and wanted != own:
                raise OptionError(
                    f"{name} of drafter compact is {wanted}, and the draft to start from has "
                    f"{own}; leave it out, or leave start out"
                )
        names = SHAPE if "vocab_size" in given else (*SHAPE, "vocab_size")
        return {name: getattr(self.settings, name) for name in names}

    def weights_in(self, settings: CompactSettings, initial: Weights) -> dict[str, NDArray[Any]]:
        """Initial weights with all that it has learnt in them; of the head, rows of tokens that it
        does not draft stay as they are.

        Raises:
            OptionError: its attention has another shape than drafts of these settings have.
        """
        count, name = settings.vocab_size, settings.name
        if dataclasses.replace(self.settings, vocab_size=count, name=name) != settings:
            raise OptionError(
                f"start of drafter compact is {self.facts['file']}, which was made by another "
                "version; train it again"
            )
        head = np.array(initial["head"])
        _, mine, theirs = np.intersect1d(initial["tokens"], self.tokens, return_indices=True)
        head[mine] = self.weights["head"][theirs]
        kept = {"head": head, "tokens": initial["tokens"]}
        return {**initial, **self.weights, **kept}


def read_start(file: Path, request: Request) -> Start:
    """The draft that a training goes on from.

    Raises:
        OptionError: it is no compact draft that fits the target. CheckpointError: it is damaged.
    """
    trained = read_trained(file)
    if trained.kind != KIND:
        raise OptionError(
            f"start of drafter compact is {file.name}, a file of kind {trained.kind!r}; give one "
            f"of kind {KIND!r}"
        )
    settings = CompactSettings.of(trained.settings)
    shapes = tensor_shapes(request.target.spec, settings)
    weights = {name: weight.dense() for name, weight in trained.weights.items()}
    tokens = weights.pop("tokens", np.zeros(0, np.float32)).astype(np.int32)
    is_whole = {name: values.shape for name, values in weights.items()} == dict(shapes)
    if not is_whole or len(tokens) != settings.vocab_size:
        raise OptionError(
            f"start of drafter compact is {file.name}, which is for a model of another shape; give "
            "a draft of this model"
        )
    if int(tokens.max()) >= request.target.spec.vocab_size:
        raise OptionError(
            f"start of drafter compact is {file.name}, which drafts the token {tokens.max()}; the "
            f"model has {request.target.spec.vocab_size}"
        )
    facts = {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "recipe": str(trained.card.get("recipe", "unknown")),
    }
    return Start(settings, weights, tokens, facts)
