"""Answers of encoder-decoder models: greedy equals transformers' generate, drafted equals plain."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quickdraft
from quickdraft.export.pipeline import export_model
from quickdraft.kvcache.memory import Source

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny.seq2seq_families import SEQ2SEQ_CONFIGS, Seq2SeqOracle, save_seq2seq  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

NEW = 24
OPENINGS = {"mbart-forced": (2, 5), "whisper-suppressed": (2, 6, 8)}
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def opened(name: str, drafter: str) -> tuple[Any, Seq2SeqOracle]:
    """A tiny model, exported and loaded, and its oracle."""
    _FOLDERS.append(tempfile.TemporaryDirectory())
    root = Path(_FOLDERS[-1].name)
    oracle = save_seq2seq(name, root / "checkpoint")
    export_model(root / "checkpoint", root / "bundle", weights="fp32", formats=("reference",))
    return quickdraft.load(root / "bundle", drafter=drafter), oracle


def sources(name: str, count: int) -> list[Source]:
    """Random sources of a model."""
    model, _ = opened(name, "none")
    rng, spec = np.random.default_rng(0), model.spec
    found = []
    for length in rng.integers(1, 40, count):
        if spec.source.width:
            frames = spec.source.length if spec.source.fixed else length
            features = rng.normal(size=(frames, spec.source.width)).astype(np.float32)
            found.append(Source(features=features))
        else:
            found.append(Source(tokens=rng.integers(4, spec.vocab_size, length)))
    return found


@pytest.mark.parametrize("name", list(SEQ2SEQ_CONFIGS))
def test_greedy_answers_equal_those_of_transformers(name: str) -> None:
    model, oracle = opened(name, "none")
    for source in sources(name, 6):
        result = model.generate(source, max_new_tokens=NEW, temperature=0)
        opening = result.prompt_token_ids
        assert opening == OPENINGS.get(name, opening[:1])
        wanted = oracle.generate(source, opening, NEW)
        assert (*opening, *result.token_ids) == tuple(wanted)


@pytest.mark.parametrize("name", list(SEQ2SEQ_CONFIGS))
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 0.8, "seed": 3}])
def test_drafted_answers_equal_plain_ones(name: str, options: dict[str, Any]) -> None:
    model, _ = opened(name, "recycling,prompt_lookup")
    for source in sources(name, 3):
        session = model.session()
        plain = model.generate(source, max_new_tokens=NEW, num_draft_tokens=0, **options)
        for _ in range(2):
            drafted = model.generate(
                source, max_new_tokens=NEW, num_draft_tokens=5, session=session, **options
            )
            if not options["temperature"]:
                assert drafted.token_ids == plain.token_ids
        assert sum(step.drafted for step in drafted.steps) > 0
