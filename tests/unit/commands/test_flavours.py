"""Which flavour the commands run, with which KV type, and how they say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny.checkpoint import tiny_checkpoint
from tiny.process import call

from quickdraft.export.pipeline import export_checkpoint
from quickdraft.runtime import native


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of both flavours."""
    folder = tmp_path_factory.mktemp("bundles") / "both"
    export_checkpoint(tiny_checkpoint(), folder, weights="int8", formats=["hotpath", "onnx"])
    return folder


def run(folder: Path, *options: object) -> dict[str, Any]:
    done = call("run", folder, "hello", "-n", 4, "--ignore-eos", "--json", *options)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "stderr": done.stderr}


@pytest.mark.native
@pytest.mark.parametrize(("options", "kv"), [((), "f16"), (("--kv-cache", "int8"), "int8")])
def test_the_hotpath_runs_where_it_can(both: Path, options: tuple[str, ...], kv: str) -> None:
    answer = run(both, *options)
    assert (answer["backend"], answer["flavour"], answer["kv_cache"]) == ("hotpath", "hotpath", kv)
    assert answer["isa"] == native.isa()
    assert answer["degraded"] is None
    assert answer["guarantee"] == "bit_identical"


@pytest.mark.native
def test_bench_says_what_ran(both: Path) -> None:
    done = call("bench", both, "-p", "8", "-n", "2", "-r", "1", "--kv-cache", "f32", "--json")
    row = json.loads(done.stdout)[0]
    assert (row["flavour"], row["isa"], row["kv_cache"]) == ("hotpath", native.isa(), "f32")


def test_the_portable_flavour_runs_on_request(both: Path) -> None:
    answer = run(both, "--backend", "onnxruntime", "--kv-cache", "f32")
    assert (answer["flavour"], answer["kv_cache"]) == ("portable", "f32")
    assert (answer["isa"], answer["degraded"]) == (None, None)


def test_without_the_library_the_portable_flavour_runs_and_says_so(
    both: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "library_path", lambda: None)
    answer = run(both)
    assert answer["flavour"] == "portable"
    assert "no native library" in answer["degraded"]
    assert answer["degraded"] in caplog.text


def test_a_wrong_path_of_the_library_is_an_error(
    both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUICKDRAFT_LIBRARY", "/nowhere/lib.so")
    done = call("run", both, "hello", "-n", 1)
    assert done.returncode == 1
    assert "QUICKDRAFT_LIBRARY is '/nowhere/lib.so'" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kv-cache", "f8"), "kv_cache is 'f8'; it must be one of f16, f32, int8"),
        (
            ("--kv-cache", "f16", "--backend", "onnxruntime"),
            "kv_cache is 'f16', and the backend 'onnxruntime' has f32 only",
        ),
    ],
)
@pytest.mark.parametrize("command", [("run", "hello"), ("bench",), ("chat",)])
def test_kv_types_that_cannot_be_had(
    both: Path, command: tuple[str, ...], options: tuple[str, ...], message: str
) -> None:
    name, *words = command
    done = call(name, both, *words, *options)
    assert done.returncode == 2
    assert message in done.stderr
