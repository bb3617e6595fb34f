"""The licence a card states, and nothing of a card that states none."""

from __future__ import annotations

from pathlib import Path

import pytest

from quickdraft.export.checkpoints.model_card import MAX_FRONT_MATTER, read_licence


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# Model", "apache-2.0"),
        ("\ufeff---\r\ntags:\r\n- x\r\nlicense: 'mit' # free\r\n---\r\n", "mit"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense:\n- mit\n---\n", None),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\nlicense: a\x1b[31mb\n---\n", None),
        ("---\nx:\n  license: mit\n---\n", None),
        ("---\ntags: x\n---\nlicense: mit\n", None),
        ("# license: mit\n", None),
        ("---\nlicense: mit\n", None),
        (f"---\nx: {'y' * MAX_FRONT_MATTER}\nlicense: mit\n---\n", None),
        ("", None),
    ],
)
def test_licences(card: str, licence: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card, encoding="utf-8", newline="")
    assert read_licence(tmp_path) == licence


def test_no_card_and_a_folder_of_that_name(tmp_path: Path) -> None:
    assert read_licence(tmp_path) is None
    (tmp_path / "README.md").mkdir()
    assert read_licence(tmp_path) is None
