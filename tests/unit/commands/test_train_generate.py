"""`quickdraft train generate`: the same answers whatever happens on the way."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tiny.models import write_tiny_model
from tiny.process import PROGRAM, call

from quickdraft.answers import AnswersWriter, read_answers
from quickdraft.errors import InputError

ROWS = [{"id": f"row-{n}", "prompt": f"Count to {n}, please."} for n in range(24)]
OPTIONS = ("-n", "24", "--threads", "1", "--backend", "onnxruntime", "--seed", "7")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    return file


def generate(model: Path, prompts: Path, out: Path, *options: object) -> dict[str, Any]:
    arguments = (model, "--prompts", prompts, "-o", out, *OPTIONS, *options, "--json")
    done = call("train", "generate", *arguments)
    told: dict[str, Any] = json.loads(done.stdout)
    return told | {"code": done.returncode}


def test_every_prompt_gets_the_answer_of_the_model(
    tiny_bundle: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    told = generate(tiny_bundle, prompts, out)
    assert (told["code"], told["complete"], told["answers"]) == (0, True, 24)
    header, answers = read_answers(out)
    found = list(answers)
    assert header.vocab_size == 320
    assert {answer.id for answer in found} == {row["id"] for row in ROWS}
    assert [a.id for a in found] != sorted(a.id for a in found)  # a mix, however short
    assert {answer.temperature for answer in found} == {0.0, 0.6, 0.8, 1.0}
    assert told["tokens"] == sum(len(answer.answer) for answer in found)
    for answer in found[:6]:
        ids = [str(token) for token in answer.prompt]
        text = next(row["prompt"] for row in ROWS if row["id"] == answer.id)
        run = ("--temperature", answer.temperature, "--seed", answer.seed, "--drafter", "none")
        plain = call("run", tiny_bundle, text, *run, "-n", "24", *OPTIONS[2:6], "--json")
        assert json.loads(plain.stdout)["token_ids"] == list(answer.answer)
        assert json.loads(plain.stdout)["timings"]["prompt_n"] == len(ids)


def test_an_answer_depends_on_its_prompt_and_the_seed_alone(
    tiny_bundle: Path, prompts: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "few.jsonl"
    plain.write_text("".join(json.dumps(row) + "\n" for row in ROWS[5:9]))
    generate(tiny_bundle, prompts, tmp_path / "all.jsonl")
    generate(tiny_bundle, plain, tmp_path / "some.jsonl")
    generate(tiny_bundle, plain, tmp_path / "other.jsonl", "--seed", "8")
    every = {answer.id: answer for answer in read_answers(tmp_path / "all.jsonl")[1]}
    some = list(read_answers(tmp_path / "some.jsonl")[1])
    other = list(read_answers(tmp_path / "other.jsonl")[1])
    assert len(some) == 4
    assert all(every[answer.id] == answer for answer in some)
    assert all(every[answer.id] != answer for answer in other)


def test_several_prompts_at_once_get_the_answers_that_each_gets_alone(
    tiny_bundle: Path, prompts: Path, tmp_path: Path
) -> None:
    alone, out = tmp_path / "alone.jsonl", tmp_path / "together.jsonl"
    generate(tiny_bundle, prompts, alone, "--drafter", "none")
    told = generate(tiny_bundle, prompts, out, "--batch", 5)
    assert (told["code"], told["complete"], told["answers"]) == (0, True, 24)
    assert told["steps"] < told["tokens"] / 3
    headers = [read_answers(file)[0] for file in (alone, out)]
    assert headers[0] == headers[1]
    lines = [sorted(file.read_bytes().splitlines()) for file in (alone, out)]
    assert lines[0] == lines[1]
    # Whatever was answered before it was killed, the rest is the same.
    part = tmp_path / "part.jsonl"
    part.write_bytes(b"".join(out.read_bytes().splitlines(True)[:9]) + b'{"torn')
    told = generate(tiny_bundle, prompts, part, "--batch", 3)
    assert (told["complete"], told["answers"]) == (True, 16)
    assert sorted(part.read_bytes().splitlines()) == lines[0]


@pytest.mark.parametrize(
    "options",
    [
        ("--batch", 0),
        ("--batch", 65),
        ("--batch", 4, "--drafter", "auto"),
        ("--batch", 4, "--prefill", "predicted"),
        ("--batch", 4, "--drafter-option", "prompt_lookup.max_tokens=4"),
    ],
)
def test_what_says_nothing_together_is_refused(
    tiny_bundle: Path, prompts: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    told = generate(tiny_bundle, prompts, tmp_path / "a.jsonl", *options)
    assert told["code"] == 2
    assert "batch is" in told["error"]["message"]


def test_killed_at_any_moment_it_reaches_the_same_file(
    tiny_bundle: Path, prompts: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    generate(tiny_bundle, prompts, whole)
    line = [*PROGRAM, "train", "generate", tiny_bundle, "--prompts", prompts, "-o", out, *OPTIONS]
    process = subprocess.Popen([*map(str, line)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not out.exists() or out.read_bytes().count(b"\n") < 4:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    held = out.read_bytes()
    assert len(held) < whole.stat().st_size
    assert generate(tiny_bundle, prompts, out)["complete"]
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_a_torn_line_is_dropped(tiny_bundle: Path, prompts: Path, tmp_path: Path, cut: int) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    generate(tiny_bundle, prompts, whole, "--limit", "6")
    data = whole.read_bytes()
    out.write_bytes(data[:-cut])
    assert len(list(read_answers(out)[1])) < 6
    told = generate(tiny_bundle, prompts, out, "--limit", "6")
    assert told["answers"] == 6 - (data[:-cut].count(b"\n") - 1)
    assert out.read_bytes() == data
    out.write_bytes(data[:30])  # not even the first line
    generate(tiny_bundle, prompts, out, "--limit", "6")
    assert out.read_bytes() == data


def test_an_interrupt_loses_one_answer(tiny_bundle: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    line = [*PROGRAM, "train", "generate", tiny_bundle, "--prompts", prompts, "-o", out]
    more = ["-n", "30000", "--temperature", "0", "--backend", "onnxruntime"]
    process = subprocess.Popen([*map(str, [*line, *more])], stdout=subprocess.PIPE, text=True)
    while not out.exists() or not out.read_bytes().count(b"\n"):
        time.sleep(0.005)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in said
    held = list(read_answers(out)[1])
    assert all(answer.finish != "cancelled" for answer in held)


def test_time_is_kept(tiny_bundle: Path, prompts: Path, tmp_path: Path) -> None:
    told = generate(tiny_bundle, prompts, tmp_path / "a.jsonl", "--budget", "1e-9")
    assert (told["code"], told["complete"], told["answers"]) == (0, False, 0)


def test_long_prompts_are_left_out(tiny_bundle: Path, prompts: Path, tmp_path: Path) -> None:
    generate(tiny_bundle, prompts, tmp_path / "all.jsonl")
    lengths = sorted(len(answer.prompt) for answer in read_answers(tmp_path / "all.jsonl")[1])
    short = [length for length in lengths if length < lengths[-1]]
    out = tmp_path / "some.jsonl"
    told = generate(tiny_bundle, prompts, out, "--max-prompt-tokens", short[-1])
    assert told["complete"]
    assert told["skipped"] == 24 - len(short)
    assert sorted(len(answer.prompt) for answer in read_answers(out)[1]) == short


def test_answers_are_not_mixed(tiny_bundle: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    generate(tiny_bundle, prompts, out, "--limit", "2")
    held = out.read_bytes()
    told = generate(tiny_bundle, prompts, out, "--limit", "2", "--temperature", "0.5")
    assert told["code"] == 2
    assert "another options" in told["error"]["message"]
    write_tiny_model(tmp_path / "other", hidden_size=64)
    told = generate(tmp_path / "other", prompts, out, "--limit", "2")
    assert "another fingerprint" in told["error"]["message"]
    assert out.read_bytes() == held


def test_one_writer_at_a_time(tiny_bundle: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    generate(tiny_bundle, prompts, out, "--limit", "2")
    header, _ = read_answers(out)
    with AnswersWriter(out, header), pytest.raises(InputError, match="another process"):
        AnswersWriter(out, header)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "hold no prompt"),
        ('{"id": "a"}\n', "line 1 has no text under prompt"),
        ('{"prompt": "x", "id": []}\n', "has the id"),
        ('{"prompt": "x", "id": 1}\n{"prompt": "y", "id": 1}\n', "id of another prompt"),
        ("[1]\n", "is not an object"),
        ("{\n", "is not JSON"),
    ],
)
def test_bad_prompts(tiny_bundle: Path, tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(content)
    told = generate(tiny_bundle, file, tmp_path / "answers.jsonl")
    assert told["code"] == 2
    assert said in told["error"]["message"]


def test_damage_before_the_end_is_named(tiny_bundle: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    generate(tiny_bundle, prompts, out, "--limit", "3")
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join([*lines[:2], b"{}\n", *lines[3:]]))
    told = generate(tiny_bundle, prompts, out, "--limit", "3")
    assert told["code"] == 2
    assert "line 3" in told["error"]["message"]
