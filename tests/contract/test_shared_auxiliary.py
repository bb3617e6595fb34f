"""The auxiliary drafts on from the cache that a prediction left: the same proposals, and the prompt
is read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny.checkpoint import tiny_checkpoint

import quickdraft
from quickdraft import strict_json
from quickdraft.drafters.small_model import SmallModel
from quickdraft.drafters.train.own_maps import copied_maps, own_maps
from quickdraft.export.layer_maps import pruned_sources
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.export.prediction import PredictionSettings, Pruned
from quickdraft.export.trained import Target, write_trained
from quickdraft.runtime.heads import BackendHead

LAYERS = 5
KEEP = (0, 2, 3)
FORMATS = {"reference": "reference", "onnxruntime": "onnx", "hotpath": "hotpath"}
BACKENDS = [pytest.param(b, marks=pytest.mark.native if b == "hotpath" else ()) for b in FORMATS]
PROMPT = [int(token) for token in np.random.default_rng(0).integers(4, 300, 290)]
"""Longer than a chunk of a prediction."""


def bundle_of(folder: Path, backend: str, features: str = "hidden", first: int = 2) -> str:
    """A target with the predictors `whole` and `part`, which differ in nothing else."""
    made = tiny_checkpoint(num_hidden_layers=LAYERS)
    target = Target.of(made)
    sources = pruned_sources(features, LAYERS, KEEP, len(KEEP) - 1)
    files = []
    for name in ("whole", "part"):
        settings = PredictionSettings(
            name, Pruned("pruned", KEEP), features, sources, first, "none", name == "whole"
        )
        is_stream = features == "hidden"
        spec = target.spec
        maps = own_maps(target, sources) if is_stream else copied_maps(spec, spec, sources)
        files.append(folder / f"{name}.safetensors")
        write_trained(
            files[-1],
            kind="predictor",
            target=made.source.fingerprint,
            settings=strict_json.encode(settings),
            tensors=maps,
            card={"seconds": 1.0},
            int8=False,
        )
    export_checkpoint(
        made, folder / "b", weights="fp32", formats=(FORMATS[backend],), trained=files
    )
    return str(folder / "b")


class Watch:
    """What the auxiliary proposed, and how many rows it ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drafts: list[tuple[list[int], list[int], list[int]]] = []
        self.rows: list[int] = []
        propose, logits = SmallModel.propose, BackendHead.logits

        def watched(drafter: SmallModel, budget: int) -> Any:
            draft = propose(drafter, budget)
            if draft is not None:
                tree = draft.tree
                told = (tree.tokens.tolist(), tree.parent.tolist(), list(draft.grades))
                self.drafts.append(told)
            return draft

        def counted(head: BackendHead, tree: Any, cache: Any, rows: Any) -> Any:
            self.rows.append(len(tree))
            return logits(head, tree, cache, rows)

        monkeypatch.setattr(SmallModel, "propose", watched)
        monkeypatch.setattr(BackendHead, "logits", counted)

    def take(self) -> tuple[list[Any], list[int]]:
        """What was seen since the last time."""
        found = self.drafts, self.rows
        self.drafts, self.rows = [], []
        return found


@pytest.mark.parametrize("features", ["hidden", "kv"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_proposals_and_the_prompt_is_read_once(
    backend: str, features: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, watch = bundle_of(tmp_path, backend, features), Watch(monkeypatch)
    found = {}
    for name in ("whole", "part"):
        options = {"auxiliary": {"part": f"auxiliary-{name}", "stop_below": 0.0}}
        with quickdraft.load(
            folder, backend=backend, drafter="auxiliary", drafter_options=options, store=False
        ) as model:
            session = model.session()
            how: dict[str, Any] = {"max_new_tokens": 12, "num_draft_tokens": 4, "ignore_eos": True}
            how["prefill"] = f"predicted@predictor-{name}"
            answer = model.generate(PROMPT, session=session, **how)
            first = watch.take()
            longer = [*PROMPT, *answer.token_ids, 7, 8, 9]
            more = model.generate(longer, session=session, **how)
            found[name] = (answer.token_ids, more.token_ids, first, watch.take())
    whole, part = found["whole"], found["part"]
    assert whole[0] == part[0]
    assert whole[1] == part[1]
    assert whole[2][0] == part[2][0]
    assert len(whole[2][0]) > 2
    assert whole[3] == part[3]
    assert sum(part[2][1]) - sum(whole[2][1]) == len(PROMPT) - 1
    assert max(whole[2][1]) < 10


def test_another_auxiliary_reads_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, watch = bundle_of(tmp_path, "reference"), Watch(monkeypatch)
    options = {"auxiliary": {"part": "auxiliary-part"}}
    with quickdraft.load(
        folder, backend="reference", drafter="auxiliary", drafter_options=options, store=False
    ) as model:
        model.generate(
            PROMPT, max_new_tokens=4, num_draft_tokens=2, prefill="predicted@predictor-whole"
        )
    assert sum(watch.take()[1]) >= len(PROMPT)


@pytest.mark.parametrize("kv_cache", ["f32", "int8"])
@pytest.mark.native
def test_a_cache_of_another_type_is_not_taken(
    kv_cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The predictor's has that of the target, the drafter's its own."""
    folder, watch = bundle_of(tmp_path, "hotpath"), Watch(monkeypatch)
    options = {"auxiliary": {"part": "auxiliary-whole"}}
    with quickdraft.load(
        folder,
        backend="hotpath",
        drafter="auxiliary",
        drafter_options=options,
        store=False,
        kv_cache=kv_cache,
    ) as model:
        how: dict[str, Any] = {"max_new_tokens": 6, "num_draft_tokens": 2, "ignore_eos": True}
        early = model.generate(PROMPT, prefill="predicted@predictor-whole", **how)
    assert len(early.token_ids) == 6
    assert sum(watch.take()[1]) >= len(PROMPT)
