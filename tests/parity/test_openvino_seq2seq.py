"""Encoder-decoder families on OpenVINO, both flavours: the reference's values within 1e-3, and the
answers of transformers."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quickdraft
from quickdraft.bundle import open_bundle
from quickdraft.drafters.tree import Tree
from quickdraft.export.pipeline import export_model
from quickdraft.kvcache.memory import Source
from quickdraft.runtime.backends.base import Seq2SeqBackend
from quickdraft.runtime.backends.opening import open_backend

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("openvino")

from tiny.seq2seq_families import SEQ2SEQ_CONFIGS, Seq2SeqOracle, save_seq2seq  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.openvino,
    pytest.mark.filterwarnings("ignore"),
]

FLAVOURS = ("openvino", "openvino-static")
TREE = Tree(np.array([9, 8, 7, 6, 5, 4, 11]), np.array([-1, 0, 0, 1, 1, 2, 5]))
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []

every = pytest.mark.parametrize("name", list(SEQ2SEQ_CONFIGS))
each = pytest.mark.parametrize("form", FLAVOURS)


@functools.cache
def checkpoint(name: str) -> tuple[Path, Seq2SeqOracle]:
    """The folder of a model, and the model."""
    _FOLDERS.append(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
    root = Path(_FOLDERS[-1].name)
    return root, save_seq2seq(name, root / "checkpoint")


@functools.cache
def exported(name: str, form: str) -> Path:
    root, _ = checkpoint(name)
    export_model(root / "checkpoint", root / form, weights="fp32", formats=(form,))
    return root / form


def opened(name: str, form: str) -> Any:
    bundle = open_bundle(exported(name, form))
    backend = open_backend(bundle.folder, bundle.manifest, form.partition("-")[0], None).backend
    assert isinstance(backend, Seq2SeqBackend)
    return backend


def source(backend: Any, seed: int, rows: int) -> Source:
    """A random one: tokens, or as many frames as the model reads."""
    rng, reads = np.random.default_rng(seed), backend.spec.source
    if reads.width:
        frames = reads.length if reads.fixed else rows
        return Source(features=rng.standard_normal((frames, reads.width)).astype(np.float32))
    return Source(tokens=rng.integers(3, backend.spec.vocab_size, rows))


@each
@every
def test_memories_steps_trees_and_commits(name: str, form: str) -> None:
    """Sources of one row, of fewer than a graph has, and of more than the narrowest has."""
    ours, theirs = opened(name, form), opened(name, "reference")
    for rows in (1, 23, 90):
        given = source(ours, rows, rows)
        memories = [each.encode(given) for each in (ours, theirs)]
        assert memories[0].rows == memories[1].rows
        for layer in range(ours.spec.num_layers):
            pairs = zip(*(memory.layer(layer) for memory in memories), strict=True)
            assert all(np.abs(a - b).max() <= 1e-3 for a, b in pairs)
        caches = [each.new_cache(m) for each, m in zip((ours, theirs), memories, strict=True)]
        random = np.random.default_rng(4)
        for count in (19, 3, 1):
            text = Tree.chain(random.integers(4, 300, count))
            for tree, path in ((text, range(count)), (TREE, [0, 2, 5, 6])):
                a, b = (
                    backend.step(tree, cache).logits
                    for backend, cache in zip((ours, theirs), caches, strict=True)
                )
                assert b.std() > 0.05
                assert np.abs(a - b).max() <= 1e-3
                for cache in caches:
                    cache.commit(list(path))


@each
@every
def test_answers_equal_those_of_transformers(name: str, form: str) -> None:
    """Plain and drafted, in one session, over sources of one row and of many."""
    _, oracle = checkpoint(name)
    with quickdraft.load(exported(name, form), drafter="recycling,prompt_lookup") as model:
        for rows in (1, 35):
            given = source(model, rows, rows)
            for drafts in (0, 5):
                found = model.generate(
                    given, max_new_tokens=16, temperature=0, num_draft_tokens=drafts
                )
                expected = tuple(oracle.generate(given, found.prompt_token_ids, 16))
                assert (*found.prompt_token_ids, *found.token_ids) == expected
