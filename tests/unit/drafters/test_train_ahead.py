"""Medusa's and Hydra's heads learn a tiny language, and draft it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny.folders import lasting_folder
from tiny.followers import LIKELY, WORDS, followers_checkpoint, text

torch = pytest.importorskip("torch")

from quickdraft.drafters.train.data import Corpus, Document  # noqa: E402
from quickdraft.drafters.train.hydra import prepare_hydra  # noqa: E402
from quickdraft.drafters.train.kinds import DraftTraining, Request  # noqa: E402
from quickdraft.drafters.train.loop import train  # noqa: E402
from quickdraft.drafters.train.medusa import prepare_medusa  # noqa: E402
from quickdraft.errors import OptionError  # noqa: E402
from quickdraft.export.pipeline import export_checkpoint  # noqa: E402
from quickdraft.export.trained import Target, write_trained  # noqa: E402
from quickdraft.runtime.drafting import DraftingSetup  # noqa: E402
from quickdraft.runtime.model import Model  # noqa: E402

pytestmark = pytest.mark.torch

HEADS = 3
STEPS = 150
# Tokens of a greedy and of a drawn answer per step. Greedy, it is always the likelier word, and
# Hydra's heads know it: nearly every step brings a word of each and the target's own.
LEAST = {"medusa": (2.2, 1.2), "hydra": (0.9 * (HEADS + 1), 1.7)}
PREPARE = {"medusa": prepare_medusa, "hydra": prepare_hydra}


def corpus(count: int, seed: int) -> Corpus:
    documents = tuple(Document(text(60, seed + n), 4, n) for n in range(count))
    return Corpus(documents, 320, f"{seed}")


def prepared(kind: str, **options: Any) -> DraftTraining:
    target = Target.of(followers_checkpoint())
    sizes = {"heads": HEADS, "vocab_size": len(WORDS), "length": 64, "rows": 4, "keep": 16}
    given: Mapping[str, Any] = {**sizes, **options}
    cpu = torch.device("cpu")
    return PREPARE[kind](Request(target, corpus(40, 0), corpus(6, 1000), given, 0, cpu))


@functools.cache
def trained(kind: str) -> tuple[DraftTraining, Mapping[str, float]]:
    """A training that is done, and its last figures."""
    training = prepared(kind)
    options = training.loop(steps=STEPS, rate=0.03, device="cpu", evaluations=1)
    outcome = train(training.trainee, options)
    assert outcome.finished
    return training, outcome.history.held_out[-1].figures


@functools.cache
def bundle(kind: str) -> Path:
    folder = lasting_folder("ahead-")
    training, _ = trained(kind)
    write_trained(
        folder / "heads.safetensors",
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
        trained=[folder / "heads.safetensors"],
    )
    return folder / "bundle"


def test_heads_learn_what_they_can_know() -> None:
    """Hydra's know the word before, which says all; Medusa's know an earlier one."""
    (_, blind), (_, seeing) = trained("medusa"), trained("hydra")
    for head in range(1, HEADS + 1):
        assert seeing[f"agree.{head}"] > 0.95
    assert LIKELY - 0.1 < blind["agree.1"] < LIKELY + 0.1
    assert blind["agree.1"] > blind["agree.2"] - 0.02
    assert seeing["tokens_per_step"] > 1.1 * blind["tokens_per_step"]
    # Where the first two words are drawn, both are right this often, and so on.
    whole = 1 + LIKELY + LIKELY**2 + LIKELY**3
    assert seeing["tokens_per_step"] == pytest.approx(whole, abs=0.2)


@pytest.mark.parametrize("kind", ["medusa", "hydra"])
def test_untrained_heads_learn(kind: str) -> None:
    before = prepared(kind).trainee.evaluate()
    assert before["agree.1"] < 0.2
    assert trained(kind)[1]["agree.1"] > before["agree.1"] + 0.3


@pytest.mark.parametrize("kind", ["medusa", "hydra"])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 5}], ids=["greedy", "drawn"])
def test_they_draft_the_language(kind: str, options: dict[str, Any]) -> None:
    from quickdraft.bundle import open_bundle

    opened = open_bundle(bundle(kind))
    prompt = text(12, 77).tolist()
    with Model.open(
        opened.folder,
        manifest=opened.manifest,
        backend="reference",
        drafting=DraftingSetup(kind, store=False),
    ) as model:
        asked = {"max_new_tokens": 60, "ignore_eos": True, **options}
        drafted = model.generate(prompt, num_draft_tokens=6, **asked)
        assert all(token in WORDS for token in drafted.token_ids)
        per_step = (drafted.timings.predicted_n - 1) / drafted.timings.steps
        assert per_step > LEAST[kind][bool(options)]
        if not options:
            plain = model.generate(prompt, num_draft_tokens=0, **asked)
            assert drafted.token_ids == plain.token_ids


@pytest.mark.parametrize("kind", ["medusa", "hydra"])
def test_the_same_seed_gives_the_same_heads(kind: str) -> None:
    made = []
    for _ in range(2):
        training = prepared(kind)
        train(training.trainee, training.loop(steps=3, rate=0.03, device="cpu"))
        made.append(training.tensors())
    assert made[0].keys() == made[1].keys()
    for name, values in made[0].items():
        assert np.array_equal(values, made[1][name])


def test_answers_alone_count() -> None:
    """Rows whose next word the target did not choose are left out."""
    training = prepared("medusa")
    module: Any = training.trainee.module
    batch = training.trainee.batch(0)
    rows = module._rows(batch)
    documents, answer = batch["documents"].numpy(), batch["answer"].numpy()
    for head in range(1, HEADS + 1):
        expected = sum(
            documents[row, at] > 0
            and at + head + 1 < documents.shape[1]
            and documents[row, at + head + 1] == documents[row, at]
            and answer[row, at + 1]
            and answer[row, at + head + 1]
            for row, at in np.ndindex(documents.shape)
        )
        assert int(rows.counts[head - 1].sum()) == expected
    batch["answer"][:] = False
    loss, _ = module(batch)
    assert loss.item() == 0


def test_options_are_checked() -> None:
    with pytest.raises(OptionError, match="heads"):
        prepared("hydra", heads=0)
    with pytest.raises(OptionError, match="no option 'depth'"):
        prepared("medusa", depth=3)
