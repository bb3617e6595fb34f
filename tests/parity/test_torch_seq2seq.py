"""The trainable emitter on encoder-decoder models: the reference's values, batches, gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiny.seq2seq_configs import SEQ2SEQ_CONFIGS, family_request  # noqa: E402
from tiny.seq2seq_models import request  # noqa: E402

from quickdraft.drafters.tree import Tree  # noqa: E402
from quickdraft.export.emitters.base import EmitRequest  # noqa: E402
from quickdraft.export.emitters.numpy import emit_reference  # noqa: E402
from quickdraft.export.emitters.torch import TorchMemory, TorchModel  # noqa: E402
from quickdraft.kvcache.memory import Source  # noqa: E402
from quickdraft.runtime.backends.reference import ReferenceBackend  # noqa: E402

pytestmark = pytest.mark.torch

TREE = Tree(np.array([9, 8, 7, 6, 5, 4, 11]), np.array([-1, 0, 0, 1, 1, 2, 5]))


def modules(asked: EmitRequest, train: str = "") -> tuple[TorchModel, TorchModel]:
    """Target and encoder. train: what the names of trained weights hold."""
    target, encoder = asked.parts
    reads = target.spec.source
    assert reads is not None
    wanted = (lambda name: train in name) if train else (lambda name: False)
    return TorchModel(target.build, train=wanted), TorchModel(
        encoder.build, features=encoder.features, stride=reads.stride, train=wanted
    )


def given(asked: EmitRequest, rows: int, seed: int = 0) -> Source:
    reads, random = asked.parts[0].spec.source, np.random.default_rng(seed)
    assert reads is not None
    if reads.width:
        frames = reads.length if reads.fixed else rows
        return Source(features=random.standard_normal((frames, reads.width)).astype(np.float32))
    return Source(tokens=random.integers(3, 96, rows))


def batch(*sources: Source) -> dict[str, torch.Tensor]:
    """Inputs of an encoder, tokens filled up with zeros."""
    if sources[0].features is not None:
        return {"features": torch.tensor(np.stack([each.features for each in sources]))}
    most = max(len(each) for each in sources)
    return {
        "tokens": torch.tensor(
            np.stack([np.pad(each.tokens, (0, most - len(each))) for each in sources])
        )
    }


@pytest.mark.parametrize("name", [*SEQ2SEQ_CONFIGS, "frames"])
def test_like_the_reference(name: str, tmp_path: Path) -> None:
    """Memories, a prompt, and a tree over it."""
    if name == "frames":  # grouped heads, and any number of frames
        asked = request(name, "fp32", tmp_path)
    else:
        asked = family_request(name, "fp32", tmp_path)
    target, encoder = modules(asked)
    variants = emit_reference(asked)
    spec = asked.parts[0].spec
    theirs = ReferenceBackend(tmp_path, spec, variants[0], encoder=variants[1])
    source = given(asked, 37)
    expected = theirs.encode(source)
    with torch.no_grad():
        memory = TorchMemory.of(encoder(**batch(source)).staged)
        for layer, parts in memory.layers.items():
            for mine, other in zip(parts, expected.layer(layer), strict=True):
                np.testing.assert_allclose(mine[0].reshape(other.shape), other, atol=1e-4)
        cache, text = theirs.new_cache(expected), np.random.default_rng(1).integers(4, 96, 13)
        first = target(torch.tensor(text)[None], past=memory)
        assert first.logits is not None
        found = theirs.step(Tree.chain(text), cache).logits
        np.testing.assert_allclose(first.logits[0], found, atol=1e-4)
        cache.commit(range(len(text)))
        tree = target(
            torch.tensor(TREE.tokens)[None],
            positions=torch.tensor(len(text) + TREE.depth),
            mask=torch.tensor(TREE.mask),
            past=first.present,
        )
        assert tree.logits is not None
        found = theirs.step(TREE, cache).logits
        np.testing.assert_allclose(tree.logits[0], found, atol=1e-4)


@pytest.mark.parametrize("name", ["t5-v1.1", "bart"])
def test_sources_of_a_batch_do_not_see_what_fills_them_up(name: str, tmp_path: Path) -> None:
    asked = family_request(name, "fp32", tmp_path)
    target, encoder = modules(asked)
    sources = [given(asked, rows, rows) for rows in (5, 12)]
    filled = torch.arange(12)[None] < torch.tensor([5, 12])[:, None]
    text = torch.tensor([[7, 8, 9], [6, 5, 4]])
    with torch.no_grad():
        seen = filled[:, None].expand(-1, 12, -1)
        memory = TorchMemory.of(encoder(**batch(*sources), mask=seen).staged, filled)
        together = target(text, past=memory).logits
        for row, source in enumerate(sources):
            alone = TorchMemory.of(encoder(**batch(source)).staged)
            found = target(text[row : row + 1], past=alone).logits
            torch.testing.assert_close(together[row : row + 1], found, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SEQ2SEQ_CONFIGS)
def test_gradients_reach_every_weight(name: str, tmp_path: Path) -> None:
    """Through the memory into the encoder, and into the tables of relative positions."""
    asked = family_request(name, "fp32", tmp_path)
    target, encoder = modules(asked, ".")
    memory = TorchMemory.of(encoder(**batch(given(asked, 9))).staged)
    output = target(torch.tensor([[7, 8, 9, 11]]), past=memory)
    assert output.logits is not None
    output.logits.square().mean().backward()
    for model in (target, encoder):
        for weight, values in model.trained_weights():
            assert values.grad is not None, weight
            assert torch.isfinite(values.grad).all(), weight
            # A bias of keys moves all scores of a row alike, and so no weight.
            moved = bool(values.grad.abs().max() > 0)
            assert moved or weight.endswith(("k_proj.bias", "k_linear.bias")), weight


def test_a_target_asks_for_its_memory(tmp_path: Path) -> None:
    target, _ = modules(family_request("bart", "fp32", tmp_path))
    with pytest.raises(ValueError, match="attends to a memory, and was called without"):
        target(torch.tensor([[7, 8]]))
