"""`--prefill` of run, chat and bench, and what `show` says of predictors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny.predicted import write_predicted_model
from tiny.process import call

ASK = ("The quick brown fox jumps over the lazy dog", "--raw", "-n", 24, "--ignore-eos")
GREEDY = (*ASK, "--temperature", 0)


@pytest.fixture(scope="module")
def predicted_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "predicted"
    write_predicted_model(folder)
    return folder


@pytest.mark.parametrize("command", ["run", "bench"])
@pytest.mark.parametrize("prefill", ["guessed", "exact+refresh", "hybrid:0", "hybrid"])
def test_other_kinds_are_refused(tiny_bundle: Path, command: str, prefill: str) -> None:
    done = call(command, tiny_bundle, *(ASK if command == "run" else ()), "--prefill", prefill)
    assert done.returncode == 2
    assert f"prefill is '{prefill}'" in done.stderr


@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_bundle_without_predictor_says_how_to_get_one(tiny_bundle: Path, command: str) -> None:
    prompt = ASK if command == "run" else ()
    done = call(command, tiny_bundle, *prompt, "--prefill", "predicted")
    assert done.returncode == 2
    assert "no predictor for the backend" in done.stderr
    assert "quickdraft train predictor" in done.stderr


@pytest.mark.native
def test_an_answer_says_how_its_prompt_was_prefilled(predicted_bundle: Path) -> None:
    exact = json.loads(call("run", predicted_bundle, *GREEDY, "--json").stdout)
    assert (exact["prefill"], exact["prediction"]) == ("exact", None)
    for prefill in ("predicted", "hybrid:4", "predicted+refresh"):
        done = call("run", predicted_bundle, *GREEDY, "--prefill", prefill, "--json", "--explain")
        said = json.loads(done.stdout)
        assert said["token_ids"] == exact["token_ids"]
        assert (said["prefill"], said["guarantee"]) == (prefill, "lossy")
        assert said["prediction"]["predictor"] == "right"
        assert said["prediction"]["refresh_error"] is None
        assert said["steps"][0]["predicted_rows"] == said["prediction"]["rows"] > 4
    wrong = call("run", predicted_bundle, *GREEDY, "--prefill", "predicted@wrong", "--json")
    assert json.loads(wrong.stdout)["token_ids"] != exact["token_ids"]


@pytest.mark.native
def test_people_are_told_as_well(predicted_bundle: Path) -> None:
    done = call("run", predicted_bundle, *GREEDY, "--prefill", "predicted", "-v", "--explain")
    assert done.returncode == 0
    assert "prefill  predicted: " in done.stderr
    assert " rows by right in " in done.stderr
    assert "predicted rows" in done.stderr
    assert "lossy" in done.stderr
    done = call("run", predicted_bundle, *GREEDY, "-v", "--explain")
    assert "prefill" not in done.stderr
    assert "predicted rows" not in done.stderr


@pytest.mark.native
def test_a_prefill_is_measured(predicted_bundle: Path) -> None:
    small = ("-p", "8,16", "-n", "", "-r", 2, "--json")
    done = call("bench", predicted_bundle, *small, "--prefill", "predicted@wrong")
    assert [row["test"] for row in json.loads(done.stdout)] == [
        *("pp8", "pp16", "pp8 predicted@wrong", "pp16 predicted@wrong")
    ]
    for wrong, says in (("predicted+refresh", "before a refresh"), ("hybrid:12", "of 8 tokens")):
        done = call("bench", predicted_bundle, *small, "--prefill", wrong)
        assert done.returncode == 2
        assert says in done.stderr


def test_predictors_are_shown(predicted_bundle: Path) -> None:
    lines = call("show", predicted_bundle).stdout.splitlines()
    (right,) = (line for line in lines if line.startswith("predictor 1"))
    assert "right: onnx, hotpath, " in right
    assert right.endswith("keep 1.0, method none")
    (wrong,) = (line for line in lines if line.startswith("predictor 2"))
    assert wrong.endswith("keep 1.0, exact_first 2")
