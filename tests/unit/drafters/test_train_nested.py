"""A nested draft learns a tiny language, and asks its later exits only where they are needed."""

from __future__ import annotations

import pytest
from tiny.followers import LIKELY, text

torch = pytest.importorskip("torch")

from tiny.trained_heads import prepared, trained, trained_bundle  # noqa: E402

from quickdraft.bundle import open_bundle  # noqa: E402
from quickdraft.errors import OptionError  # noqa: E402
from quickdraft.runtime.drafting import DraftingSetup  # noqa: E402
from quickdraft.runtime.model import Model  # noqa: E402

pytestmark = pytest.mark.torch

STEPS, RATE = 120, 0.003


def test_every_exit_learns_the_language() -> None:
    """The first one has all it needs: what follows a word is decided by that word."""
    before = prepared("nested").trainee.evaluate()
    _, figures = trained("nested", STEPS, RATE)
    for number in (1, 2):
        assert before[f"loss.{number}"] > figures[f"loss.{number}"] + 0.05
        assert figures[f"accepted.{number}"] == pytest.approx(LIKELY, abs=0.1)
        assert figures[f"loss.{number}"] < 0.8, "0.67 is all that can be known"
    assert figures["loss.2"] < figures["loss.1"] + 0.03
    assert figures["accepted"] == pytest.approx(LIKELY, abs=0.1)
    assert figures["tokens_per_step"] > 1 + LIKELY
    # It is as sure as the language is, which is more than a half: one layer of two does.
    assert figures["layers"] <= 0.75 * 2
    always, _ = trained("nested", STEPS, RATE, sure=1.0)
    whole = always.trainee.evaluate()
    assert whole["layers"] == 2
    assert figures["tokens_per_step"] > 0.95 * whole["tokens_per_step"]


@pytest.mark.parametrize("sure", ["0.5", "1.0"])
def test_it_drafts_the_language(sure: str) -> None:
    opened = open_bundle(trained_bundle("nested", STEPS, RATE))
    setup = DraftingSetup("nested", {"nested": {"sure": sure}}, store=False)
    with Model.open(
        opened.folder, manifest=opened.manifest, backend="reference", drafting=setup
    ) as model:
        for options in ({}, {"temperature": 1.0, "seed": 5}):
            asked = {"max_new_tokens": 60, "ignore_eos": True, **options}
            plain = model.generate(text(12, 77).tolist(), num_draft_tokens=0, **asked)
            drafted = model.generate(text(12, 77).tolist(), num_draft_tokens=6, **asked)
            if not options:
                assert drafted.token_ids == plain.token_ids
                assert 60 / len(drafted.steps) > 2.2
            else:
                assert drafted.guarantee == "same_distribution"
                assert drafted.timings.draft_n_accepted > 0


@pytest.mark.parametrize("exits", ["", "2,1", "0,1", "1,17", "a"])
def test_exits_that_cannot_be(exits: str) -> None:
    with pytest.raises(OptionError, match="exits of drafter nested"):
        prepared("nested", exits=exits)
