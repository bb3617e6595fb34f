"""A name becomes a verified bundle; the second time without any work."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny.bundles import TINY_FILES, write_tiny_bundle
from tiny.gguf_models import tiny_llama

import quickdraft.export.pipeline
from quickdraft.bundle import open_bundle
from quickdraft.errors import BundleError, DownloadError, ModelNotFound, OptionError
from quickdraft.export.heads.compact import CompactSettings, tensor_shapes
from quickdraft.export.trained import Target, write_trained
from quickdraft.manifest import EXPORT_REVISION
from quickdraft.models import hub, sources, store
from quickdraft.models import resolve as resolving
from quickdraft.models.formats import default_formats
from quickdraft.models.resolve import resolve
from quickdraft.models.shipped import shipped_drafts
from quickdraft.runtime import native

TESTS = Path(__file__).parents[2]


@pytest.fixture
def formats() -> list[list[str]]:
    """Formats of what was exported."""
    return []


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch, formats: list[list[str]]) -> list[tuple[Path, str]]:
    """Stands in for export, and lists what was exported with which weights."""
    calls: list[tuple[Path, str]] = []
    used = formats

    def export(
        source: Path, out: Path, *, weights: str, formats: list[str], **options: Any
    ) -> None:
        calls.append((source, weights))
        used.append(formats)
        write_tiny_bundle(out)

    monkeypatch.setattr(quickdraft.export.pipeline, "export_model", export)
    return calls


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "notes.txt"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    (tmp_path / "Some Model.GGUF").write_bytes(b"GGUF")
    return tmp_path / "Some Model.GGUF"


def test_a_bundle_folder_is_itself(tmp_path: Path, exports: list[Any]) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    for weights in (None, "auto", "int4"):
        bundle = resolve(str(tmp_path / "bundle"), weights=weights, offline=True)
        assert bundle == open_bundle(tmp_path / "bundle")
    assert exports == []


def test_a_bundle_has_the_weights_it_has(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    with pytest.raises(OptionError, match="has int4 weights, not fp32"):
        resolve(str(tmp_path / "bundle"), weights="fp32")


def test_a_damaged_bundle_of_the_user_is_not_made_again(tmp_path: Path, exports: list[Any]) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    (tmp_path / "bundle" / "model.onnx").unlink()
    with pytest.raises(BundleError, match="missing"):
        resolve(str(tmp_path / "bundle"))
    assert exports == []


def test_a_checkpoint_is_exported_once(
    checkpoint: Path, exports: list[tuple[Path, str]], cache: Path
) -> None:
    first = resolve(str(checkpoint))
    assert exports == [(checkpoint, "auto")]
    assert resolve(str(checkpoint), offline=True) == first
    assert len(exports) == 1
    assert first.folder.parent == cache / "bundles"
    assert [entry.model for entry in store.entries()] == ["checkpoint"]


def test_formats_depend_on_the_installation_and_the_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for library, expected in ((Path("lib"), "hotpath"), (None, "onnx")):
        monkeypatch.setattr(native, "library_path", lambda library=library: library)
        assert default_formats() == default_formats("elsewhere") == (expected,)
        assert default_formats("hotpath") == ("hotpath",)
        assert default_formats("onnxruntime") == ("onnx",)
        assert default_formats("reference") == ("reference",)


def test_other_formats_are_another_bundle(
    checkpoint: Path, exports: list[tuple[Path, str]], formats: list[list[str]]
) -> None:
    first = resolve(str(checkpoint), formats=["onnx"])
    second = resolve(str(checkpoint), formats=["hotpath", "onnx"])
    assert first.folder != second.folder
    assert formats == [["onnx"], ["hotpath", "onnx"]]
    resolve(str(checkpoint), formats=["onnx"])
    assert len(formats) == 2


def test_other_weights_or_contents_are_another_bundle(
    checkpoint: Path, exports: list[tuple[Path, str]]
) -> None:
    folders = {resolve(str(checkpoint)).folder, resolve(str(checkpoint), weights="int8").folder}
    (checkpoint / "notes.txt").write_text("no part of the model")
    folders.add(resolve(str(checkpoint)).folder)
    assert len(folders) == 2
    (checkpoint / "tokenizer.json").write_text("another")
    folders.add(resolve(str(checkpoint)).folder)
    assert len(folders) == len(exports) == 3


def test_a_gguf_file_in_any_case(gguf: Path, exports: list[tuple[Path, str]]) -> None:
    assert resolve(str(gguf)).folder.name.startswith("Some-Model-")
    assert exports == [(gguf, "auto")]


def test_a_damaged_bundle_of_the_cache_is_made_again(
    gguf: Path, exports: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    folder = resolve(str(gguf)).folder
    (folder / "model.onnx").write_bytes(TINY_FILES["model.onnx"][::-1])
    assert resolve(str(gguf)).folder == folder
    assert len(exports) == 2
    assert "is made again" in caplog.text


def test_a_bundle_of_an_older_export_is_made_again(
    gguf: Path, exports: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    folder = resolve(str(gguf)).folder
    manifest = folder / "manifest.json"
    now = f'"export": "{EXPORT_REVISION}"'
    manifest.write_text(manifest.read_text().replace(now, '"export": "1"'))
    assert resolve(str(gguf)).folder == folder
    assert len(exports) == 2
    assert caplog.text.count("export revision 1") == 1
    resolve(str(gguf))
    assert len(exports) == 2


def test_a_bundle_is_made_again_when_other_drafts_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From a real export: what it writes down is what is compared."""
    source = tmp_path / "small.gguf"
    source.write_bytes(tiny_llama().to_bytes())
    drafts = tmp_path / "drafts"
    drafts.mkdir()
    monkeypatch.setattr(resolving, "shipped_drafts", partial(shipped_drafts, folder=drafts))

    def parts() -> set[str]:
        found = resolve(str(source), formats=("onnx",)).manifest
        return {variant.name for variant in found.roles.get("drafter", ())}

    assert parts() == set()
    for number in (1, 2):
        write_compact(drafts / "compact.safetensors", source, seed=number)
        before = store.entries()
        assert parts() == {"compact"}
        assert len(store.entries()) == len(before)
        assert caplog.text.count("other drafts ship") == number
        made = store.entries()[0].modified
        assert parts() == {"compact"}
        assert store.entries()[0].modified == made  # from the cache
    (drafts / "compact.safetensors").unlink()
    assert parts() == set()


