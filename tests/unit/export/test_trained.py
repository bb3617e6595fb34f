"""Files of trained parts: what was written is read, and what is damaged or foreign is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tiny.checkpoint import tiny_checkpoint
from tiny.toy_parts import FORMATS, KIND, write_toys

from quickdraft import registry
from quickdraft.errors import CheckpointError, OptionError, UnsupportedModel
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.export.quantize import quantize
from quickdraft.export.trained import METADATA, Trained, read_trained, write_trained
from quickdraft.export.weights import Blocked

RANDOM = np.random.default_rng(3)
TENSORS: dict[str, NDArray[Any]] = {
    "matrix": RANDOM.standard_normal((6, 64)).astype(np.float32),
    "narrow": RANDOM.standard_normal((6, 40)).astype(np.float32),
    "vector": RANDOM.standard_normal(32).astype(np.float32),
    "norm.scale": RANDOM.standard_normal(8).astype(np.float32),
    "tokens": np.array([3, 1 << 20], np.int32),
}
HEAD = {"version": 1, "kind": "toy", "target": "ab" * 32, "settings": {}, "card": {}}


def write(path: Path, **changes: Any) -> Path:
    facts: dict[str, Any] = {
        "kind": "toy",
        "target": "ab" * 32,
        "settings": {"layers": [0, 2], "name": "a"},
        "tensors": TENSORS,
        "card": {"seconds": 1.5, "data": "none"},
    }
    write_trained(path, **{**facts, **changes})
    return path


@pytest.mark.parametrize("int8", [True, False])
def test_reads_back_what_was_written(int8: bool, tmp_path: Path) -> None:
    trained = read_trained(write(tmp_path / "a.safetensors", int8=int8))
    assert (trained.kind, trained.target) == ("toy", "ab" * 32)
    assert trained.settings == {"layers": [0, 2], "name": "a"}
    assert trained.card == {"seconds": 1.5, "data": "none"}
    assert set(trained.weights) == set(TENSORS)
    for name, values in TENSORS.items():
        found = trained.weights.expect(name, values.shape)
        rounded = int8 and name == "matrix"
        assert isinstance(found.load(), Blocked) == rounded
        exact = quantize(values, 8).to_dense() if rounded else values
        assert np.array_equal(found.dense(), exact)


def test_blocks_are_a_quarter_of_floats(tmp_path: Path) -> None:
    tensors = {"matrix": RANDOM.standard_normal((512, 512)).astype(np.float32)}
    sizes = [
        write(tmp_path / f"{int8}", tensors=tensors, int8=int8).stat().st_size
        for int8 in (True, False)
    ]
    assert sizes[0] / sizes[1] == pytest.approx(34 / 128, rel=0.01)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["matrix", "vector"])
def test_a_training_that_failed_writes_nothing(name: str, value: float, tmp_path: Path) -> None:
    tensors = {**TENSORS, name: np.full_like(TENSORS[name], value)}
    with pytest.raises(CheckpointError, match=f"'{name}' holds NaN or infinite values"):
        write(tmp_path / "a.safetensors", tensors=tensors)
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"NaN|not JSON compliant"):
        write(path, card={"loss": float("nan")})
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def rewritten(path: Path, tensors: dict[str, Any] | None = None, head: Any = None) -> Path:
    """The file with other tensors or another description."""
    text = head if isinstance(head, str) else json.dumps(HEAD if head is None else head)
    save_file(load_file(path) if tensors is None else tensors, path, {METADATA: text})
    return path


BAD_HEADS: dict[str, tuple[Any, str]] = {
    "not-json": ("{", "its description is not JSON"),
    "twice": ('{"kind": "a", "kind": "b"}', "has the key 'kind' twice"),
    "deep": ("[" * 99 + "]" * 99, "nested deeper than 16"),
    "long": (" " * (1 << 20) + "{}", "the limit is 1048576"),
    "a-list": ([], "its description must have card, kind, settings, target, version"),
    "lacks-card": ({k: v for k, v in HEAD.items() if k != "card"}, "must have card"),
    "more": ({**HEAD, "extra": 1}, "must have card"),
    "newer": ({**HEAD, "version": 2}, "has version 2 and this quickdraft reads 1; train it again"),
    "version-text": ({**HEAD, "version": "1"}, "has version '1'"),
    "kind-number": ({**HEAD, "kind": 1}, "'kind' of its description has a wrong type"),
    "target-null": ({**HEAD, "target": None}, "'target' of its description has a wrong type"),
    "settings-list": ({**HEAD, "settings": []}, "'settings' of its description has a wrong type"),
    "card-text": ({**HEAD, "card": ""}, "'card' of its description has a wrong type"),
}


@pytest.mark.parametrize("case", BAD_HEADS)
def test_bad_descriptions_are_refused(case: str, tmp_path: Path) -> None:
    head, message = BAD_HEADS[case]
    path = rewritten(write(tmp_path / "a.safetensors"), head=head)
    with pytest.raises(CheckpointError) as caught:
        read_trained(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith("a.safetensors")
    assert len(str(caught.value)) < 300


CODES, SCALE = np.zeros((4, 64), np.uint8), np.ones((4, 2), np.float16)
BAD_BLOCKS: dict[str, dict[str, NDArray[Any]]] = {
    "no-scale": {"a.codes": CODES},
    "scale-of-rows": {"a.codes": CODES, "a.scale": SCALE[:3]},
    "scale-of-columns": {"a.codes": CODES, "a.scale": SCALE[:, :1]},
    "a-vector": {"a.codes": CODES[0], "a.scale": SCALE[0]},
    "three-axes": {"a.codes": CODES[None], "a.scale": SCALE[None]},
    "float-codes": {"a.codes": CODES.astype(np.float32), "a.scale": SCALE},
    "wide-codes": {"a.codes": CODES.astype(np.int32), "a.scale": SCALE},
    "integer-scale": {"a.codes": CODES, "a.scale": SCALE.astype(np.int32)},
}


@pytest.mark.parametrize("case", BAD_BLOCKS)
def test_blocks_that_do_not_fit_are_refused(case: str, tmp_path: Path) -> None:
    path = rewritten(write(tmp_path / "a.safetensors"), BAD_BLOCKS[case])
    with pytest.raises(CheckpointError, match="the blocks of 'a' do not fit their scales"):
        read_trained(path)


def test_what_is_no_trained_part_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match="is not a file; give a trained part"):
        read_trained(path)
    with pytest.raises(CheckpointError, match="is not a file; give a trained part"):
        read_trained(tmp_path)
    save_file({"a": SCALE}, path)
    with pytest.raises(CheckpointError, match="holds no trained part of quickdraft"):
        read_trained(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is 0 bytes long: too short"):
        read_trained(path)


@pytest.mark.parametrize("kept", [0, 7, 8, 100, 500, -1])
def test_truncated_files_are_refused(kept: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"not a sound safetensors file|too short"):
        read_trained(path)


def _values(trained: Trained) -> None:
    for name in trained.weights:
        trained.weights[name].dense()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("trained") / "a.safetensors")


@given(data=st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_refused_or_goes_unseen(data: st.DataObject, sound: Path, tmp_path: Path) -> None:
    """Any other byte anywhere gives a CheckpointError or other values, never another error."""
    text = bytearray(sound.read_bytes())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(text)
    with suppress(CheckpointError):
        _values(read_trained(path))


# What export makes of such files: nothing, and it says why.


def export(folder: Path, path: Path, **options: Any) -> None:
    export_checkpoint(tiny_checkpoint(**options), folder, formats=FORMATS, trained=[path])


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "TRAINED", {KIND: "tiny.toy_parts:attach"})
    return write_toys(tmp_path / "toys.safetensors", tiny_checkpoint(), int8=True)


def test_a_part_of_another_target_is_refused(toys: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        export(tmp_path / "bundle", toys, seed=1)
    assert "toys.safetensors was trained for the checkpoint" in str(caught.value)
    assert "(tiny-llama); train one for it" in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_an_unknown_kind_is_refused(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "TRAINED", {"toy": "x:y"})
    with pytest.raises(OptionError, match=r"unknown kind of trained part 'toys'.*mean 'toy'"):
        export(tmp_path / "bundle", toys)


def _lost(tensors: dict[str, Any]) -> None:
    del tensors["query.codes"], tensors["query.scale"]


def _nan_scale(tensors: dict[str, Any]) -> None:
    tensors["map.key.scale"][0, 0] = np.nan


def _nan(tensors: dict[str, Any]) -> None:
    del tensors["join.codes"], tensors["join.scale"]
    tensors["join"] = np.full((32, 96), np.nan, np.float32)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_lost, "lacks the tensor 'query'"),
        (_nan_scale, "'map.key.scale' holds NaN or infinite values"),
        (_nan, "'join' holds NaN or infinite values"),
    ],
)
def test_a_damaged_part_leaves_no_bundle(
    harm: Callable[[dict[str, Any]], None], message: str, toys: Path, tmp_path: Path
) -> None:
    tensors = {name: np.array(values) for name, values in load_file(toys).items()}
    harm(tensors)
    target = tiny_checkpoint().source.fingerprint
    rewritten(toys, tensors, {**HEAD, "kind": KIND, "target": target})
    with pytest.raises((CheckpointError, UnsupportedModel), match=message):
        export(tmp_path / "bundle", toys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toys.safetensors"]
