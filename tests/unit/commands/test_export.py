"""`quickdraft export` on a tiny GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny.process import call

from quickdraft.bundle import open_bundle
from quickdraft.export.trained import write_trained
from quickdraft.models import shipped
from quickdraft.runtime.native import library_path

NATIVE = library_path() is not None


def test_export_writes_a_bundle_that_runs(tiny_gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    done = call("export", tiny_gguf, "--out", out)
    assert done.returncode == 0
    assert done.stderr == ""
    first, second, *more = done.stdout.splitlines()
    assert first.startswith(f"{out}: llama, ")
    assert f"onnx {'hotpath' if NATIVE else 'portable'} gguf" in second
    assert " s" in second
    assert not more if NATIVE else "not installed here" in more[0]
    assert call("run", out, "hello", "--raw", "-n", 2).returncode == 0


def test_options_reach_the_bundle(tiny_gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    done = call(
        "export", tiny_gguf, "-o", out, "--weights", "fp32", "--hidden-states", "0,1",
        "--format", "reference, onnx,hotpath", "--json",
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["bundle"] == str(out)
    assert report["formats"] == ["reference", "onnx", "onnx"]
    assert report["flavours"] == ["portable", "portable", "hotpath"]
    assert report["weights"] == ["fp32"] * 3
    assert report["seconds"] > 0
    assert report["peak_memory"] is None or report["peak_memory"] > 1 << 20
    manifest = open_bundle(out).manifest
    assert report["size"] == sum(entry.size for entry in manifest.files.values())
    assert report["parameters"] == manifest.model.num_parameters
    assert all(set(v.step.hidden_states) == {0, 1} for v in manifest.roles["target"])


@pytest.mark.parametrize("spelling", ["--format", "--to"])
def test_the_target_format_has_two_spellings(
    spelling: str, tiny_gguf: Path, tmp_path: Path
) -> None:
    done = call("export", tiny_gguf, "-o", tmp_path / "bundle", spelling, "reference", "--json")
    assert json.loads(done.stdout)["formats"] == ["reference"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--weights", "int3"], "--weights"),
        (["--hidden-states", "one"], "--hidden-states"),
        (["--hidden-states", "99"], "99"),
        (["--hidden-states", "-1"], "-1"),
        (["--to", "onyx"], "did you mean 'onnx'"),
        (["--format", "onyx"], "did you mean 'onnx'"),
        (["--format", ""], "format"),
    ],
)
def test_bad_options(arguments: list[str], says: str, tiny_gguf: Path, tmp_path: Path) -> None:
    done = call("export", tiny_gguf, "--out", tmp_path / "bundle", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.gguf"]


def test_a_bundle_is_replaced_only_on_request(tiny_gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert call("export", tiny_gguf, "--out", out).returncode == 0
    done = call("export", tiny_gguf, "--out", out)
    assert done.returncode == 2
    assert str(out) in done.stderr
    assert call("export", tiny_gguf, "--out", out, "--overwrite").returncode == 0


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all" * 100])
def test_a_damaged_checkpoint_leaves_nothing_behind(content: bytes, tmp_path: Path) -> None:
    source = tmp_path / "x.gguf"
    source.write_bytes(content)
    done = call("export", source, "--out", tmp_path / "bundle", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["type"] == "CheckpointError"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.gguf"]


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    done = call("export", tmp_path / "nothing", "--out", tmp_path / "bundle")
    assert done.returncode == 2
    assert "nothing" in done.stderr


def test_a_name_that_leads_nowhere(tmp_path: Path) -> None:
    done = call("export", "smollm2-135", "-o", tmp_path / "bundle", "--offline")
    assert done.returncode == 2
    assert "did you mean" in done.stderr
    assert not (tmp_path / "bundle").exists()


def test_shipped_drafts_that_a_format_cannot_hold_are_named(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = tmp_path / "best-draft.safetensors"
    tensors = {"bias": np.zeros(4, np.float32)}
    write_trained(draft, kind="compact", target="t", settings={}, tensors=tensors, card={})
    monkeypatch.setattr(shipped, "shipped_drafts", lambda fingerprint, folder: (draft,))
    line = ("export", tiny_gguf, "--format", "genai", "--weights", "fp32", "-o")
    done = call(*line, tmp_path / "a")
    assert done.returncode == 0, done.stderr
    assert "without best-draft, which come with quickdraft for this" in done.stdout
    done = call(*line, tmp_path / "b", "--json")
    assert json.loads(done.stdout)["left_out"] == ["best-draft"]
    done = call(*line, tmp_path / "c", "--no-drafts")
    assert "best-draft" not in done.stdout


def test_a_device_chooses_what_is_not_given(tiny_gguf: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    options = ("--device", "core-ultra-2-npu", "--widths", "1,8", "--cache-length", "48", "--json")
    done = call("export", tiny_gguf, "-o", tmp_path / "a", *options)
    report = json.loads(done.stdout)
    assert (report["flavours"], report["weights"]) == (["static"], ["int4-g128"])
    assert report["widths"] == [[1, 8, 128]]  # the prefill is the profile's
    assert report["cache_slots"] == [128]  # 48 and 32 for trees, in blocks of 64
    assert report["device"]["weights"]["why"] == "by the profile core-ultra-2-npu"
    assert report["device"]["shapes"].startswith("asked for: widths, cache_length")
    mine = call("export", tiny_gguf, "-o", tmp_path / "b", *options, "--weights", "int8")
    report = json.loads(mine.stdout)
    assert report["weights"] == ["int8"]
    assert report["device"]["weights"] == {"value": "int8", "why": "asked for"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cache-length", "64"), "cache length, widths and prefill chunk are of graphs with"),
        (("--widths", "4,8"), "widths is '4,8'; it must begin with 1"),
        (("--device", "tpu"), "there is no device 'tpu'"),
        (("--via", "optimum", "--widths", "1,4"), "leave out --weights"),
    ],
)
def test_shapes_that_cannot_be(
    options: tuple[str, ...], message: str, tiny_gguf: Path, tmp_path: Path
) -> None:
    done = call("export", tiny_gguf, "-o", tmp_path / "a", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "a").exists()
