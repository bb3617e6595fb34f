"""A bundle is written to the end, or there is none, whatever happens on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from tiny.bundles import TINY_FILES, tiny_manifest, write_tiny_bundle

from quickdraft.bundle import BundleWriter, open_bundle
from quickdraft.errors import OptionError, QuickdraftError, StorageError
from quickdraft.manifest import Manifest

TESTS = Path(__file__).parents[2]
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs fork, signals or limits")


def write(folder: Path, *, overwrite: bool = False, name: str = "tiny") -> Manifest:
    with BundleWriter(folder, overwrite=overwrite) as writer:
        for file_name, data in TINY_FILES.items():
            writer.add_bytes(file_name, data)
        base = tiny_manifest()
        return writer.finish(
            replace(base, files=writer.files, source=replace(base.source, name=name))
        )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_opens(tmp_path: Path) -> None:
    manifest = write(tmp_path / "deep" / "bundle")
    assert open_bundle(tmp_path / "deep" / "bundle").manifest == manifest
    assert names(tmp_path / "deep") == ["bundle"]


def test_three_ways_of_adding_agree(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"abc" * 500_000)
    with BundleWriter(tmp_path / "bundle") as writer:
        writer.path("a/x").write_bytes(b"abc" * 500_000)
        entry = writer.add("a/x")
        assert writer.copy("b/x", tmp_path / "source") == entry
        with writer.create("c") as file:
            for _ in range(5):
                file.write(b"abc" * 100_000)
        assert writer.files["c"] == entry
    assert names(tmp_path) == ["source"]  # not finished, so not there


def test_error_and_interrupt_leave_nothing(tmp_path: Path) -> None:
    def fail(error: type[BaseException]) -> None:
        with BundleWriter(tmp_path / "bundle") as writer:
            writer.add_bytes("a", b"1")
            raise error

    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)
        assert names(tmp_path) == []


def test_a_wrong_manifest_is_our_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not describe"), BundleWriter(tmp_path / "b") as w:
        w.finish(tiny_manifest())
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["../x", "/x", "a\\b", "nul", "a:b"])
def test_bad_names_are_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match="cannot be used"), BundleWriter(tmp_path / "b") as writer:
        writer.add_bytes(name, b"")
    assert names(tmp_path) == []


class TestExistingFolder:
    def test_empty_one_is_used(self, tmp_path: Path) -> None:
        (tmp_path / "bundle").mkdir()
        write(tmp_path / "bundle")
        open_bundle(tmp_path / "bundle")

    def test_bundle_is_replaced_only_on_request(self, tmp_path: Path) -> None:
        write(tmp_path / "bundle", name="old")
        with pytest.raises(OptionError, match="exists already"):
            write(tmp_path / "bundle", name="new")
        assert open_bundle(tmp_path / "bundle").manifest.source.name == "old"
        write(tmp_path / "bundle", overwrite=True, name="new")
        assert open_bundle(tmp_path / "bundle").manifest.source.name == "new"
        assert names(tmp_path) == ["bundle"]

    @pytest.mark.parametrize("contents", ["photo.jpg", "manifest.json"])
    def test_strangers_are_never_replaced(self, tmp_path: Path, contents: str) -> None:
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle" / contents).write_text("{}")
        with pytest.raises(OptionError, match="not a sound bundle"):
            write(tmp_path / "bundle", overwrite=True)
        assert (tmp_path / "bundle" / contents).read_text() == "{}"

    def test_files_of_the_user_are_not_lost(self, tmp_path: Path) -> None:
        write_tiny_bundle(tmp_path / "bundle")
        (tmp_path / "bundle" / "notes.txt").write_text("mine")
        with pytest.raises(OptionError, match=r"notes\.txt"):
            write(tmp_path / "bundle", overwrite=True)
        assert (tmp_path / "bundle" / "notes.txt").exists()

    def test_a_file_or_a_link_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OptionError, match="is a file or a link"):
            write(tmp_path / "file", overwrite=True)

    def test_a_failed_exchange_brings_the_old_one_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path / "bundle", name="old")
        rename = os.rename

        def fail_second(source: Path, target: Path) -> None:
            if ".new-" in str(source):
                raise PermissionError(13, "Permission denied")
            rename(source, target)

        monkeypatch.setattr(os, "rename", fail_second)
        with pytest.raises(StorageError, match="Permission denied"):
            write(tmp_path / "bundle", overwrite=True, name="new")
        assert open_bundle(tmp_path / "bundle").manifest.source.name == "old"
        assert names(tmp_path) == ["bundle"]


def child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    script = "import sys; sys.path[:0] = sys.argv[1:3]\n" + textwrap.dedent(code)
    here = str(Path(__file__).parent)
    return subprocess.run(
        [sys.executable, "-c", script, str(TESTS), here, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )


# Kills a forked writer just before its n-th change of the disk, for n = 1, 2, ... until one lives.
# It then looks at what is left, opens a survivor, and lets the next writer clean up.
KILL = """
    import os, signal
    from pathlib import Path
    from test_bundle_writer import names, write
    from quickdraft.bundle import open_bundle

    folder, overwrite = Path(sys.argv[3]) / "bundle", sys.argv[4] == "True"
    EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.listdir"}

    os.fsync = lambda handle: None  # a killed process loses nothing that it wrote

    def attempt(n):
        left = n
        def hook(event, arguments):
            nonlocal left
            if event in EVENTS and str(folder.parent) in str(arguments[:2]):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        write(folder, overwrite=overwrite, name="new")

    n = 0
    while True:
        n += 1
        if overwrite:
            write(folder, overwrite=True, name="old")
        pid = os.fork()
        if pid == 0:
            attempt(n)
            os._exit(0)
        killed = os.waitpid(pid, 0)[1] != 0
        try:
            found = open_bundle(folder).manifest.source.name
        except Exception as error:
            found = type(error).__name__
        allowed = {"old", "new"} if overwrite else {"BundleError", "new"}
        assert found in allowed, (n, found, names(folder.parent))
        write(folder, overwrite=True, name="next")
        assert names(folder.parent) == ["bundle"], (n, names(folder.parent))
        if not killed:
            break
        if not overwrite:
            import shutil; shutil.rmtree(folder)
    assert found == "new"
    print(n)
"""


@posix
@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_every_change_of_the_disk(tmp_path: Path, overwrite: bool) -> None:
    done = child(KILL, tmp_path, overwrite)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15  # it was killed that often, at different points


@posix
@pytest.mark.parametrize("limit", [0, 10, 100, 2000])
def test_full_disk_is_said_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    code = """
        import resource
        from pathlib import Path
        from test_bundle_writer import write
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
        try:
            write(Path(sys.argv[3]) / "bundle")
        except Exception as error:
            print(type(error).__name__, error)
    """
    done = child(code, tmp_path, limit)
    assert done.stdout.startswith("StorageError could not write"), done.stderr
    assert "File too large" in done.stdout
    assert names(tmp_path) == []


def test_live_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "bundle") as first:
        first.add_bytes("model.onnx", TINY_FILES["model.onnx"])
        write(tmp_path / "bundle", name="second")
        for name in list(TINY_FILES)[1:]:  # its folder is still there: its lock is held
            first.add_bytes(name, TINY_FILES[name])
        with pytest.raises(OptionError, match="meanwhile"):
            first.finish(replace(tiny_manifest(), files=first.files))
    assert open_bundle(tmp_path / "bundle").manifest.source.name == "second"
    assert names(tmp_path) == ["bundle"]


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QuickdraftError, match="could not write"):
        write(tmp_path / "file" / "bundle")
