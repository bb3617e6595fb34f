"""`quickdraft bench` on a tiny model: the four shapes of its table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tiny.process import call

from quickdraft.commands import bench

SMALL = ("-p", "8,16", "-n", "4", "-r", "2")
FIELDS = [
    "model", "size", "params", "backend", "simulated", "flavour", "device", "isa",
    "kv_cache", "threads", "test", "mean", "deviation", "slowest", "acceptance",
    "tokens_per_step", "seconds",
]  # fmt: skip


def check(rows: list[dict[str, Any]]) -> None:
    assert [row["test"] for row in rows] == ["pp8", "pp16", "tg4"]
    for row in rows:
        assert float(row["mean"]) >= float(row["slowest"]) > 0
        assert int(row["params"]) == 45_216


@pytest.mark.parametrize("flag", [("--json",), ("-o", "json")])
def test_json(flag: tuple[str, ...], tiny_bundle: Path) -> None:
    done = call("bench", tiny_bundle, *SMALL, *flag)
    assert done.returncode == 0
    rows = json.loads(done.stdout)
    check(rows)
    assert list(rows[0]) == FIELDS
    assert len(rows[0]["seconds"]) == 2


def test_json_lines(tiny_bundle: Path) -> None:
    done = call("bench", tiny_bundle, *SMALL, "-o", "jsonl", "--threads", "1")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    check(rows)
    assert rows[0]["threads"] == 1


def test_csv(tiny_bundle: Path) -> None:
    done = call("bench", tiny_bundle, *SMALL, "-o", "csv")
    rows = list(csv.DictReader(done.stdout.splitlines()))
    check(rows)
    assert list(rows[0]) == FIELDS


def test_a_device_stands_beside_its_backend() -> None:
    row = dict.fromkeys(FIELDS) | {"backend": "openvino", "device": "GPU.1"}
    assert bench._place(row) == "openvino:GPU.1"
    assert bench._place(row | {"device": "CPU"}) == "openvino"


def test_markdown_is_a_table_and_states_its_method(tiny_bundle: Path) -> None:
    done = call("bench", tiny_bundle, *SMALL)
    head, rule, *rows, _, method = done.stdout.splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        "model", "size", "params", "backend", "threads", "test", "t/s", "min t/s",
    ]  # fmt: skip
    assert set(rule) == set("|- ")
    assert len({len(line) for line in [head, rule, *rows]}) == 1
    assert "±" in rows[0]
    assert "2 repetitions" in method
    assert "no tokenising, no sampling" in method


def test_drafters_are_measured_on_text(tiny_bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "prompt.txt"
    text.write_text("one two one two one two")
    done = call(
        "bench", tiny_bundle, "-p", "", "-n", "6", "-r", "1", "--text", text,
        "--drafter", "none", "--drafter", "prompt_lookup", "--json",
    )  # fmt: skip
    tests = {row["test"]: row for row in json.loads(done.stdout)}
    assert list(tests) == ["tg6", "text6 none", "text6 prompt_lookup"]
    assert tests["text6 none"]["tokens_per_step"] == 1
    assert tests["tg6"]["tokens_per_step"] is None
    done = call("bench", tiny_bundle, "-p", "", "-n", "6", "-r", "1", "--drafter", "none")
    assert "tokens/step" in done.stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-r", "0"], "repetitions is 0"),
        (["-r", "x"], "--repetitions"),
        (["-p", "x"], "--prompts"),
        (["-p", "0"], "0 tokens"),
        (["-p", "1000000"], "1000000 tokens"),
        (["-n", "-1"], "-1 tokens"),
        (["-p", "", "-n", ""], "nothing to measure"),
        (["-p", "", "--drafter", "prompt_lokup"], "did you mean 'prompt_lookup'"),
        (["-o", "xml"], "--output"),
        (["--text", "/no/such/file"], "--text"),
        (["--threads", "0"], "threads is 0"),
    ],
)
def test_bad_options(arguments: list[str], says: str, tiny_bundle: Path) -> None:
    done = call("bench", tiny_bundle, "-p", "4", "-n", "2", "-r", "1", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert not done.stdout
