"""`quickdraft verify`: what it prints, what it exits with, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny.process import call

from quickdraft.registry import DRAFTERS, TRAINED, TRAINED_WITH_ENCODER
from quickdraft.runtime.backends.onnxruntime import OnnxRuntimeBackend
from quickdraft.runtime.verification_prompts import PROMPTS

SMALL = ("--prompts", "3", "--tokens", "8", "--draws", "100", "--threads", "1")
PARTS = ("small_model", "auxiliary", *TRAINED, *TRAINED_WITH_ENCODER)
FREE = [n for n in DRAFTERS if n not in PARTS]


def verify(*arguments: object) -> tuple[int, dict[str, Any]]:
    done = call("verify", *arguments, "--json")
    return done.returncode, json.loads(done.stdout)


def test_json_is_the_documented_object(tiny_bundle: Path) -> None:
    code, told = verify(tiny_bundle, *SMALL)
    assert code == 0
    assert list(told)[:5] == ["model", "identical", "bits_identical", "prompts", "drafters"]
    assert told["model"] == str(tiny_bundle)
    assert (told["identical"], told["bits_identical"], told["prompts"]) == (True, True, 3)
    assert list(told["drafters"]) == [*FREE, "auto"]
    for entry in told["drafters"].values():
        assert list(entry)[:3] == ["identical", "tokens_per_step", "acceptance"]
        assert entry["identical"] is True
        assert entry["tokens_per_step"] >= 1
        assert [law["holds"] for law in entry["laws"]] == [True]
    assert list(told["untested"]) == [name for name in DRAFTERS if name not in FREE]
    assert told["differences"] == []


def test_the_table(tiny_bundle: Path) -> None:
    done = call("verify", tiny_bundle, *SMALL)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].endswith("bit_identical")
    assert lines[1] == "promised: the same tokens and the same bits as plain decoding"
    assert lines[2] == "compared: 3 prompts, up to 8 tokens, greedy and sampled"
    left = [name for name in DRAFTERS if name not in FREE]
    names = [line.split()[0] for line in lines[4:] if line][: len(DRAFTERS) + 2]
    assert names == ["drafter", *FREE, "auto", *left]
    assert "not tested: it needs a draft model" in done.stdout
    assert "not tested: the bundle has no such draft" in done.stdout
    assert lines[-1] == "Everything is as promised."
    assert not done.stderr


def test_a_backend_that_promises_less_is_held_to_that(tiny_bundle: Path) -> None:
    done = call("verify", tiny_bundle, *SMALL[:-2], "--backend", "reference")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].endswith("reference, same_distribution")
    assert lines[1].startswith("promised: plain decoding up to rounding")


@pytest.mark.parametrize(
    ("device", "said"), [("tpu", "no device 'tpu'"), ("simulated:x", "no device 'x'")]
)
def test_a_device_is_chosen_as_elsewhere(tiny_bundle: Path, device: str, said: str) -> None:
    done = call("verify", tiny_bundle, "--device", device)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_draft_model_takes_part(tiny_bundle: Path) -> None:
    code, told = verify(tiny_bundle, *SMALL, "--draft-model", tiny_bundle)
    assert code == 0
    report = told["drafters"]["small_model"]
    assert "small_model" not in told["untested"]
    assert report["acceptance"] > 0.5  # it drafts for itself
    assert [law["what"] for law in report["laws"]] == [
        *("tiny model, chain", "tiny model, tree", "tiny model, rsd_c", "tiny model, rsd_s"),
        *("tiny model, with auto", "the model"),
    ]


def test_a_fault_is_named_and_fails(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = OnnxRuntimeBackend.step

    def faulty(self: OnnxRuntimeBackend, tree: Any, *arguments: Any, **options: Any) -> Any:
        output = step(self, tree, *arguments, **options)
        if len(tree) == 2:  # what drafts of one token are verified with
            output.logits[:] = np.roll(output.logits, 1, axis=1)
        return output

    monkeypatch.setattr(OnnxRuntimeBackend, "step", faulty)
    text = tiny_bundle.parent / "own.txt"
    text.write_text("abcabcabcabcabc")
    code, told = verify(tiny_bundle, *SMALL[2:], "--text", text)
    assert code == 1
    assert (told["identical"], told["bits_identical"], told["holds"]) == (False, False, False)
    first = next(d for d in told["differences"] if not d["same_tokens"])
    assert first["prompt"] == "own.txt"
    done = call("verify", tiny_bundle, *SMALL[2:], "--text", text)
    assert done.returncode == 1
    described = [
        line
        for line in done.stdout.splitlines()
        if line.startswith(f"{first['drafter']}, prompt 'own.txt', ")
    ]
    assert f"token {first['position']}: plain has {first['plain']} " in described[0]
    assert f", drafted {first['drafted']} " in described[0]
    assert "from other logits" in described[0]
    assert done.stdout.splitlines()[-1].startswith("FAILED: ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompts", "0"], f"it must be between 1 and {len(PROMPTS)}, or give your own"),
        (["--prompts", "1000"], "prompts is 1000"),
        (["--tokens", "1"], "tokens is 1"),
        (["--draws", "1"], "draws is 1"),
        (["--text", "nowhere"], "nowhere"),
        (["--draft-model", "nowhere"], "nowhere"),
    ],
)
def test_bad_use(arguments: list[str], says: str, tiny_bundle: Path) -> None:
    done = call("verify", tiny_bundle, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("data", "more", "says"),
    [
        (b"\xff", [], "own.txt is not UTF-8"),
        (b"", [], "own.txt is empty"),
        (b"abc", ["--prompts", "3"], "--prompts counts built-in prompts"),
    ],
)
def test_bad_texts(
    data: bytes, more: list[str], says: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.txt").write_bytes(data)
    done = call("verify", tiny_bundle, "--text", tmp_path / "own.txt", *more)
    assert done.returncode == 2
    assert says in done.stderr


def test_prompts_have_names_of_their_own() -> None:
    assert len({name for name, _ in PROMPTS}) == len(PROMPTS)
    kinds = {name.split(",")[0] for name, _ in PROMPTS[:10]}
    assert {"code", "repetition", "chat", "Chinese", "JSON"} <= kinds
