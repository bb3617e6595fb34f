"""Small in the tail: files, functions and parameter lists have limits.

An exception is a line in EXCEPTIONS with its size and a reason. The list may only shrink: a size
that grows fails, and so does an exception that is no longer needed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from house.repo import parse, python_files, read

FILE_LINES = 400
FUNCTION_LINES = 60
PARAMETERS = 8

# "path" or "path:function" or "path:function()" (parameters) -> (size, reason)
EXCEPTIONS: dict[str, tuple[int, str]] = {
    "quickdraft/api.py:load()": (12, "the options of opening a model, flat and documented"),
}


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of a file, methods included, by dotted name."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            name = f"{prefix}{child.name}" if named else prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield name, child
            yield from walk(child, f"{name}." if named else prefix)

    yield from walk(tree, "")


def count_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters a caller thinks about: all but self and cls; only click calls a command."""
    if any(ast.unparse(decorator).startswith("click.") for decorator in function.decorator_list):
        return 0
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return sum(argument.arg not in {"self", "cls"} for argument in named)


def sizes(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, size and limit of everything measured in a file."""
    yield path.as_posix(), len(read(path).splitlines()), FILE_LINES
    for name, function in functions(parse(path)):
        where = f"{path.as_posix()}:{name}"
        yield where, (function.end_lineno or 0) - function.lineno + 1, FUNCTION_LINES
        yield f"{where}()", count_parameters(function), PARAMETERS


def test_sizes() -> None:
    found = []
    seen = set()
    for path in python_files():
        for name, size, limit in sizes(path):
            seen.add(name)
            allowed, _ = EXCEPTIONS.get(name, (limit, ""))
            if size > allowed:
                found.append(f"{name} is {size}, the limit is {allowed}")
            elif name in EXCEPTIONS and size <= limit:
                found.append(f"{name} is {size} now: remove its exception")
    found += [f"{name} is gone: remove its exception" for name in EXCEPTIONS if name not in seen]
    assert not found, "\n".join(found)


def test_exceptions_have_reasons() -> None:
    assert all(reason for _, reason in EXCEPTIONS.values())


@pytest.mark.parametrize(
    ("source", "name", "size"),
    [
        ("class A:\n    def f(self, a, b, *, c):\n        pass", "A.f", 3),
        ("def f(a):\n    def g(b, c): ...", "f.g", 2),
        ("@click.command()\n@click.option('--b')\ndef f(a, b): ...", "f", 0),
    ],
)
def test_functions_are_found(source: str, name: str, size: int) -> None:
    assert count_parameters(dict(functions(ast.parse(source)))[name]) == size
