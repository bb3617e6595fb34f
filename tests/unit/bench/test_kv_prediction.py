"""The benchmark of KV prediction: questions, costs, figures of a model that is known."""

from __future__ import annotations

import gzip
import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tiny.predicted import write_predicted_model
from tiny.toy_model import VOCAB, toy_model

from quickdraft.runtime.model import Model

OURS = {"prediction", "harness", "check_prediction", "kv_prediction", "profile_step"}
KINDS = ("predicted", "hybrid:64")
BENCH = Path(__file__).parents[3] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Modules of bench/ by name."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    yield lambda name: importlib.import_module(name)
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in OURS:
            del sys.modules[name]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "wt", encoding="utf-8") as out:
        out.write(text)


CODE = {
    "task_id": "HumanEval/0", "prompt": "def double(x):\n", "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(4) == 8\n",
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder of a few rows."""
    questions = [
        {"id": str(n), "question": f"What is {n}?", "answers": [f"The {n}.", f"No. {n}"]}
        for n in range(9)
    ]
    write_rows(tmp_path / "triviaqa" / "triviaqa.jsonl.gz", questions)
    write_rows(tmp_path / "humaneval" / "HumanEval.jsonl", [CODE])
    kinds = ["writing", "translation", "summarization", "qa", "math_reasoning", "rag"]
    rows = [
        {"question_id": n, "category": kind, "turns": [f"Say {kind}"]}
        for n, kind in enumerate(kinds)
    ]
    write_rows(tmp_path / "spec_bench" / "question.jsonl", rows)
    (tmp_path / "text").mkdir()
    with gzip.open(tmp_path / "text" / "wikitext2_test.raw.txt.gz", "wt") as out:
        out.write("".join(f"line {n} of the text\n" for n in range(300)))
    return tmp_path


@pytest.mark.parametrize(
    ("answer", "right"),
    [(" the 4", True), (" THE 4!", True), (" no 4", True), (" 5", False), ("", False)],
)
def test_trivia(bench: Any, data: Path, answer: str, right: bool) -> None:
    questions = bench("prediction.tasks").trivia(data, 4)
    assert [question.name for question in questions] == ["1", "3", "5", "7"]
    one = bench("prediction.tasks").trivia(data, 99)[3]
    assert one.prompt == "Question: What is 0?\nAnswer: The 0.\n\nQuestion: What is 4?\nAnswer:"
    assert one.is_right(answer) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("    return 2 * x", True),
        ("    return x", False),
        ("    return 2 *", False),
        ("    raise SystemExit(0)", False),
        ("    import os; os._exit(0)", False),
        ("    open('left', 'w').write('x'); return 2 * x", False),
        ("    import subprocess; subprocess.run(['true']); return 2 * x", False),
        ("    import socket; socket.socket(); return 2 * x", False),
    ],
)
def test_code_is_run_apart(bench: Any, data: Path, answer: str, right: bool) -> None:
    (problem,) = bench("prediction.tasks").humaneval(data, 5)
    assert problem.is_right(answer) is right


def test_code_that_never_ends(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = bench("prediction.sandbox")
    monkeypatch.setattr(sandbox, "SECONDS", 1)
    assert not sandbox.passes("while True:\n    pass\n")
    assert not sandbox.passes("import time\ntime.sleep(60)\n")
    assert sandbox.passes("x = 1\n")


def test_multiplications(bench: Any) -> None:
    ways = bench("prediction.ways")
    model, predictor = ways.Graph(100, 7, 1), ways.Graph(30, 0, 2)
    exact = sum(100 + rows for rows in range(1, 11)) + 7
    assert ways.Cost(model).of_prompt(10) == exact
    guessed = sum(30 + 2 * rows for rows in range(1, 10)) + (100 + 10) + 7
    assert ways.Cost(model, predictor).of_prompt(10) == guessed
    hybrid = sum(30 + 2 * rows for rows in range(1, 7)) + sum(100 + n for n in (1, 7, 8, 9, 10)) + 7
    assert ways.Cost(model, predictor, first=1, last=4).of_prompt(10) == hybrid


def way(bench: Any, model: Model, name: str = "exact") -> Any:
    ways = bench("prediction.ways")
    return ways.Way(name, name, model, "exact", ways.Cost(ways.Graph(1, 1, 1)))


def silent(stage: str, done: int, total: int) -> None:
    del stage, done, total


def test_quality(bench: Any, data: Path) -> None:
    quality = bench("prediction.quality")
    setting = quality.Setting(4, 40, 12, 1, 6, 3, 1)
    exact = way(bench, toy_model())
    measured = quality.Quality(exact.model, setting, data)
    measured.learn(exact)
    figures = measured.measure(exact, silent)
    assert figures["agreement"] == figures["same_answers"] == 1.0
    assert 5 < figures["same_tokens"] <= 6  # an answer may end before
    assert figures["triviaqa"] == {"accuracy": 0.0, "error": 0.0, "questions": 3}
    assert figures["humaneval"]["questions"] == 1
    flat = way(bench, toy_model(lambda tokens: np.zeros(VOCAB, np.float32)))
    figures = measured.measure(flat, silent)
    assert figures["perplexity"] == pytest.approx(VOCAB)
    assert figures["agreement"] < 1
    assert figures["same_answers"] == 0


def test_losses_are_of_the_tokens_in_their_places(bench: Any) -> None:
    """A model that says the number of tokens it sees."""

    def counting(tokens: tuple[int, ...]) -> np.ndarray[Any, Any]:
        row = np.zeros(VOCAB, np.float32)
        row[len(tokens)] = 5.0
        return row

    quality = bench("prediction.quality")
    counter = way(bench, toy_model(counting))
    assert counter.forced([9, 9, 9], [3, 4, 7]).argmax(-1).tolist() == [3, 4, 5]
    losses = quality.losses_of(counter, [9, 9, 9], [3, 4, 7])
    sure = math.exp(5) / (math.exp(5) + VOCAB - 1)
    assert losses == pytest.approx([-math.log(sure)] * 2 + [-math.log(sure / math.exp(5))])


def result(**rest: Any) -> dict[str, Any]:
    """Times over 1000 and perplexities, by way."""
    figures = {
        "exact": (1000, 10.0), "auxiliary 0.5": (500, 40.0), "auxiliary 0.25": (250, 160.0),
        "predicted 0.5-ridge": (550, 20.0), "predicted 0.25-ridge": (300, 60.0),
        "predicted 0.25-distilled": (310, 50.0), "predicted 0.25-none": (290, 500.0),
    }  # fmt: skip
    ways: dict[str, Any] = {"exact": {"kind": "exact", "details": {}}}
    for name in [*figures][1:]:
        kind, _, label = name.partition(" ")
        kept, _, method = label.partition("-")
        details = {"keep": float(kept) + 0.02, "method": method, "budget": 600.0}
        ways[name] = {"kind": kind, "details": details}
    quality = {
        name: {
            "perplexity": value, "agreement": 0.5, "same_tokens": 4.0,
            "triviaqa": {"accuracy": 0.4 if name == "exact" else 0.32, "error": 0.1},
        }
        for name, (_, value) in figures.items()
    }  # fmt: skip
    setting = {"continuation": 96, "prefix": 384, "windows": 4, "agreed": 32}
    point = {"ttft_ms": 100.0, "total_ms": 300.0, "exact_after": True}
    late = {"ttft_ms": 104.0, "total_ms": 333.0, "exact_after": False}
    refreshed = {"exact": {"512": point, "1024": point}, "predicted 0.5-ridge": {"512": point}}
    refreshed["predicted 0.5-ridge"]["1024"] = point
    refreshed["predicted 0.5-ridge+refresh"] = {"512": point, "1024": late}
    return {
        "model": "qwen", "weights": "gguf", "threads": 2, "backend": "hotpath", "ways": ways,
        "speed": {
            "lengths": [1024], "ttft_ms": {n: {"1024": t} for n, (t, _) in figures.items()},
            "multiplications": {n: {"1024": t - 50} for n, (t, _) in figures.items()},
            "peers": {"a": {"ttft_ms": {"1024": 2000.0}}, "b": {"ttft_ms": {"1024": 1500.0}}},
        },
        "quality": {"ways": quality, "setting": setting, "empty_perplexity": 900.0},
        "refresh": {"ways": refreshed, "lengths": [512, 1024], "tokens": 128}, **rest,
    }  # fmt: skip


def test_auxiliary_at_equal_time(bench: Any) -> None:
    report = bench("prediction.report")
    between = math.exp(math.log(40) + (math.log(10) - math.log(40)) * 50 / 500)
    assert report.of_auxiliary(result(), "predicted 0.5-ridge") == pytest.approx(20 / between)
    early = result()
    early["speed"]["ttft_ms"]["predicted 0.25-ridge"]["1024"] = 100
    assert report.of_auxiliary(early, "predicted 0.25-ridge") == pytest.approx(60 / 160)
    del early["speed"]
    assert report.of_auxiliary(early, "predicted 0.25-ridge") is None


def test_tables_and_plot(bench: Any) -> None:
    report = bench("prediction.report")
    shown = report.render(result())
    assert "predicted 0.25-distilled" in shown
    assert "32.0% ± 10.0%" in shown
    assert report.draw(result()).startswith(b"\x89PNG")
    only = {key: value for key, value in result().items() if key not in ("speed", "refresh")}
    assert "no prefix" in report.render(only)
    assert report.draw(only).startswith(b"\x89PNG")


@pytest.fixture
def lines(bench: Any, tmp_path: Path) -> Any:
    script: ModuleType = bench("check_prediction")

    def check(**rest: Any) -> dict[tuple[str, str], tuple[float | None, str]]:
        file = tmp_path / "prediction-qwen.json"
        file.write_text(json.dumps(result(**rest)))
        return {(a.model, a.figure): (a.value, a.verdict) for a in script.check([file])}

    return check


def test_acceptance(lines: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = lines()
    assert found["qwen", "0.25: first token at 1024 / exact"] == (0.31, "pass")
    assert found["qwen", "0.25: first token at 1024 / best peer's"] == (310 / 1500, "FAIL")
    assert found["qwen", "0.5: first token at 1024 / exact"] == (0.55, "pass")
    assert found["qwen", "0.75: first token at 1024 / exact"] == (None, "report")
    assert found["qwen", "0.25: multiplications at 1024 / exact"] == (260 / 950, "report")
    assert found["qwen", "0.25: perplexity / naive skipping's"] == (0.1, "pass")
    assert found["qwen", "0.5: perplexity / naive skipping's"] == (None, "missing")
    assert found["qwen", "0.5: triviaqa / exact"] == (pytest.approx(0.8), "pass")
    assert found["qwen", "0.25: triviaqa / exact"] == (pytest.approx(0.8), "report")
    assert found["qwen", "0.5: refreshed, first token / predicted"] == (1.04, "pass")
    assert found["qwen", "0.5: refreshed, whole answer / exact"] == (1.11, "FAIL")
    left = "0.5: refreshed answers that are not exact afterwards"
    assert found["qwen", left] == (1, "FAIL")
    assert found["qwen", "closed-form fit, minutes"] == (10.0, "report")
    assert found["smollm2", "closed-form fit, minutes"] == (None, "missing")
    assert found["smollm2", "0.25: first token at 1024 / exact"] == (None, "missing")
    assert "lacks prompts of 128, 512, 2048 tokens" in capsys.readouterr().err


def test_complaints(lines: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lines(threads=1, backend="onnxruntime", refresh={})
    said = capsys.readouterr().err
    for words in ("1 threads", "onnxruntime", "128 tokens that are refreshed"):
        assert words in said


def test_the_whole_of_it(
    bench: Any,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A right predictor and a wrong one; then a part again, while the others are kept."""
    script = bench("kv_prediction")
    monkeypatch.setattr(script, "RESULTS", tmp_path / "results")
    write_predicted_model(tmp_path / "bundle", ("onnx",))
    few = {
        "rounds": 1, "lengths": 40, "refresh-lengths": 40, "tokens": 8, "windows": 2, "prefix": 40,
        "continuation": 8, "prompts": 1, "agreed": 6, "trivia": 2, "humaneval": 1, "threads": 1,
    }  # fmt: skip
    options = [str(word) for name, value in few.items() for word in (f"--{name}", value)]
    asked = ["tiny", str(tmp_path / "bundle"), str(data), *options]
    script.main(asked)
    assert "predicted wrong" in capsys.readouterr().out
    file = tmp_path / "results" / "prediction-tiny.json"
    first = json.loads(file.read_text())
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    ways = ["exact", *(f"{kind} {of}" for of in ("right", "wrong") for kind in KINDS)]
    assert list(first["speed"]["ttft_ms"]) == list(first["quality"]["ways"]) == ways
    quality = first["quality"]["ways"]
    assert quality["predicted right"]["perplexity"] == quality["exact"]["perplexity"]
    assert quality["predicted right"]["agreement"] == 1
    assert quality["predicted wrong"]["perplexity"] != quality["exact"]["perplexity"]
    refreshed = first["refresh"]["ways"]
    assert refreshed["exact"]["40"]["exact_after"]
    assert not refreshed["predicted wrong"]["40"]["exact_after"]
    products = first["speed"]["multiplications"]
    assert 0 < products["predicted right"]["40"] < products["exact"]["40"]
    script.main([*asked, "--parts", "quality", "--ways", "predicted wrong"])
    second = json.loads(file.read_text())
    assert second["speed"] == first["speed"]
    assert second["quality"]["ways"] == quality
    script.main([*asked, "--parts", "quality", "--ways", "predicted wrong", "--windows", "1"])
    assert list(json.loads(file.read_text())["quality"]["ways"]) == ["exact", "predicted wrong"]
