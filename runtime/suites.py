"""Prompts to measure speculation on: benchmark questions from a data folder, by category.

The data are other people's and do not come with quickdraft: docs/speculation.md says which files a
folder holds. A suite is always the same prompts in the same order, spread over its file. `edit`
(code to be given back with a small change), `random` and `noise` are made here: the first answers
prompts of random tokens, which models often do with loops; the second has random tokens for answers
as well, which nobody can draft.
"""

from __future__ import annotations

import ast
import gzip
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quickdraft.errors import InputError, OptionError

VARIABLE = "QUICKDRAFT_DATA"
MAX_CHARACTERS = 6_000
"""Of the prompts of summaries; longer ones measure the prefill."""
RANDOM_PROMPTS = 40
RANDOM_TOKENS = 256
QUESTIONS_IN_A_CHAT = 2
EDITS_OF_A_KIND = 20
LEAST_LINES_EDITED = 10


@dataclass(frozen=True)
class Item:
    """A prompt. name: the same in every run. turns: what the user says, one answer after each.

    random_tokens: instead of turns, a prompt of this many tokens drawn at random; 0 for none.
    options: how it is answered, where that is part of it (see GenerationConfig).
    """

    name: str
    turns: tuple[str, ...] = ()
    random_tokens: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


SPEC_BENCH = ("multi-turn", "translation", "summarisation", "qa", "math", "rag")
"""The columns of Spec-Bench's own reports."""
CODE = ("humaneval", "mbpp")
MADE_UP = ("random", "noise")


def load_suites(
    names: Sequence[str], count: int, data: Path | None = None
) -> dict[str, tuple[Item, ...]]:
    """`count` prompts (all, where a suite has fewer) of every category named, in that order.

    data: the folder; QUICKDRAFT_DATA if it is not given. `random` and `noise` need none.

    Raises:
        OptionError: an unknown category, no prompt asked for, or no folder.
        InputError: a file of the folder is missing or is not what it should be.
    """
    if count < 1:
        raise OptionError(f"prompts is {count}; it must be at least 1")
    for name in names:
        if name not in SUITES:
            raise OptionError(f"there is no category {name!r}; available: {', '.join(SUITES)}")
    folder = data or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    suites = {}
    for name in dict.fromkeys(names):
        if folder is None and name not in MADE_UP:
            raise OptionError(
                f"the prompts of {name} are read from a data folder; name one with --data or "
                f"{VARIABLE}, or measure --categories {','.join(MADE_UP)}, which need none"
            )
        suites[name] = spread(_read_suite(name, folder or Path()), count)
    return suites