def write_compact(file: Path, source: Path, seed: int) -> None:
    """An untrained draft for a checkpoint."""
    checkpoint = quickdraft.export.pipeline.read_checkpoint(source)
    target = Target.of(checkpoint)
    settings = CompactSettings(1, 32, 2, 1, 16, 32, 16, 8)
    rng = np.random.default_rng(seed)
    shapes = tensor_shapes(target.spec, settings)
    tensors: dict[str, Any] = {n: rng.standard_normal(s, np.float32) for n, s in shapes.items()}
    tensors["tokens"] = np.arange(8, dtype=np.int32)
    write_trained(
        file,
        kind="compact",
        target=checkpoint.source.fingerprint,
        settings=asdict(settings),
        tensors=tensors,
        card={},
    )


def test_a_failed_export_leaves_nothing(
    gguf: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quickdraft.export.pipeline, "export_model", fail)
    with pytest.raises(KeyboardInterrupt):
        resolve(str(gguf))
    assert store.entries() == ()


def test_an_alias_needs_no_checkpoint_once_it_is_exported(
    gguf: Path, exports: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def fetch(name: str, **options: Any) -> Path:
        fetched.append(name)
        return gguf

    monkeypatch.setattr(sources, "fetch_checkpoint", fetch)
    name = f"smollm2-135m-b179c9523d0e-auto-{default_formats()[0]}"
    assert resolve("smollm2-135m").folder.name == name
    resolve("smollm2-135m", offline=True)
    assert fetched == ["smollm2-135m"]
    assert exports == [(gguf, "auto")]


def test_what_is_in_the_cache_is_known_by_its_weights_and_formats(
    gguf: Path, exports: list[Any]
) -> None:
    resolve(str(gguf), weights="int4-g128", formats=["openvino-static", "onnx"])
    (entry,) = store.entries()
    assert (entry.model, entry.weights) == ("Some-Model", "int4-g128")
    assert entry.formats == "openvino-static+onnx"


class TestHub:
    @pytest.fixture(autouse=True)
    def snapshots(self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
        """Stands in for the hub, and lists which fetches were offline."""
        self.offline: list[bool] = []

        def fetch(name: hub.HubName, *, progress: Any, offline: bool) -> Path:
            self.offline.append(offline)
            return checkpoint

        monkeypatch.setattr(hub, "fetch", fetch)
        return self.offline

    def test_the_second_use_does_not_ask_the_hub(self, exports: list[Any]) -> None:
        first = resolve("owner/name")
        assert resolve("owner/name", offline=True) == first
        assert self.offline == [False]
        assert len(exports) == 1

    def test_other_weights_come_from_the_same_snapshot(self, exports: list[Any]) -> None:
        resolve("owner/name")
        resolve("owner/name", weights="int8")
        assert self.offline == [False]
        assert [weights for _, weights in exports] == ["auto", "int8"]

    def test_refresh_asks_again(self, exports: list[Any], checkpoint: Path) -> None:
        first = resolve("owner/name")
        (checkpoint / "config.json").write_text("new")
        assert resolve("owner/name") == first
        assert resolve("owner/name", refresh=True).folder != first.folder

    def test_a_change_is_not_taken_unasked(self, exports: list[Any], checkpoint: Path) -> None:
        resolve("owner/name")
        (checkpoint / "config.json").write_text("new")
        with pytest.raises(ModelNotFound, match="quickdraft pull owner/name"):
            resolve("owner/name", weights="int8")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smollm2", "did you mean 'smollm2-135m'"),
        ("Qwen2.5-Coder", "did you mean 'qwen2.5-coder-1.5b'"),
        ("nonsense", "built-in: smollm2-135m, qwen2.5-coder-1.5b"),
        ("", "there is no model ''"),
        ("a\0b", "there is no model"),
        ("x" * 100_000, "there is no model 'xxx"),
        ("~nobody-here/x/y", "there is no model"),
        ("../nothing/here", "there is no model"),
        ("\ud800", "there is no model"),
    ],
)
def test_unknown_names_offer_what_there_is(name: str, expected: str, cache: Path) -> None:
    with pytest.raises(ModelNotFound) as caught:
        resolve(name)
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not cache.exists()


