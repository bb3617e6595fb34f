"""Trained parts say the same in every form, and drafting with them changes no answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny.native import needs_native
from tiny.random_heads import KINDS, TOKENS, bundle, parts_of, target_of, write_head
from tiny.toy_backend import top_tokens

from quickdraft.drafters.base import HeadOutput
from quickdraft.drafters.tree import Tree
from quickdraft.errors import CheckpointError
from quickdraft.export.emitters.base import Part
from quickdraft.export.trained import read_trained
from quickdraft.runtime.backends.opening import open_backend
from quickdraft.runtime.drafting import DraftingSetup
from quickdraft.runtime.heads import open_head
from quickdraft.runtime.model import Model

OTHERS = ["onnxruntime", pytest.param("hotpath", marks=needs_native)]
BACKENDS = ["reference", *OTHERS]
PARTS = [(kind, at) for kind in KINDS for at in range(len(parts_of(kind, "llama")))]
CHUNKS = ([300, 5, 17], [21, 4])
BRANCHES = Tree(np.array([7, 8, 9, 10]), np.array([-1, -1, 0, 0]))


def features_of(part: Part, rows: int) -> NDArray[np.float32]:
    values = np.random.default_rng(rows).standard_normal((rows, part.features))
    return (3 * values).astype(np.float32)


def several(part: Part) -> int:
    """Logits of a row."""
    return int(part.details.get("block", 1))


def run(kind: str, at: int, family: str, backend: str) -> list[HeadOutput]:
    """Two chunks of a chain, and a tree."""
    folder, manifest = bundle(kind, family)
    part = parts_of(kind, family)[at]
    target = open_backend(folder, manifest, backend, None).backend
    head = open_head(folder, manifest, target, None, part.name)
    cache, outputs = head.new_cache(), []

    def step(tree: Tree, rows: range) -> HeadOutput:
        if part.features:
            return head.step(tree, cache, features_of(part, len(tree)), rows)
        logits, states = head.whole(tree, cache, None, rows)
        top = top_tokens(logits, 16)
        return HeadOutput(top.ids, top.values - top.log_sum[:, None], states)

    for tokens in CHUNKS:
        count = len(tokens)
        rows = range(count - 1, several(part) * count, count)
        said = step(Tree.chain(tokens), rows)
        outputs.append(HeadOutput(*(each.copy() for each in said)))
        cache.commit(range(count))
    rows = range(1, 4 * several(part))
    outputs.append(step(BRANCHES, rows))
    target.close()
    return outputs


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize(("kind", "at"), PARTS)
def test_all_forms_agree(kind: str, at: int, family: str, backend: str) -> None:
    """Keys and values of the hot path are float16."""
    tolerance = 1e-4 if backend == "onnxruntime" else 2e-3
    twins = run(kind, at, family, "reference")
    for found, twin in zip(run(kind, at, family, backend), twins, strict=True):
        assert found.log_probs.shape == twin.log_probs.shape
        assert found.log_probs == pytest.approx(twin.log_probs, abs=10 * tolerance)
        clear = np.abs(np.diff(twin.log_probs, axis=1)).min(axis=1) > 20 * tolerance
        assert (found.ids[clear] == twin.ids[clear]).all()
        assert np.isin(found.ids, TOKENS).all()
        scale = float(np.abs(twin.states).max())
        assert found.states == pytest.approx(twin.states, abs=tolerance * scale)


@pytest.mark.torch
@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize(("kind", "at"), PARTS)
def test_the_trained_form_agrees(kind: str, at: int, family: str) -> None:
    torch = pytest.importorskip("torch")
    from quickdraft.export.emitters.torch import TorchModel

    part = parts_of(kind, family)[at]
    model = TorchModel(part.build, features=part.features)
    first, second, _ = run(kind, at, family, "reference")
    told = np.concatenate([features_of(part, len(chunk)) for chunk in CHUNKS])
    features = torch.from_numpy(told)[None] if part.features else None
    tokens = [token for chunk in CHUNKS for token in chunk]
    with torch.no_grad():
        output = model(
            torch.tensor([tokens]), features=features,
            hidden_states=part.hidden_states,
        )  # fmt: skip
    states = np.concatenate([output.hidden_states[k][0].numpy() for k in part.hidden_states], 1)
    twins = np.concatenate([first.states, second.states])
    assert states == pytest.approx(twins, rel=1e-3, abs=1e-3)
    sure = torch.log_softmax(output.logits[0], -1).numpy()
    assert part.token_map is not None
    column = {int(token): place for place, token in enumerate(part.token_map.dense())}
    for row, (ids, log_probs) in enumerate(zip(second.ids, second.log_probs, strict=True)):
        places = [column[token] for token in ids.tolist()]
        found = sure[len(tokens) * (row + 1) - 1][places]
        assert found == pytest.approx(log_probs, abs=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 3}], ids=["greedy", "drawn"])
@pytest.mark.parametrize("kind", KINDS)
def test_they_change_no_answer(kind: str, backend: str, options: dict[str, Any]) -> None:
    folder, manifest = bundle(kind, "llama")
    part = str(KINDS[kind].settings["name"])
    given: dict[str, Any] = {"stop_below": 0.0, "part": part}
    if kind == "nested":
        given["method"] = "tree"  # what is drawn changes which random numbers decide
    drafting = DraftingSetup(kind, {kind: given}, store=False)
    with Model.open(folder, manifest=manifest, backend=backend, drafting=drafting) as model:
        asked = {"max_new_tokens": 24, "ignore_eos": True, "prefill_chunk_size": 5, **options}
        session = model.session()
        prompt = list(range(40, 57))
        for _ in range(2):
            plain = model.generate(prompt, num_draft_tokens=0, **asked)
            drafted = model.generate(prompt, num_draft_tokens=5, session=session, **asked)
            assert drafted.token_ids == plain.token_ids
            assert sum(step.drafted for step in drafted.steps) > 20
            prompt = [*prompt, *drafted.token_ids, 60, 61]


BAD = [(kind, *bad) for kind, each in KINDS.items() for bad in each.limits]
ALWAYS: list[tuple[dict[str, Any], str]] = [({"extra": 1}, "settings"), ({"name": 3}, "name")]


@pytest.mark.parametrize(
    ("kind", "changes", "match"), [*BAD, *((kind, *bad) for kind in KINDS for bad in ALWAYS)]
)
def test_files_that_do_not_fit(
    kind: str, changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    file = write_head(tmp_path / "head.safetensors", kind, "llama", **changes)
    with pytest.raises(CheckpointError, match=match):
        KINDS[kind].attach(read_trained(file), target_of("llama"))
