"""Static OpenVINO graphs in shapes that were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny.checkpoint import tiny_checkpoint

from quickdraft.bundle import open_bundle
from quickdraft.drafters.tree import Tree
from quickdraft.errors import OptionError
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.registry import BACKENDS, lookup
from quickdraft.static_shapes import StaticShapes

pytestmark = pytest.mark.openvino


def test_other_shapes_give_the_same_answer(tmp_path: Path) -> None:
    """Asked-for widths, prefill and cache: a prompt and a tree wider than all of them."""
    checkpoint = tiny_checkpoint("llama", max_position_embeddings=512)
    shapes = StaticShapes((1, 6), 20, 200)
    found = []
    wanted: tuple[tuple[str, dict[str, Any]], ...] = (
        ("openvino-static", {"shapes": shapes}),
        ("reference", {}),
    )
    for form, more in wanted:
        export_checkpoint(checkpoint, tmp_path / form, weights="fp32", formats=[form], **more)
        manifest = open_bundle(tmp_path / form).manifest
        kind = lookup("backend", BACKENDS, form.partition("-")[0])
        model = kind(tmp_path / form, manifest.model, manifest.roles["target"][0])
        cache = model.new_cache()
        model.step(Tree.chain(np.arange(150)), cache, np.array([149]))
        cache.commit(range(150))
        tree = Tree(np.arange(30), np.array([-1, *[0] * 10, *range(1, 20)]))
        found.append(model.step(tree, cache).logits.copy())
        if form != "reference":
            assert model.widths == (1, 6, 20)
            assert model.spec.context_length >= 200
    assert np.abs(found[0] - found[1]).max() <= 1e-3
    with pytest.raises(OptionError, match=r"cache_length is 600, and the context .* has 512"):
        export_checkpoint(
            checkpoint,
            tmp_path / "c",
            formats=["openvino-static"],
            shapes=StaticShapes(cache_length=600),
        )
    assert not (tmp_path / "c").exists()
