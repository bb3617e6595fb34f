"""Habits that a reader of the sources should find kept: words, owners of state, clean failures."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from house.repo import ROOT, modules, parse, read, text_files

GLOSSARY = Path("docs/glossary.md")
HERE = Path("tests/house/test_habits.py")
MACHINE_PATHS = re.compile(r"(?<![\w.])/(work|tmp|root|home/\w+|Users/\w+)/|[A-Z]:\\Users\\")
REGISTRIES = re.compile(r"pypi\.org|pythonhosted|npmjs|deb\.debian|download\.pytorch|/opt/pypi")
CLAIM = re.compile(
    r"\d\s*(tokens/s|tok/s|tokens per second)|\d(\.\d+)?\s?(x|times) (faster|slower)"
)
RESULTS = re.compile(r"bench/results/[\w./-]+\.json")


def banned_words() -> list[str]:
    """The last column of the glossary."""
    rows = re.findall(r"^\|.*\|.*\|(.*)\|$", read(GLOSSARY), re.M)
    words = [word.strip() for row in rows[2:] for word in row.split(",")]
    return [word for word in words if word]


def test_one_word_per_idea() -> None:
    words = banned_words()
    assert "speculator" in words
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, words))})s?\b", re.IGNORECASE)
    found = [
        f"{path}:{number} says {match[0]!r}"
        for path in text_files()
        if path not in {GLOSSARY, HERE}
        for number, line in enumerate(read(path).splitlines(), 1)
        if (match := pattern.search(line))
    ]
    assert not found, "\n".join(found)


def test_nothing_of_one_machine() -> None:
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in text_files()
        if path != HERE
        for number, line in enumerate(read(path).splitlines(), 1)
        if MACHINE_PATHS.search(line) or REGISTRIES.search(line)
    ]
    assert not found, "\n".join(found)


def broken_habits(tree: ast.Module) -> list[str]:
    """State without an owner, failures that vanish."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            found.append(f"{node.lineno}: global {', '.join(node.names)}; state needs an owner")
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            if caught in {"everything", "Exception", "BaseException"} and not raises:
                found.append(f"{node.lineno}: catches {caught} and does not raise")
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            continue
        if re.search(r"\bos\.(environ|getenv)\b", ast.unparse(statement)):
            found.append(f"{statement.lineno}: reads settings when it is imported")
    return found


# The command line turns even the unexpected into a message and an exit code.
LAST_RESORT = {"quickdraft.cli"}


@pytest.mark.parametrize("module", sorted(modules()))
def test_state_has_an_owner_and_failures_are_kept(module: str) -> None:
    found = broken_habits(parse(modules()[module]))
    if module in LAST_RESORT:
        found = [line for line in found if "catches" not in line]
    assert not found, "\n".join(f"{modules()[module]}:{line}" for line in found)


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    global x\n    x = 1",
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept:\n    log()",
        "import os\nTHREADS = os.environ.get('THREADS')",
    ],
)
def test_planted_habits_are_found(source: str) -> None:
    assert broken_habits(ast.parse(source))


def test_options_are_frozen() -> None:
    found = []
    for module, path in modules().items():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef) and re.search(r"(Config|Options|Params)$", node.name):
                kinds = [ast.unparse(decorator) for decorator in node.decorator_list]
                if any("dataclass" in k and "frozen=True" not in k for k in kinds):
                    found.append(f"{module}.{node.name}")
    assert not found


def test_numbers_have_a_birth_certificate() -> None:
    pages = [p for p in text_files() if p.suffix == ".md" and "decisions" not in p.parts]
    found = []
    for page in pages:
        prose = re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)
        for paragraph in prose.split("\n\n"):
            links = RESULTS.findall(paragraph)
            if CLAIM.search(paragraph) and not links:
                found.append(f"{page}: no results file beside: {paragraph.strip()[:80]}")
            found += [f"{page}: {link} is missing" for link in links if not (ROOT / link).exists()]
    assert not found, "\n".join(found)
