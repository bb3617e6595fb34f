"""Every encoder-decoder family against its published implementation, in float32, within 1e-4."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quickdraft.bundle import open_bundle
from quickdraft.drafters.tree import Tree
from quickdraft.export.pipeline import export_model
from quickdraft.kvcache.memory import Memory, Source
from quickdraft.runtime.backends.base import Seq2SeqBackend
from quickdraft.runtime.backends.opening import open_backend

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny.mu import Mu  # noqa: E402
from tiny.seq2seq_families import SEQ2SEQ_CONFIGS, Seq2SeqOracle, save_seq2seq  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

TOLERANCE = 1e-4
BACKENDS = {"reference": "reference", "onnxruntime": "onnx", "hotpath": "hotpath"}
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


@dataclass(frozen=True)
class Case:
    """A tiny model, opened, beside the model it must equal."""

    backend: Any
    oracle: Seq2SeqOracle

    def source(self, seed: int, length: int = 23) -> NDArray[Any]:
        """A random source: tokens, or as many frames as the model reads."""
        rng, spec = np.random.default_rng(seed), self.backend.spec
        if spec.source.width:
            frames = spec.source.length if spec.source.fixed else length
            return rng.normal(size=(frames, spec.source.width)).astype(np.float32)
        return rng.integers(3, spec.vocab_size, length)

    def memory(self, source: NDArray[Any]) -> Memory:
        """What its encoder makes of a source."""
        frames = source.dtype == np.float32
        return self.backend.encode(Source(**{"features" if frames else "tokens": source}))


@functools.cache
def case(name: str, backend: str) -> Case:
    """Saved, exported and opened once."""
    _FOLDERS.append(tempfile.TemporaryDirectory())
    root = Path(_FOLDERS[-1].name)
    oracle = save_seq2seq(name, root / "checkpoint")
    formats = (BACKENDS[backend],)
    export_model(root / "checkpoint", root / "bundle", weights="fp32", formats=formats)
    bundle = open_bundle(root / "bundle")
    options = {"kv_cache": "f32"} if backend == "hotpath" else {}
    opened = open_backend(bundle.folder, bundle.manifest, backend, None, **options)
    return Case(opened.backend, oracle)


each = pytest.mark.parametrize("backend", list(BACKENDS))
every = pytest.mark.parametrize("name", list(SEQ2SEQ_CONFIGS))


@each
@every
@pytest.mark.parametrize("length", [1, 23, 60])
def test_prefill_equals_the_published_model(name: str, backend: str, length: int) -> None:
    both = case(name, backend)
    assert isinstance(both.backend, Seq2SeqBackend)
    source = both.source(1, length)
    tokens = np.random.default_rng(2).integers(0, both.backend.spec.vocab_size, 14)
    cache = both.backend.new_cache(both.memory(source))
    found = both.backend.step(Tree.chain(tokens), cache).logits
    np.testing.assert_allclose(found, both.oracle.logits(source, tokens), atol=TOLERANCE)


@each
@every
def test_steps_trees_and_commits_equal_plain_texts(name: str, backend: str) -> None:
    both = case(name, backend)
    source = both.source(3)
    rng = np.random.default_rng(4)
    text = rng.integers(0, both.backend.spec.vocab_size, 9)
    cache = both.backend.new_cache(both.memory(source))
    for chunk in (text[:4], text[4:5]):
        both.backend.step(Tree.chain(chunk), cache)
        cache.commit(range(len(chunk)))
    text = text[:5]
    for _ in range(3):
        parent = np.array([-1, 0, 0, 1, 1, 2, 3])
        tree = Tree(rng.integers(0, both.backend.spec.vocab_size, len(parent)), parent)
        found = both.backend.step(tree, cache).logits
        for node in range(len(tree)):
            path = np.flatnonzero(tree.mask[node])
            whole = np.concatenate([text, tree.tokens[path]])
            wanted = both.oracle.logits(source, whole)[-1]
            np.testing.assert_allclose(found[node], wanted, atol=TOLERANCE)
        cache.commit([0, 1, 4])
        text = np.concatenate([text, tree.tokens[[0, 1, 4]]])
    twin = cache.fork()
    one = both.backend.step(Tree.chain(text[:1]), cache).logits
    other = both.backend.step(Tree.chain(text[:1]), twin).logits
    np.testing.assert_array_equal(one, other)


@every
def test_the_encoder_ends_in_the_states_of_the_published_one(name: str) -> None:
    both = case(name, "reference")
    source = both.source(5)
    memory = both.memory(source)
    states = both.oracle.states(source)
    assert memory.rows == len(states)
    for index, layer in enumerate(_cross_projections(both.oracle.model)):
        for found, project in zip(memory.layer(index), layer, strict=True):
            with torch.no_grad():
                wanted = project(torch.from_numpy(states)).numpy()
            np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=TOLERANCE)


def _cross_projections(model: Any) -> list[tuple[Any, Any]]:
    """Key and value projections of cross-attention, by layer."""
    if isinstance(model, Mu):
        blocks = [block.cross_attn for block in model.transformer["h"]]
        return [(each.k_linear, each.v_linear) for each in blocks]
    decoder = model.get_decoder()
    if hasattr(decoder, "block"):
        blocks = [block.layer[1].EncDecAttention for block in decoder.block]
        return [(each.k, each.v) for each in blocks]
    return [(each.encoder_attn.k_proj, each.encoder_attn.v_proj) for each in decoder.layers]
