"""`--drafter`, `--drafter-option`, `--draft-tokens`, `--no-store` and `--explain`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny.process import call

from quickdraft.hashes import cache_root

# Says one token again and again: easy to draft.
SAY = ("abc", "-n", 24, "--ignore-eos", "--raw", "--temperature", 0, "--logit-bias", "5=1000")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--drafter", "lookup"), "unknown drafter 'lookup'"),
        (("--drafter", "prompt_lokup"), "did you mean 'prompt_lookup'"),
        (("--drafter-option", "prompt_lookup"), "is not NAME.KEY=VALUE"),
        (("--drafter-option", "prompt_lookup=3"), "is not NAME.KEY=VALUE"),
        (("--drafter-option", ".max_ngram=3"), "is not NAME.KEY=VALUE"),
        (("--drafter-option", "prompt_lokup.max_ngram=3"), "did you mean 'prompt_lookup'"),
        (("--drafter-option", "prompt_lookup.max_ngrams=3"), "did you mean 'max_ngram'"),
        (("--drafter-option", "prompt_lookup.max_ngram=many"), "must be a whole number"),
        (("--drafter-option", "prompt_lookup.max_ngram=9999"), "must be between"),
        (("--drafter-option", "trigram.rows=2", "--drafter", "recycling"), "add trigram to it"),
        (
            ("--drafter-option", "trigram.a=1", "--drafter-option", "trigram.a=2"),
            "sets trigram.a twice",
        ),
        (("--draft-tokens", "65"), "num_draft_tokens is 65; it must be between 0 and 64"),
        (("--draft-tokens", "-1"), "num_draft_tokens is -1"),
    ],
)
def test_bad_drafter_options_are_exit_code_2(
    tiny_bundle: Path, options: tuple[str, ...], says: str
) -> None:
    done = call("run", tiny_bundle, *SAY, *options)
    assert done.returncode == 2
    assert says in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    "options",
    [
        ("--drafter", "none"),
        ("--drafter", "prompt_lookup,recycling"),
        ("--drafter", "prompt_lookup", "--drafter-option", "prompt_lookup.max_ngram=2"),
        ("--draft-tokens", "0"),
        ("--draft-tokens", "5"),
        (),
    ],
)
def test_drafting_does_not_change_what_is_said(tiny_bundle: Path, options: tuple[str, ...]) -> None:
    plain = json.loads(call("run", tiny_bundle, *SAY, "--drafter", "none", "--json").stdout)
    said = json.loads(call("run", tiny_bundle, *SAY, *options, "--json").stdout)
    assert said["token_ids"] == plain["token_ids"]
    assert plain["timings"]["draft_n"] == 0
    assert (said["timings"]["draft_n"] == 0) == (options[-1:] in (("none",), ("0",)))


@pytest.mark.parametrize("backend", ["auto", "onnxruntime", "reference"])
@pytest.mark.parametrize(
    ("options", "guarantee"),
    [
        (("--temperature", 0), "bit_identical"),
        (("--temperature", 0.9, "--seed", 3), "same_distribution"),
    ],
)
def test_a_small_model_drafts_on_any_backend(
    tiny_bundle: Path, backend: str, options: tuple[object, ...], guarantee: str
) -> None:
    """It drafts for itself here, so it is nearly always right."""
    say = ("run", tiny_bundle, "abc", "-n", 24, "--ignore-eos", "--raw", "--json", *options)
    plain = json.loads(call(*say, "--drafter", "none").stdout)
    model = (f"small_model.model={tiny_bundle}", f"small_model.backend={backend}")
    given = [part for option in model for part in ("--drafter-option", option)]
    said = json.loads(
        call(*say, "--drafter", "auto,small_model", *given, "--draft-tokens", 4).stdout
    )
    counts = said["drafting"]["drafters"]["small_model"]
    assert counts["accepted"] > 0.5 * counts["drafted"] > 0
    assert plain["guarantee"] == "bit_identical"
    assert said["guarantee"] == guarantee
    if guarantee == "bit_identical":
        assert said["token_ids"] == plain["token_ids"]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ((), "needs the option 'model'"),
        (("small_model.model=nowhere-at-all",), "nowhere-at-all"),
        (("small_model.model=smollm2-135m", "small_model.backend=gpu"), "backend 'gpu'"),
    ],
)
def test_a_draft_model_that_cannot_be_opened_is_named(
    tiny_bundle: Path, model: tuple[str, ...], says: str
) -> None:
    given = [part for option in model for part in ("--drafter-option", option)]
    done = call("run", tiny_bundle, *SAY, "--drafter", "small_model", *given, "--offline")
    assert done.returncode == 2
    assert says in done.stderr


def test_explain_prints_a_line_per_step(tiny_bundle: Path) -> None:
    done = call("run", tiny_bundle, *SAY, "--explain", "--draft-tokens", 4)
    head, *lines = done.stderr.splitlines()
    assert head.split()[:7] == ["step", "asked", "offered", "chosen", "depth", "expected", "got"]
    assert "plain decoding" in lines[0]
    assert all("fixed" in line for line in lines[1:])
    assert any("prompt_lookup:" in line for line in lines)


def test_explain_adds_the_steps_to_json(tiny_bundle: Path) -> None:
    done = call("run", tiny_bundle, *SAY, "--explain", "--json", "--draft-tokens", 4)
    answer = json.loads(done.stdout)
    steps = answer["steps"]
    assert len(steps) == answer["timings"]["steps"] + 1
    assert sum(step["emitted"] for step in steps) == len(answer["token_ids"])
    assert sum(step["drafted"] for step in steps) == answer["timings"]["draft_n"]
    assert {"asked", "offered", "expected_tokens", "reason"} <= set(steps[1])
    assert "steps" not in json.loads(call("run", tiny_bundle, *SAY, "--json").stdout)
    counted = answer["drafting"]["drafters"]["prompt_lookup"]
    assert 0 < counted["accepted"] <= counted["drafted"]
    assert counted["draft_ms"] > 0


def test_chat_explains_too(tiny_bundle: Path) -> None:
    turn = call("chat", tiny_bundle, "-n", 6, "--ignore-eos", "--explain", input="abcabc\n")
    assert "reason" in turn.stderr
    turn = call("chat", tiny_bundle, "-n", 6, "--explain", "--json", input="abcabc\n")
    assert json.loads(turn.stdout)["steps"]


def test_what_drafters_learn_is_kept_unless_told_not_to(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = cache_root() / "drafting"
    call("run", tiny_bundle, *SAY, "--no-store")
    assert not kept.exists()
    monkeypatch.setenv("QUICKDRAFT_NO_STORE", "1")
    call("run", tiny_bundle, *SAY)
    assert not kept.exists()
    monkeypatch.setenv("QUICKDRAFT_NO_STORE", "0")
    call("run", tiny_bundle, *SAY)
    assert len(list(kept.iterdir())) == 1
