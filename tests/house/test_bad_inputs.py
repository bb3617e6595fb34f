"""The table of bad inputs names tests that exist, and covers what it should."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from house.repo import ROOT, parse, read

PAGE = Path("docs/bad-inputs.md")
LEAST_ROWS = 60
ROW = re.compile(r"^\| (\d+) \| (.+) \| (.+) \| `(tests/[\w/]+\.py)::(\w+)(?:\[(.+)\])?` \|$")


def rows() -> list[re.Match[str]]:
    lines = [line for line in read(PAGE).splitlines() if re.match(r"\| \d", line)]
    found = [(line, ROW.match(line)) for line in lines]
    assert not [line for line, match in found if match is None]
    return [match for _, match in found if match is not None]


def test_enough_inputs_are_covered() -> None:
    assert len({match[1] for match in rows()}) >= LEAST_ROWS


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[1]}-{row[5]}")
def test_the_named_test_exists(row: re.Match[str]) -> None:
    path, name, case = Path(row[4]), row[5], row[6]
    assert (ROOT / path).is_file()
    functions = {node.name for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef)}
    assert name in functions
    assert case is None or f'"{case}"' in read(path)
