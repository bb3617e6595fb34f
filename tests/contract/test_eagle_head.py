"""An eagle head says the same in every form, and drafting with it changes no answer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny.checkpoint import tiny_checkpoint
from tiny.folders import lasting_folder
from tiny.native import needs_native

from quickdraft.drafters.base import HeadOutput
from quickdraft.drafters.tree import Tree
from quickdraft.errors import CheckpointError, InputError, OptionError
from quickdraft.export.heads.eagle import EagleSettings, eagle_part, initial_weights
from quickdraft.export.heads.parts import as_weights
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.export.trained import Target, write_trained
from quickdraft.manifest import Manifest
from quickdraft.runtime.backends.opening import open_backend
from quickdraft.runtime.drafting import AUTO, DraftingSetup
from quickdraft.runtime.heads import open_head
from quickdraft.runtime.model import Model

VOCAB = 96
TOKENS = np.sort(np.random.default_rng(3).permutation(320)[:VOCAB]).astype(np.int32)
SETTINGS = EagleSettings((1, 2), mlp_width=64, vocab_size=VOCAB, sampling_width=32)
FORMATS = {"reference": "reference", "onnxruntime": "onnx", "hotpath": "hotpath"}
BACKENDS = ["reference", "onnxruntime", pytest.param("hotpath", marks=needs_native)]
OTHERS = BACKENDS[1:]

Floats = NDArray[np.float32]


def write_head(file: Path, family: str, **changes: Any) -> Path:
    checkpoint = tiny_checkpoint(family)
    settings = {**vars(SETTINGS), "hidden_states": [1, 2], **changes}
    write_trained(
        file,
        kind="eagle",
        target=checkpoint.source.fingerprint,
        settings=settings,
        tensors=tensors(family),
        card={},
        int8=False,
    )
    return file


def tensors(family: str) -> dict[str, NDArray[Any]]:
    made = initial_weights(Target.of(tiny_checkpoint(family)), SETTINGS, TOKENS, seed=5)
    rng = np.random.default_rng(7)
    for name in ("output", "down", "sampling_down", "features_norm"):  # nothing is left out by 0
        made[name] = made[name] + 0.2 * rng.standard_normal(made[name].shape).astype(np.float32)
    return made


@functools.cache
def bundle(family: str) -> tuple[Path, Manifest]:
    """A tiny model with a random head, in every form."""
    folder = lasting_folder("eagle-")
    manifest = export_checkpoint(
        tiny_checkpoint(family),
        folder / "bundle",
        weights="fp32",
        formats=tuple(FORMATS.values()),
        trained=[write_head(folder / "head.safetensors", family)],
    )
    return folder / "bundle", manifest


def features_of(rows: int, told: bool) -> Floats:
    """Of the target, or its own."""
    features = np.zeros((rows, 96), np.float32)
    values = np.random.default_rng(rows).standard_normal(features.shape).astype(np.float32)
    part = slice(0, 64) if told else slice(64, 96)
    features[:, part] = 5 * values[:, part]
    return features


def run(family: str, backend: str) -> list[HeadOutput]:
    """Rows of the target, more of them, and a tree of its own."""
    folder, manifest = bundle(family)
    target = open_backend(folder, manifest, backend, None).backend
    head = open_head(folder, manifest, target, None, "eagle")
    cache = head.new_cache()
    outputs = []
    for tokens in ([300, 5, 17], [21, 4]):
        rows = len(tokens)
        said = head.step(Tree.chain(tokens), cache, features_of(rows, True), [rows - 1])
        outputs.append(HeadOutput(*(part.copy() for part in said)))
        cache.commit(range(rows))
    tree = Tree(np.array([7, 8, 9, 10]), np.array([-1, -1, 0, 0]))
    outputs.append(head.step(tree, cache, features_of(4, False), [1, 2, 3]))
    target.close()
    return outputs


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_all_forms_agree(family: str, backend: str) -> None:
    """Keys and values of the hot path are float16."""
    tolerance = 1e-4 if backend == "onnxruntime" else 2e-3
    for found, twin in zip(run(family, backend), run(family, "reference"), strict=True):
        assert found.log_probs.shape == twin.log_probs.shape
        assert found.log_probs == pytest.approx(twin.log_probs, abs=10 * tolerance)
        clear = np.abs(np.diff(twin.log_probs, axis=1)).min(axis=1) > 20 * tolerance
        assert (found.ids[clear] == twin.ids[clear]).all()
        assert np.isin(found.ids, TOKENS).all()
        scale = float(np.abs(twin.states).max())
        assert found.states == pytest.approx(twin.states, abs=tolerance * scale)


@pytest.mark.torch
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_trained_form_agrees(family: str) -> None:
    torch = pytest.importorskip("torch")
    from quickdraft.export.emitters.torch import TorchModel

    part = eagle_part(Target.of(tiny_checkpoint(family)), SETTINGS, as_weights(tensors(family)))
    model = TorchModel(part.build, features=part.features)
    first, second, _ = run(family, "reference")
    features = np.concatenate([features_of(3, True), features_of(2, True)])
    with torch.no_grad():
        output = model(
            torch.tensor([[300, 5, 17, 21, 4]]), features=torch.from_numpy(features)[None],
            hidden_states=(1,),
        )  # fmt: skip
    states = output.hidden_states[1][0].numpy()
    assert states == pytest.approx(
        np.concatenate([first.states, second.states]), rel=1e-3, abs=1e-3
    )
    sure = torch.log_softmax(output.logits[0, -1], -1).numpy()
    column = {int(token): place for place, token in enumerate(TOKENS)}
    places = [column[token] for token in second.ids[0].tolist()]
    assert sure[places] == pytest.approx(second.log_probs[0], abs=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 3}], ids=["greedy", "drawn"])
def test_it_changes_no_answer(backend: str, options: dict[str, Any]) -> None:
    folder, manifest = bundle("llama")
    drafting = DraftingSetup("eagle", {"eagle": {"stop_below": 0.0}}, store=False)
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


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden_states": [3]}, "hidden_states"),
        ({"hidden_states": []}, "hidden_states"),
        ({"hidden_states": [2, 1]}, "hidden_states"),
        ({"hidden_states": [True]}, "hidden_states"),
        ({"mlp_width": 0}, "mlp_width"),
        ({"mlp_width": 32}, "gate"),
        ({"vocab_size": 95}, "tokens"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"sampling_width": -1}, "sampling_width"),
        ({"extra": 1}, "settings"),
    ],
)
def test_files_that_do_not_fit(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    file = write_head(tmp_path / "head.safetensors", "llama", **changes)
    with pytest.raises(CheckpointError, match=match):
        export_checkpoint(
            tiny_checkpoint("llama"), tmp_path / "out", formats=("reference",), trained=[file]
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "spoil",
    [lambda t: t[::-1].copy(), lambda t: np.zeros_like(t), lambda t: t + np.int32(300)],
    ids=["descending", "twice", "beyond"],
)
def test_tokens_that_cannot_be(spoil: Callable[[Any], Any]) -> None:
    target = Target.of(tiny_checkpoint())
    spoiled = {**tensors("llama"), "tokens": spoil(TOKENS)}
    with pytest.raises(CheckpointError, match="tokens of a head"):
        eagle_part(target, SETTINGS, as_weights(spoiled))


def test_a_bundle_without_a_head(tmp_path: Path) -> None:
    manifest = export_checkpoint(tiny_checkpoint(), tmp_path / "out", formats=("reference",))
    drafting = DraftingSetup("eagle", store=False)
    with pytest.raises(InputError, match="eagle"):
        Model.open(tmp_path / "out", manifest=manifest, backend="reference", drafting=drafting)


@pytest.mark.parametrize("backend", BACKENDS)
def test_auto_has_the_head_of_the_bundle(backend: str) -> None:
    folder, manifest = bundle("llama")

    def names(drafter: str) -> tuple[str, ...]:
        drafting = DraftingSetup(drafter, {"eagle": {"depth": 2}}, store=False)
        with Model.open(folder, manifest=manifest, backend=backend, drafting=drafting) as model:
            return model.drafting.names

    assert names("auto")[0] == "eagle"
    assert names("auto,eagle") == (*names("auto")[1:], "eagle")


def test_auto_of_a_bundle_without_a_head(tmp_path: Path) -> None:
    manifest = export_checkpoint(tiny_checkpoint(), tmp_path / "out", formats=("reference",))
    opened = functools.partial(Model.open, tmp_path / "out", manifest=manifest, backend="reference")
    with opened(drafting=DraftingSetup("auto", store=False)) as model:
        assert model.drafting.names == AUTO
    with pytest.raises(OptionError, match="option of the drafter 'eagle'"):
        opened(drafting=DraftingSetup("auto", {"eagle": {"depth": 2}}, store=False))
