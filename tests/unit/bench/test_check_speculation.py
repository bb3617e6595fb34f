"""The acceptance table of speculation is computed from result files as the issue words it."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from quickdraft.runtime.suites import SPEC_BENCH

SCRIPT = Path(__file__).parents[3] / "bench" / "check_speculation.py"


@pytest.fixture
def script() -> Iterator[ModuleType]:
    """bench/check_speculation.py as a module."""
    spec = importlib.util.spec_from_file_location("check_speculation", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_speculation"] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["check_speculation"]


def category(plain: float, spec: float, worst: float | None = 1.0, **rest: Any) -> dict[str, Any]:
    return {
        "plain_tps": plain, "spec_tps": spec, "ratio": spec / plain, "worst_prompt_ratio": worst,
        "prompts": 10, "answers": [{"identical": True}] * 10, "of_best_setting": 1.1,
        "settings": {"plain": {"tps": plain, "identical": True}}, **rest,
    }  # fmt: skip


def result(categories: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {
        "model": "qwen.gguf", "threads": 2, "interrupted": False, "peers": {},
        "config": {"temperature": 0.0, "max_new_tokens": 128}, "categories": categories,
        "settings": {"plain": {}, "auto": {}}, **rest,
    }  # fmt: skip


def lines(
    script: ModuleType, folder: Path, **results: dict[str, Any]
) -> dict[tuple[str, str], tuple[float | None, str]]:
    paths = []
    for name, content in results.items():
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(content))
    found = {(line.model, line.figure): line for line in script.check(paths)}
    return {key: (line.value, line.verdict) for key, line in found.items()}


def test_figures(script: ModuleType, tmp_path: Path) -> None:
    spec_bench = {name: category(50.0, 70.0) for name in SPEC_BENCH}
    wrong = [{"identical": True}, {"identical": False}]
    others = {
        "humaneval": category(50.0, 85.0, worst=0.96),
        "mbpp": category(50.0, 84.0, answers=wrong),
        "random": category(50.0, 49.0, worst=None),
    }
    peers = {
        "a/plain": {"humaneval": 30.0, "mbpp": 42.0} | dict.fromkeys(SPEC_BENCH, 35.0),
        "a/ngram": {"humaneval": 40.0} | dict.fromkeys(SPEC_BENCH, 20.0),
    }
    measured = lines(script, tmp_path, greedy=result({**spec_bench, **others}, peers=peers))
    assert measured["qwen", "over plain: humaneval"] == (1.7, "pass")
    assert measured["qwen", "over plain: mbpp"] == (1.68, "FAIL")
    assert measured["qwen", "over plain: random"] == (0.98, "pass")
    assert measured["qwen", "over plain: edit"] == (None, "missing")
    assert measured["qwen", "over plain: spec-bench, mean"] == (pytest.approx(1.4), "pass")
    assert measured["qwen", "worst prompt: humaneval"] == (0.96, "FAIL")
    assert measured["qwen", "worst prompt: random"] == (None, "missing")
    assert measured["qwen", "differing prompts: mbpp"] == (-1, "FAIL")
    assert measured["qwen", "differing prompts: humaneval"] == (0, "pass")
    assert measured["qwen", "over best peer: humaneval"] == (85 / 40, "FAIL")
    assert measured["qwen", "over best peer: mbpp"] == (2.0, "FAIL")
    assert measured["qwen", "over best peer: spec-bench, mean"] == (pytest.approx(2.0), "pass")
    assert measured["qwen", "of best fixed setting: mbpp"] == (None, "missing")
    assert measured["smollm2", "over best peer: humaneval"] == (None, "missing")
    assert ("smollm2", "over plain: humaneval") not in measured


def test_results_of_several_kinds(script: ModuleType, tmp_path: Path) -> None:
    drawn = {"temperature": 0.8, "max_new_tokens": 128}
    swept = {"plain": {}, "auto": {}, "fixed 2": {}}
    differs = {"fixed 2": {"tps": 1.0, "identical": False}}
    measured = lines(
        script,
        tmp_path,
        greedy=result({"mbpp": category(50.0, 100.0)}),
        sampled=result({name: category(50.0, 61.0) for name in SPEC_BENCH}, config=drawn),
        swept=result({"edit": category(50.0, 90.0, settings=differs)}, settings=swept),
        part=result({"qa": category(50.0, 500.0)}),
    )
    assert measured["qwen", "over plain: mbpp"] == (2.0, "pass")
    assert measured["qwen", "sampled, over plain: spec-bench, mean"] == (
        pytest.approx(1.22), "pass",
    )  # fmt: skip
    assert measured["qwen", "over plain: spec-bench, mean"] == (None, "missing")
    assert measured["qwen", "of best fixed setting: edit"] == (1.1, "pass")
    assert measured["qwen", "of best fixed setting: mbpp"] == (None, "missing")
    assert measured["qwen", "differing prompts: edit"] == (-1, "FAIL")


def test_complaints(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"temperature": 0.0, "max_new_tokens": 16}
    few = {"qa": category(1.0, 2.0, prompts=2)}
    lines(script, tmp_path, a=result(few, threads=1, interrupted=True, config=small))
    said = capsys.readouterr().err
    for words in ("interrupted", "1 threads", "at most 16 tokens", "fewer than 10 prompts of qa"):
        assert words in said
    with pytest.raises(SystemExit, match="neither its name nor its model"):
        lines(script, tmp_path, a=result(few, model="gpt"))


def test_exit_code(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "r.json"
    file.write_text(json.dumps(result({"qa": category(1.0, 2.0)})))
    monkeypatch.setattr(sys, "argv", ["check", str(file)])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 1
    monkeypatch.setattr(script, "limits", lambda model: {})
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert not ended.value.code
