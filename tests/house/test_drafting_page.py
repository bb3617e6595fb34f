"""docs/drafting.md names every drafter and every option, with its default and its range."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from house.repo import read

from quickdraft.registry import DRAFTERS
from quickdraft.runtime.drafting import AUTO

PAGE = Path("docs/drafting.md")


def rows(text: str) -> dict[str, list[str]]:
    """Cells of the tables whose first one is a name in code."""
    found = re.findall(r"^\| `([\w.]+)` \|(.*)\|$", text, re.M)
    return {name: [cell.strip() for cell in rest.split("|")] for name, rest in found}


def options_of(name: str) -> dict[str, tuple[str, str]]:
    """Default and range of each option, as the page writes them."""
    module = importlib.import_module(DRAFTERS[name].split(":")[0])
    found = [value for key, value in vars(module).items() if key.endswith("Options")]
    (options,) = [v for v in found if v.__module__ == module.__name__] or found
    limits: dict[str, tuple[Any, ...]] = options.LIMITS

    def shown(field: dataclasses.Field[Any]) -> tuple[str, str]:
        default = "needed" if field.default is dataclasses.MISSING else str(field.default)
        allowed = limits.get(field.name, ())
        if not allowed or isinstance(allowed[0], str):
            return default, ", ".join(allowed)
        return default, f"{allowed[0]:g} to {allowed[1]:.8g}"

    return {f"{name}.{field.name}": shown(field) for field in dataclasses.fields(options)}


def test_every_drafter_is_named() -> None:
    drafters = {name: cells for name, cells in rows(read(PAGE)).items() if "." not in name}
    assert set(drafters) == set(DRAFTERS)
    assert {name for name, cells in drafters.items() if cells[2] == "yes"} == set(AUTO)


@pytest.mark.parametrize("name", DRAFTERS)
def test_every_option_is_named_with_its_range(name: str) -> None:
    told = {
        option: (cells[0], cells[1])
        for option, cells in rows(read(PAGE)).items()
        if option.startswith(f"{name}.")
    }
    assert told == options_of(name)
