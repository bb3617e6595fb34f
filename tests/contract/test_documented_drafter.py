"""The drafter of docs/drafting.md, used as its page says: by name, with its option."""

from __future__ import annotations

from typing import cast

import pytest
from tiny.documented import DOCUMENTED
from tiny.toy_backend import scripted
from tiny.toy_model import VOCAB, bytes_of, toy_model

from quickdraft.errors import OptionError
from quickdraft.registry import DRAFTERS
from quickdraft.runtime.law_checks import cases_of, check_tiny

SAYS = "a" + "-" * 60 + "b"


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, path in DOCUMENTED.items():
        monkeypatch.setitem(cast("dict[str, str]", DRAFTERS), name, path)


@pytest.mark.parametrize("length", [None, 4])
def test_it_drafts_by_name(length: int | None) -> None:
    options = {} if length is None else {"echo": {"length": length}}
    logits = scripted(VOCAB, 1, bytes_of(SAYS))
    model = toy_model(logits, drafter="echo", options=options)
    drafted = model.generate("?", max_new_tokens=len(SAYS), num_draft_tokens=32)
    plain = model.generate("?", max_new_tokens=len(SAYS), num_draft_tokens=0)
    assert drafted.text == plain.text == SAYS
    assert drafted.timings.draft_n_accepted > 40
    longest = max(step.drafted for step in drafted.steps)
    assert longest == (length or 8)


def test_its_option_is_checked() -> None:
    with pytest.raises(OptionError, match="length of drafter echo is 0"):
        toy_model(drafter="echo", options={"echo": {"length": 0}})


def test_it_follows_the_law() -> None:
    (case,) = cases_of("echo")
    assert check_tiny(case, 300, lambda: None).holds
