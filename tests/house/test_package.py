"""The package as it is packaged: tables, links, public names, errors."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re

import pytest
from house.repo import ROOT, files, modules, package_folders, parse, pyproject, read

import quickdraft
from quickdraft import errors

VIEW = ROOT / "pkgview" / "quickdraft"


def test_packaging_table_matches_the_folders() -> None:
    folders = set(package_folders().values())
    assert folders == {p.parts[0] for p in modules().values()}
    roots = {p.parts[0] for p in files() if len(p.parts) == 2 and p.name == "__init__.py"}
    assert roots == folders
    banned = pyproject()["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert set(banned) == folders - {"quickdraft"}
    assert set(pyproject()["tool"]["coverage"]["run"]["source"]) == folders


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in modules().values()}
    assert not [f for f in folders if not (ROOT / f / "__init__.py").exists()]


@pytest.mark.skipif(os.name == "nt", reason="links need rights that Windows users lack")
def test_view_for_type_checkers_matches_the_folders() -> None:
    links = {link.name: os.readlink(link) for link in VIEW.iterdir()}
    wanted = {name: f"../../{name}" for name in package_folders().values() if name != "quickdraft"}
    for path in files():
        if path.parts[0] == "quickdraft" and path.suffix in {".py", ".typed"}:
            wanted[path.parts[1]] = f"../../quickdraft/{path.parts[1]}"
    assert links == wanted, "pkgview/quickdraft needs one relative link per file and folder"


def test_public_names() -> None:
    names = quickdraft.__all__
    assert names == sorted(names)
    for name in set(names) - {"__version__"}:
        value = getattr(quickdraft, name)
        assert inspect.getdoc(value), f"quickdraft.{name} has no docstring"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = quickdraft.nothing


def test_public_names_are_the_same_for_type_checkers() -> None:
    seen = {
        alias.name: node.module
        for guard in ast.walk(parse(modules()["quickdraft"]))
        if isinstance(guard, ast.If)
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = quickdraft._LAZY
    assert seen == lazy
    assert set(lazy) | {"__version__"} == set(quickdraft.__all__)


@pytest.mark.parametrize("table", ["ARCHITECTURES", "EMITTERS", "BACKENDS", "DRAFTERS"])
def test_registry_leads_somewhere(table: str) -> None:
    entries = getattr(importlib.import_module("quickdraft.registry"), table)
    assert entries, f"{table} is empty"
    for name, target in entries.items():
        module, attribute = target.split(":")
        assert hasattr(importlib.import_module(module), attribute), f"{name} -> {target}"


def error_classes() -> list[type[errors.QuickdraftError]]:
    found = [c for _, c in inspect.getmembers(errors, inspect.isclass)]
    return [c for c in found if issubclass(c, errors.QuickdraftError)]


def test_every_error_is_drawn_with_its_exit_code() -> None:
    drawing = (errors.__doc__ or "").splitlines()
    code = 1
    for error in error_classes():
        (line,) = [text for text in drawing if re.search(rf"\b{error.__name__}\b", text)]
        stated = re.search(r"exit code (\d+)", line)
        inherited = error.__mro__[1].exit_code if error is not errors.QuickdraftError else code
        assert error.exit_code == (int(stated[1]) if stated else inherited), line


@pytest.mark.parametrize("error", error_classes(), ids=lambda e: e.__name__)
def test_every_error_appears_in_a_test(error: type[Exception]) -> None:
    tests = [p for p in files() if p.parts[0] == "tests" and p.name.startswith("test_")]
    outside = [path for path in tests if path.parts[1] != "house"]
    assert any(re.search(rf"\b{error.__name__}\b", read(path)) for path in outside)


def test_version_and_changelog_agree() -> None:
    version = pyproject()["project"]["version"]
    assert quickdraft.__version__ == version
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert headings[0] in {"Unreleased", version}
