"""Documents execute: every console, python and cpp block of README.md, CONTRIBUTING.md and docs/.

A fence may carry one word after its language. `models`: the block needs a real model and runs in
that lane. `native`: it needs the native library. `ci`: the block sets up the repository itself, so
it is looked up in .ci/run instead. `by-hand`: the block publishes or asks a person; only its
commands' names are checked.

A console block is a transcript: lines after `$ ` are run, and what follows a command must be
what it prints (`...` stands for anything). A cpp block is a program over the headers of
runtime/csrc. Each block runs in an empty folder of its own.
"""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from house.repo import ROOT, files, read

PAGES = [
    path
    for path in files()
    if path.suffix == ".md" and (path.parts[0] == "docs" or len(path.parts) == 1)
]
FENCE = re.compile(r"^```(console|python|cpp)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TAGS = {"", "models", "native", "ci", "by-hand"}
MARKS = {
    "models": [pytest.mark.models, pytest.mark.timeout(900)],
    "native": [pytest.mark.native],
}
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """One fenced block: where it stands and what it holds."""

    page: Path
    line: int
    language: str
    tag: str
    text: str

    @property
    def commands(self) -> list[tuple[str, str]]:
        """Commands of a console block, each with what it should print ("" for not said)."""
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)
        assert not parts[0].strip(), f"{self.page}:{self.line} starts without a command"
        return [(p.partition("\n")[0], p.partition("\n")[2]) for p in parts[1:]]


def blocks_of(page: Path, text: str) -> list[Block]:
    """The executable blocks of a page."""
    return [
        Block(page, text[: match.start()].count("\n") + 1, match[1], match[2] or "", match[3])
        for match in FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page, read(page))]


def as_parameters(*tags: str) -> list[Any]:
    """Blocks with one of these tags as test parameters, marked by what they need."""
    return [
        pytest.param(
            block,
            id=f"{block.page}:{block.line}",
            marks=MARKS.get(block.tag, []),
        )
        for block in BLOCKS
        if block.tag in tags
    ]


def run_block(block: Block, folder: Path) -> None:
    """Run a block in `folder`; fail with its output if it fails or prints something else."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    env = {**os.environ, "PATH": path}
    if block.language == "python":
        commands = [([sys.executable, "-c", block.text], "")]
    elif block.language == "cpp":
        compiler = shutil.which("c++") or shutil.which("g++")
        if compiler is None:
            pytest.skip("needs a C++ compiler")
        (folder / "block.cpp").write_text(block.text, encoding="utf-8")
        flags = ("-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'runtime' / 'csrc'}")
        program = str(folder / "program")
        commands = [([compiler, *flags, "block.cpp", "-o", program], ""), ([program], "")]
    else:
        shell = shutil.which("bash")
        if shell is None:
            pytest.skip("needs bash")
        commands = [
            ([shell, "-eo", "pipefail", "-c", command], want) for command, want in block.commands
        ]
    for command, want in commands:
        result = subprocess.run(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        shown = f"{command[-1]}\n{result.stdout}{result.stderr}"
        assert result.returncode == 0, f"exit code {result.returncode} from {shown}"
        if want.strip():
            assert doctest.OutputChecker().check_output(want, result.stdout, SAME), (
                f"the page says\n{want}\nbut this printed something else: {shown}"
            )


@pytest.mark.parametrize("block", as_parameters("", "models", "native"))
def test_block_runs(block: Block, tmp_path: Path) -> None:
    run_block(block, tmp_path)


@pytest.mark.parametrize("block", as_parameters("ci"))
def test_block_is_run_by_ci(block: Block) -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command, _ in block.commands:
        assert command.split("#")[0].strip() in script, f".ci/run does not run: {command}"


def test_every_block_is_of_a_known_kind() -> None:
    assert len(BLOCKS) > 3
    fences = sum(len(re.findall(r"^```(?:console|python|cpp)", read(page), re.M)) for page in PAGES)
    assert fences == len(BLOCKS)
    assert {block.tag for block in BLOCKS} <= TAGS
    shells = [p for p in PAGES if re.search(r"^```(bash|sh|shell)\b", read(p), re.M)]
    assert not shells, "write console blocks: they are run"


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("```console\n$ echo one two\none ...\n```", False),
        ("```console\n$ echo one\ntwo\n```", True),
        ("```console\n$ exit 3\n```", True),
        ("```python\nassert 1 == 1\n```", False),
        ("```python\nassert 1 == 2\n```", True),
        ("```cpp\nint main() { return 0; }\n```", False),
        ("```cpp\nint main() { return 1; }\n```", True),
        ("```cpp\nint main() { return x; }\n```", True),
    ],
)
def test_the_runner_itself(text: str, fails: bool, tmp_path: Path) -> None:
    (block,) = blocks_of(Path("page.md"), text)
    if fails:
        with pytest.raises(AssertionError):
            run_block(block, tmp_path)
    else:
        run_block(block, tmp_path)


def test_tables_are_fresh() -> None:
    command = [sys.executable, str(ROOT / "docs" / "tables.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_readme_is_short_and_maps_every_folder() -> None:
    text = read(Path("README.md"))
    assert len(text.splitlines()) < 200
    folders = {path.parts[0] for path in files() if len(path.parts) > 1}
    missing = [f for f in folders if not f.startswith(".") and f"`{f}/`" not in text]
    assert not missing, f"the code map of README.md lacks {missing}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in t]
    broken = [t for t in targets if not (ROOT / page.parent / t.split("#")[0]).exists()]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_named_files_exist(page: Path) -> None:
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|toml|json))`", read(page))
    assert not [name for name in named if not (ROOT / name).exists()]
