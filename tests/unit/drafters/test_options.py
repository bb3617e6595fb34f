"""Options of drafters: what is wrong is named, nothing is clamped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from quickdraft.drafters.base import DrafterContext
from quickdraft.drafters.options import checked
from quickdraft.errors import OptionError
from quickdraft.registry import DRAFTERS, lookup


@dataclass(frozen=True)
class ToyOptions:
    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "size": (1, 8),
        "share": (0.0, 1.0),
        "method": ("chain", "tree"),
    }
    model: str
    size: int = 4
    share: float = 0.5
    wide: bool = False
    method: str = "chain"


def test_values_are_kept_and_text_is_read() -> None:
    plain = checked(ToyOptions, "toy", {"model": "m", "size": np.int64(3), "share": 1})
    assert plain == ToyOptions("m", 3, 1.0)
    assert isinstance(plain.share, float)
    text = {"model": "m", "size": "8", "share": "0.25", "wide": "true", "method": "tree"}
    assert checked(ToyOptions, "toy", text) == ToyOptions("m", 8, 0.25, True, "tree")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sise": 3}, "drafter toy has no option 'sise'; did you mean 'size'"),
        ({"LIMITS": 3}, "no option 'LIMITS'"),
        ({}, "drafter toy needs the option 'model'"),
        ({"size": 0}, "size of drafter toy is 0; it must be between 1 and 8"),
        ({"size": 9}, "between 1 and 8"),
        ({"size": 2.5}, "whole number"),
        ({"size": "2.5"}, "whole number"),
        ({"size": True}, "whole number"),
        ({"size": None}, "whole number"),
        ({"size": "many"}, "is 'many'; it must be a whole number"),
        ({"share": float("nan")}, "share of drafter toy is nan"),
        ({"share": "inf"}, "between 0.0 and 1.0"),
        ({"wide": 1}, "true or false"),
        ({"method": "bush"}, "must be one of chain, tree"),
        ({"model": 3}, "is 3; it must be text"),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, Any], said: str) -> None:
    given = {"model": "m"} | options if options else {}
    with pytest.raises(OptionError, match=said.replace("?", "[?]")):
        checked(ToyOptions, "toy", given)


@pytest.mark.parametrize("name", ["prompt_lookup", "ngram_store", "recycling", "trigram"])
def test_drafters_refuse_what_they_do_not_know(name: str) -> None:
    opener = lookup("drafter", DRAFTERS, name)
    with pytest.raises(OptionError, match=f"drafter {name} has no option 'colour'"):
        opener(DrafterContext(16, 64), {"colour": 1})
