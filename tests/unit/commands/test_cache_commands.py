"""`pull`, `list`, `show` and `rm` on a cache of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import exports
from tiny.process import call, quickdraft

from quickdraft.models import store
from quickdraft.models.formats import default_formats


@pytest.fixture
def pulled(tiny_gguf: Path) -> Path:
    """The bundle that `pull` made of the tiny checkpoint."""
    done = call("pull", tiny_gguf, "--json")
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["bundle"])


def test_pull_makes_a_bundle_that_runs(tiny_gguf: Path) -> None:
    done = call("pull", tiny_gguf)
    assert done.returncode == 0
    assert done.stderr == ""  # no bars without a terminal
    first, second = done.stdout.splitlines()
    assert "llama" in first
    assert second.startswith(str(store.cache_folder()))
    assert call("run", tiny_gguf, "hello", "--raw", "-n", 2).returncode == 0


def test_pull_json(tiny_gguf: Path) -> None:
    done = call("pull", tiny_gguf, "--weights", "fp32", "--json")
    report = json.loads(done.stdout)
    assert report["model"] == str(tiny_gguf)
    assert report["family"] == "llama"
    assert report["weights"] == ["fp32"]
    assert report["size"] > 0
    assert (Path(report["bundle"]) / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["no-such-model"], 2, "ModelNotFound"),
        (["owner/name", "--offline"], 1, "DownloadError"),
        (["smollm2-135m", "--weights", "int3"], 2, "OptionError"),
        (["smollm2-135m", "--offline"], 1, "DownloadError"),
        (["x" * 5000], 2, "ModelNotFound"),
        ([""], 2, "ModelNotFound"),
    ],
)
def test_pull_of_what_cannot_be_had(arguments: list[str], code: int, kind: str) -> None:
    done = call("pull", *arguments, "--json")
    assert json.loads(done.stdout)["error"]["type"] == kind
    assert done.returncode == code
    assert not store.entries()


def test_a_cache_that_cannot_be_written_is_named(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("QUICKDRAFT_CACHE", str(tmp_path / "file" / "cache"))
    done = call("pull", tiny_gguf)
    assert done.returncode == 1
    assert str(tmp_path / "file") in done.stderr
    assert "defect" not in done.stderr


def test_list_of_nothing() -> None:
    done = call("list")
    assert done.returncode == 0
    assert "quickdraft pull MODEL" in done.stdout
    assert json.loads(call("list", "--json").stdout) == []


def test_list_shows_a_line_per_entry(pulled: Path, tiny_gguf: Path) -> None:
    call("pull", tiny_gguf, "--weights", "fp32")
    head, *lines = call("list").stdout.splitlines()
    assert head.split() == ["MODEL", "KIND", "WEIGHTS", "FORMAT", "SIZE", "MODIFIED"]
    assert [line.split()[:4] for line in lines] == [
        ["small", "bundle", "auto", *default_formats()],
        ["small", "bundle", "fp32", *default_formats()],
    ]
    first, _ = json.loads(call("list", "--json").stdout)
    assert first["path"] == str(pulled)
    assert set(first) == {
        "name", "model", "kind", "path", "size", "modified", "weights", "formats",
        "fingerprint",
    }  # fmt: skip


@pytest.mark.parametrize("by_name", [True, False])
def test_show_states_what_the_manifest_says(pulled: Path, by_name: bool) -> None:
    name = "small" if by_name else str(pulled)
    done = call("show", name)
    assert done.returncode == 0
    facts = dict(line.split("  ", 1) for line in done.stdout.splitlines() if line.strip())
    assert facts["architecture"].strip() == "llama"
    assert facts["context"].strip() == "64 tokens"
    assert facts["layers"].strip() == "1 of width 32, 4 heads over 2 KV heads of 8"
    flavour = {"hotpath": "hotpath", "onnx": "portable"}[default_formats()[0]]
    assert f"onnx, {flavour}, gguf weights" in facts["target 1"]
    assert {"hotpath": "f16, f32 or int8 cache", "portable": " f32 cache"}[flavour] in facts[
        "target 1"
    ]
    assert facts["licence"].strip()
    assert "tokenizer.json" in done.stdout
    shown = json.loads(call("show", name, "--json").stdout)
    assert shown["alias"] is None
    assert shown["bundles"][0]["manifest"] == json.loads((pulled / "manifest.json").read_bytes())


def test_show_of_an_alias_that_was_never_used_fetches_nothing() -> None:
    done = call("show", "smollm2-135m")
    assert done.returncode == 0
    assert "quickdraft pull smollm2-135m" in done.stdout
    shown = json.loads(call("show", "smollm2-135m", "--json").stdout)
    assert shown["bundles"] == []
    assert shown["alias"]["licence"] == "Apache-2.0"
    assert not store.entries()


def test_show_of_what_another_tool_exported(tmp_path: Path) -> None:
    folder = exports.write_optimum(tmp_path / "export", model=exports.graph())
    done = call("show", folder)
    assert done.returncode == 0, done.stderr
    facts = dict(line.split("  ", 1) for line in done.stdout.splitlines() if line.strip())
    assert "onnx, adapted, fp32 weights, same_distribution" in facts["target 1"]
    assert facts["parameters"].strip() == "not stated"
    assert facts["source"].strip().startswith("optimum, ")
    shown = json.loads(call("show", folder, "--json").stdout)
    assert shown["bundles"][0]["manifest"]["roles"]["target"][0]["flavour"] == "adapted"
    (folder / "config.json").unlink()
    done = call("show", folder)
    assert done.returncode == 2
    assert "config.json" in done.stderr


@pytest.mark.parametrize("name", ["nope", "", "../..", "x" * 5000, "a\nb"])
@pytest.mark.parametrize("command", ["show", "rm"])
def test_names_that_lead_nowhere(command: str, name: str, pulled: Path) -> None:
    done = call(command, name, *(["--yes"] if command == "rm" else []))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert pulled.is_dir()


def test_a_bundle_of_another_version_hides_no_other(pulled: Path, tiny_gguf: Path) -> None:
    call("pull", tiny_gguf, "--weights", "fp32")
    old = pulled / "manifest.json"
    old.write_text(old.read_text().replace('"schema_version": 3', '"schema_version": 2'))
    done = call("show", "small")
    assert done.returncode == 0
    assert "fp32 weights" in done.stdout
    assert "gguf weights" not in done.stdout
    assert "schema_version is 2" in done.stderr


def test_show_of_a_damaged_bundle(pulled: Path) -> None:
    (pulled / "manifest.json").write_text("{")
    done = call("show", str(pulled))
    assert done.returncode == 2
    assert "manifest.json" in done.stderr


def test_rm_without_a_terminal_needs_yes(pulled: Path) -> None:
    done = quickdraft("rm", "small")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert pulled.is_dir()


def test_rm_removes_what_it_says(pulled: Path, tiny_gguf: Path) -> None:
    call("pull", tiny_gguf, "--weights", "fp32")
    done = call("rm", f"{pulled.name}", "--yes")
    assert done.returncode == 0
    assert "are free again" in done.stdout
    assert not pulled.exists()
    assert [entry.weights for entry in store.entries()] == ["fp32"]
    report = json.loads(call("rm", "small", "--yes", "--json").stdout)
    assert len(report["removed"]) == 1
    assert report["freed"] > 0
    assert not store.entries()
    assert tiny_gguf.is_file()


def test_rm_removes_nothing_if_one_name_is_wrong(pulled: Path) -> None:
    done = call("rm", "small", "nope", "--yes")
    assert done.returncode == 2
    assert "nope" in done.stderr
    assert pulled.is_dir()


@pytest.mark.parametrize(("answer", "stays"), [("y\n", False), ("n\n", True), ("", True)])
def test_rm_asks_at_a_terminal(
    answer: str, stays: bool, pulled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quickdraft.commands.rm.is_terminal", lambda stream: True)
    done = call("rm", "small", input=answer)
    assert str(pulled) in done.stderr
    assert pulled.is_dir() == stays
    assert (done.returncode == 0) is not stays
