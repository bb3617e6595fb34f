"""The drafter that docs/drafting.md shows, as if its file and its line were in place."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).parents[2] / "docs" / "drafting.md"


def _documented() -> dict[str, str]:
    """Make a module of the page's file, and return the page's line of the registry."""
    text = PAGE.read_text(encoding="utf-8")
    section = text[text.index("## Add a drafter") :]
    file = re.search(r"^```python\n(.*?)^```$", section, re.M | re.S)
    line = re.search(r"^```\n(\"\w+\": \"[\w.]+:\w+\"),\n```$", section, re.M)
    assert file is not None
    assert line is not None
    table: dict[str, str] = ast.literal_eval(f"{{{line[1]}}}")
    for path in table.values():
        name = path.split(":")[0]
        module = ModuleType(name)
        sys.modules[name] = module  # dataclasses look their module up
        exec(compile(file[1], str(PAGE), "exec"), module.__dict__)
    return table


DOCUMENTED: Mapping[str, str] = _documented()
