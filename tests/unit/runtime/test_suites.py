"""Suites of prompts, from a small data folder and, where it is there, from the real one."""

from __future__ import annotations

import ast
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny.lines import data_folder

from quickdraft.errors import InputError, OptionError
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.suites import MADE_UP, SUITES, Item, load_suites, spread

PROGRAM = """
def count_words(text):
    counts = {}
    for word in text.split():
        if word in counts:
            counts[word] += 1
        else:
            counts[word] = 1
    best = None
    for word in counts:
        if best is None or counts[word] > counts[best]:
            best = word
    return best
"""
HEAD, BODY = PROGRAM.strip().split("\n", 1)


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    kinds = ("writing", "translation", "summarization", "qa", "math_reasoning", "rag")
    questions = [
        {
            "question_id": n,
            "category": kind,
            "turns": [f"{kind}?"] + ["More?"] * (kind == "writing"),
        }
        for n, kind in enumerate(kinds)
    ]
    write(tmp_path, "spec_bench/question.jsonl", questions)
    chats = [
        {"question_id": n, "category": c, "turns": [f"{n}a", f"{n}b"]}
        for n, c in enumerate(("roleplay", "stem", "roleplay", "roleplay"))
    ]
    write(tmp_path, "mt_bench/question.jsonl", chats)
    code = {"prompt": HEAD + "\n", "canonical_solution": BODY}
    write(tmp_path, "humaneval/HumanEval.jsonl", [{"task_id": "HumanEval/1", **code}])
    task = {"text": "Count.", "test_list": ["assert f(1) == 1"]}
    write(
        tmp_path,
        "mbpp/mbpp.jsonl",
        [
            {"task_id": 1, "split": "train", "code": PROGRAM, **task},
            {"task_id": 2, "split": "test", "code": PROGRAM, **task},
            {"task_id": 3, "split": "test", "code": "x = 1", **task},
            {"task_id": 4, "split": "test", "code": "def f(:\n" * 20, **task},
            {"task_id": 5, "split": "test", "code": PROGRAM, **task},
        ],
    )
    write(tmp_path, "gsm8k/test.jsonl", [{"id": "g", "question": "How many?"}])
    cases = [{"id": "long", "input": "x" * 6001}, {"id": "short", "input": "A case."}]
    write(tmp_path, "summarization/multi_lexsum.jsonl.gz", cases)
    return tmp_path


def test_every_suite_is_read(folder: Path) -> None:
    suites = load_suites(list(SUITES), 10, folder)
    assert list(suites) == list(SUITES)
    first = {name: items[0] for name, items in suites.items()}
    assert first["multi-turn"].turns == ("writing?", "More?")
    assert first["math"].turns == ("math_reasoning?",)
    assert first["chat"] == Item("chat/0+2", ("0a", "0b", "2a", "2b"))
    assert len(suites["chat"]) == 1
    assert HEAD in first["humaneval"].turns[0]
    assert "assert f(1) == 1" in first["mbpp"].turns[0]
    assert [item.name for item in suites["mbpp"]] == ["MBPP/2", "MBPP/3", "MBPP/4", "MBPP/5"]
    assert [item.name for item in suites["multi-lexsum"]] == ["short"]
    assert first["random"].random_tokens > 0
    assert not first["random"].options
    GenerationConfig.from_dict(first["noise"].options)


def test_programs_are_edited_once_each_in_every_way(folder: Path) -> None:
    items = load_suites(["edit"], 10, folder)["edit"]
    # One kind of change finds all programs; the others find none that is left.
    assert [item.name for item in items] == ["edit/HumanEval/1", "edit/MBPP/2", "edit/MBPP/5"]
    for item in items:
        (text,) = item.turns
        assert text.startswith("Rename the variable `counts` of `count_words` to `counts_value`.")
        assert PROGRAM.strip() in text


def test_prompts_are_spread() -> None:
    items = [Item(str(n)) for n in range(10)]
    assert [item.name for item in spread(items, 4)] == ["0", "2", "5", "7"]
    assert spread(items, 10) == spread(items, 99) == tuple(items)


def test_made_up_suites_need_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUICKDRAFT_DATA", raising=False)
    assert [len(items) for items in load_suites(MADE_UP, 3).values()] == [3, 3]
    with pytest.raises(OptionError, match="name one with --data or QUICKDRAFT_DATA"):
        load_suites(["random", "qa"], 3)


def test_the_folder_of_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICKDRAFT_DATA", str(folder))
    assert load_suites(["qa"], 1)["qa"] == (Item("qa/3", ("qa?",)),)


@pytest.mark.parametrize(
    ("names", "count", "says"),
    [(["qa"], 0, "prompts is 0"), (["qa", "poems"], 1, "there is no category 'poems'; available")],
)
def test_bad_options(names: list[str], count: int, says: str, folder: Path) -> None:
    with pytest.raises(OptionError, match=says):
        load_suites(names, count, folder)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "is missing; see the list of data"),
        (b"{", "cannot be read"),
        (b"\xff\n", "cannot be read"),
        (b"7\n", "lack a field"),
        (b'{"category": "qa"}\n', "lack a field: KeyError"),
        (b"", "hold no prompt"),
    ],
)
def test_bad_data(data: bytes | None, says: str, folder: Path) -> None:
    file = folder / "spec_bench" / "question.jsonl"
    file.unlink()
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(InputError, match=says):
        load_suites(["qa"], 1, folder)


@pytest.mark.skipif(not data_folder().is_dir(), reason="there is no data folder")
def test_the_real_data() -> None:
    suites = load_suites(list(SUITES), 1000, data_folder())
    assert min(len(items) for items in suites.values()) >= 20
    assert suites == load_suites(list(SUITES), 1000, data_folder())
    for items in suites.values():
        names = [item.name for item in items]
        assert len(set(names)) == len(names)
    asked = [item.turns[0] for item in suites["edit"]]
    for start in ("Rename the variable", "Add type hints", "Add a docstring"):
        assert sum(text.startswith(start) for text in asked) == 20
    for text in asked:
        found = re.search("```python\n(.*)\n```", text, re.S)
        assert found
        ast.parse(found[1])
