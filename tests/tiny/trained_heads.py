"""Drafts of every kind, trained on the language of tiny.followers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tiny.folders import lasting_folder
from tiny.followers import WORDS, followers_checkpoint, text

from quickdraft.drafters.train.data import Corpus, Document
from quickdraft.drafters.train.kinds import KINDS, DraftTraining, Request
from quickdraft.drafters.train.loop import train
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.export.trained import Target, write_trained
from quickdraft.registry import lookup

torch.set_num_threads(1)  # of matrices this small, threads mostly wait for each other

_ALL = {"vocab_size": len(WORDS), "length": 64, "rows": 4, "keep": 16}
_AHEAD = {**_ALL, "heads": 3}
_ALONG = {**_ALL, "mlp_width": 32, "dtype": "float32"}
_STREAMS = {**_ALONG, "hidden_states": "0,2"}
_COMPACT = {**_ALL, "layers": 1, "width": 32, "head_dim": 32, "window": 32, "dtype": "float32"}

SIZES: Mapping[str, Mapping[str, Any]] = {
    "chimera": _ALONG,
    "clover": _ALONG,
    "compact": _COMPACT,
    "eagle": _STREAMS,
    "falcon": _STREAMS,
    "hydra": _AHEAD,
    "judge": {"length": 64, "rows": 4, "common": 24, "dtype": "float32"},
    "medusa": _AHEAD,
    "nested": {
        **{name: value for name, value in _ALL.items() if name != "keep"},
        **{"exits": "1,2", "width": 32, "head_dim": 32, "window": 32, "dtype": "float32"},
    },
}
"""Options by kind, for a model of this size."""


def corpus(count: int, seed: int) -> Corpus:
    documents = tuple(Document(text(60, seed + n), 4, n) for n in range(count))
    return Corpus(documents, 320, f"{seed}")


def prepared(kind: str, **options: Any) -> DraftTraining:
    target = Target.of(followers_checkpoint())
    given, cpu = {**SIZES[kind], **options}, torch.device("cpu")
    prepare = lookup("kind of draft", KINDS, kind)
    made: DraftTraining = prepare(Request(target, corpus(40, 0), corpus(6, 1000), given, 0, cpu))
    return made


@functools.cache
def trained(
    kind: str, steps: int, rate: float, **options: Any
) -> tuple[DraftTraining, Mapping[str, float]]:
    """A training that is done, and its last figures."""
    training = prepared(kind, **options)
    asked = training.loop(steps=steps, rate=rate, device="cpu", evaluations=1)
    outcome = train(training.trainee, asked)
    assert outcome.finished
    return training, outcome.history.held_out[-1].figures


@functools.cache
def trained_bundle(kind: str, steps: int, rate: float, **options: Any) -> Path:
    """The model, with the draft."""
    folder = lasting_folder("trained-")
    training, _ = trained(kind, steps, rate, **options)
    write_trained(
        folder / "draft.safetensors",
        kind=kind,
        target=followers_checkpoint().source.fingerprint,
        settings=training.settings,
        tensors=training.tensors(),
        card={"recipe": training.recipe},
    )
    export_checkpoint(
        followers_checkpoint(),
        folder / "bundle",
        weights="fp32",
        formats=("reference",),
        trained=[folder / "draft.safetensors"],
    )
    return folder / "bundle"