def spread(items: Sequence[Item], count: int) -> tuple[Item, ...]:
    """`count` items at equal distances, or all of them."""
    if len(items) <= count:
        return tuple(items)
    return tuple(items[number * len(items) // count] for number in range(count))


def _read_suite(name: str, folder: Path) -> list[Item]:
    try:
        items = SUITES[name](folder)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the data of {name} in {folder} lack a field: {error!r}") from None
    if not items:
        raise InputError(f"the data of {name} in {folder} hold no prompt for it")
    return items


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl or .jsonl.gz file.

    Raises:
        InputError: it is not there, or cannot be read.
    """
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
    except FileNotFoundError:
        raise InputError(
            f"{file} is missing; see the list of data in docs/speculation.md"
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def _spec_bench(column: str) -> Callable[[Path], list[Item]]:
    """One column of Spec-Bench; its first column gathers the eight categories of MT-Bench."""
    named = {
        "translation": "translation",
        "summarization": "summarisation",
        "qa": "qa",
        "math_reasoning": "math",
        "rag": "rag",
    }

    def read(folder: Path) -> list[Item]:
        return [
            Item(f"{column}/{row['question_id']}", tuple(row["turns"]))
            for row in read_rows(folder / "spec_bench" / "question.jsonl")
            if named.get(row["category"], "multi-turn") == column
        ]

    return read


def _humaneval(folder: Path) -> list[Item]:
    ask = "Complete this Python function. Answer with the whole function.\n\n```python\n{}```"
    rows = read_rows(folder / "humaneval" / "HumanEval.jsonl")
    return [Item(row["task_id"], (ask.format(row["prompt"]),)) for row in rows]


def _mbpp(folder: Path) -> list[Item]:
    """The test split, asked as its authors do: the task and its tests."""
    items = []
    for row in _mbpp_rows(folder):
        tests = "\n".join(row["test_list"])
        text = f"You are an expert Python programmer, and here is your task: {row['text']} "
        asked = text + f"Your code should pass these tests:\n\n{tests}"
        items.append(Item(f"MBPP/{row['task_id']}", (asked,)))
    return items


def _mbpp_rows(folder: Path) -> Iterator[dict[str, Any]]:
    rows = read_rows(folder / "mbpp" / "mbpp.jsonl")
    return (row for row in rows if row["split"] == "test")


def _gsm8k(folder: Path) -> list[Item]:
    ask = "{}\nThink step by step."
    rows = read_rows(folder / "gsm8k" / "test.jsonl")
    return [Item(row["id"], (ask.format(row["question"]),)) for row in rows]


def _lexsum(folder: Path) -> list[Item]:
    ask = "Summarise this court case in one short paragraph.\n\n{}"
    rows = read_rows(folder / "summarization" / "multi_lexsum.jsonl.gz")
    return [
        Item(row["id"], (ask.format(row["input"]),))
        for row in rows
        if len(row["input"]) <= MAX_CHARACTERS
    ]


def _chat(folder: Path) -> list[Item]:
    """Conversations of four turns: two questions of two turns from one category of MT-Bench."""
    by_category: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(folder / "mt_bench" / "question.jsonl"):
        by_category.setdefault(row["category"], []).append(row)
    items = []
    for rows in by_category.values():
        for start in range(0, len(rows) - QUESTIONS_IN_A_CHAT + 1, QUESTIONS_IN_A_CHAT):
            group = rows[start : start + QUESTIONS_IN_A_CHAT]
            name = "+".join(str(row["question_id"]) for row in group)
            items.append(
                Item(f"chat/{name}", tuple(turn for row in group for turn in row["turns"]))
            )
    return items


def _edit(folder: Path) -> list[Item]:
    """Programs to be given back changed: as many of every kind of change, kind after kind."""
    rows = read_rows(folder / "humaneval" / "HumanEval.jsonl")
    programs = {row["task_id"]: row["prompt"] + row["canonical_solution"] for row in rows}
    programs |= {f"MBPP/{row['task_id']}": row["code"] for row in _mbpp_rows(folder)}
    functions = {name: _functions(code) for name, code in programs.items()}
    items: list[Item] = []
    for asked in (_rename, _hints, _docstring):
        found: list[Item] = []
        for name in list(functions):
            change = asked(functions[name]) if functions[name] else None
            if change is not None and len(found) < EDITS_OF_A_KIND:
                del functions[name]  # a program is edited once
                text = (
                    f"{change} Return the whole code.\n\n```python\n{programs[name].strip()}\n```"
                )
                found.append(Item(f"edit/{name}", (text,)))
        items += found
    return items


def _functions(code: str) -> list[ast.FunctionDef]:
    """The functions of a program; none if it is short, or is no Python."""
    if sum(bool(line.strip()) for line in code.splitlines()) < LEAST_LINES_EDITED:
        return []
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return []
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def _rename(functions: Sequence[ast.FunctionDef]) -> str | None:
    """The name used most, first in the alphabet among equals."""
    function = functions[-1]
    bound = {argument.arg for argument in function.args.args}
    uses: dict[str, int] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            uses[node.id] = uses.get(node.id, 0) + 1
            if isinstance(node.ctx, ast.Store):
                bound.add(node.id)
    known = sorted(name for name in bound & uses.keys() if uses[name] > 1)
    if not known:
        return None
    name = max(known, key=lambda known: uses[known])
    return f"Rename the variable `{name}` of `{function.name}` to `{name}_value`."


def _hints(functions: Sequence[ast.FunctionDef]) -> str | None:
    if all(function.returns is not None for function in functions):
        return None
    return "Add type hints to every function, and change nothing else."


def _docstring(functions: Sequence[ast.FunctionDef]) -> str | None:
    function = functions[-1]
    if ast.get_docstring(function) is not None:
        return None
    return f"Add a docstring to `{function.name}`, and change nothing else."


def _random(folder: Path) -> list[Item]:
    return [Item(f"random/{n}", random_tokens=RANDOM_TOKENS) for n in range(RANDOM_PROMPTS)]


def _noise(folder: Path) -> list[Item]:
    """Every token of the vocabulary is about as likely as any other."""
    drawn = {"temperature": 100.0, "top_k": 0, "top_p": 1.0, "ignore_eos": True}
    return [
        replace(item, name=f"noise/{n}", options=drawn) for n, item in enumerate(_random(folder))
    ]


SUITES: Mapping[str, Callable[[Path], list[Item]]] = {
    **{column: _spec_bench(column) for column in SPEC_BENCH},
    "humaneval": _humaneval,
    "mbpp": _mbpp,
    "gsm8k": _gsm8k,
    "multi-lexsum": _lexsum,
    "chat": _chat,
    "edit": _edit,
    "random": _random,
    "noise": _noise,
}
