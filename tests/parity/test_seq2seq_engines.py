"""Answers of encoder-decoder models by the fast backends: greedy equals transformers' generate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import quickdraft
from quickdraft.export.pipeline import export_model
from quickdraft.kvcache.memory import Source

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny.seq2seq_families import SEQ2SEQ_CONFIGS, save_seq2seq  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

NEW = 16
BACKENDS = {"onnxruntime": "f32", "hotpath": "f32"}


@pytest.mark.native
@pytest.mark.parametrize("name", list(SEQ2SEQ_CONFIGS))
def test_greedy_answers_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Plain and drafted, over sources of one row and of many."""
    oracle = save_seq2seq(name, tmp_path / "checkpoint")
    bundle = tmp_path / "bundle"
    export_model(tmp_path / "checkpoint", bundle, weights="fp32", formats=("hotpath", "onnx"))
    random = np.random.default_rng(1)
    for backend, kv_cache in BACKENDS.items():
        with quickdraft.load(
            bundle, backend=backend, kv_cache=kv_cache, drafter="recycling,prompt_lookup"
        ) as model:
            reads = model.spec.source
            assert reads is not None
            for rows in (1, 35):
                if reads.width:
                    frames = reads.length if reads.fixed else rows
                    values = random.standard_normal((frames, reads.width)).astype(np.float32)
                    source = Source(features=values)
                else:
                    source = Source(tokens=random.integers(4, model.spec.vocab_size, rows))
                for drafts in (0, 5):
                    found = model.generate(
                        source, max_new_tokens=NEW, temperature=0, num_draft_tokens=drafts
                    )
                    expected = tuple(oracle.generate(source, found.prompt_token_ids, NEW))
                    assert (*found.prompt_token_ids, *found.token_ids) == expected, backend