def test_paths_that_are_no_models(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(ModelNotFound, match=r"neither a bundle .* nor a checkpoint"):
        resolve(str(tmp_path / "empty"))
    with pytest.raises(ModelNotFound, match=r"not a \.gguf file"):
        resolve(str(tmp_path / "photo.jpg"))
    assert not cache.exists()


def test_unknown_weights_are_refused_first(cache: Path) -> None:
    with pytest.raises(OptionError, match="one of auto, gguf, fp32"):
        resolve("smollm2-135m", weights="int2")
    assert not cache.exists()


def test_offline_and_not_there(cache: Path) -> None:
    with pytest.raises(DownloadError, match="not in the cache"):
        resolve("smollm2-135m", offline=True)


def test_a_cache_for_reading_only_still_serves(
    gguf: Path, exports: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve(str(gguf))

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("nothing may be locked or written")

    monkeypatch.setattr(store, "lock", refuse)
    monkeypatch.setattr(resolving.store, "tidy", refuse)
    assert resolve(str(gguf)) == first


CHILD = """
    import sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import quickdraft.export.pipeline as pipeline
    from quickdraft.bundle import BundleWriter
    from quickdraft.models.resolve import resolve
    from tiny.bundles import TINY_FILES, tiny_manifest

    def export(source, out, **options):
        with open(sys.argv[3], "a") as log:
            print("export", file=log)
        with BundleWriter(out) as writer:
            for name, data in TINY_FILES.items():
                writer.add_bytes(name, data)
                time.sleep(0.1)
            writer.finish(tiny_manifest())

    pipeline.export_model = export
    print(resolve(sys.argv[2]).folder)
"""


def test_first_use_by_three_processes_exports_once(gguf: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(TESTS), str(gguf)]
    children = [
        subprocess.Popen([*command, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = {child.communicate(timeout=60)[0] for child in children}
    assert [child.returncode for child in children] == [0, 0, 0]
    assert len(answers) == 1
    open_bundle(Path(answers.pop().strip()))
    assert (tmp_path / "log").read_text().split() == ["export"]
