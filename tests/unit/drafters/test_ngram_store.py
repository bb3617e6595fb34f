"""The n-gram store remembers other conversations, and its file survives everything."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from quickdraft.drafters import ngram_file, ngram_store
from quickdraft.drafters.base import DrafterContext, DrafterSource, DraftSettings, Observation
from quickdraft.drafters.ngram_file import NgramFile
from quickdraft.drafters.ngram_store import open_ngram_store
from quickdraft.drafters.ngram_table import NgramTable, key_of
from quickdraft.drafters.tree import Tree

VOCAB = 1000
TEXT = list(range(100, 140))


def opened(folder: Path | None, key: str = "a", **options: object) -> DrafterSource:
    context = DrafterContext(VOCAB, 4096, key=key, store=folder)
    return open_ngram_store(context, {"log2_entries": 12} | options)


def converse(source: DrafterSource, prompt: list[int], answer: list[int]) -> None:
    drafter = source.new()
    drafter.begin(prompt, DraftSettings())
    for token in answer:
        drafter.observe(Observation([token], Tree.chain([0]), [0]))


def drafted(source: DrafterSource, prompt: list[int], budget: int = 4) -> list[int]:
    drafter = source.new()
    drafter.begin(prompt, DraftSettings())
    draft = drafter.propose(budget)
    return [] if draft is None else draft.tree.tokens.tolist()[1:]


def the_file(folder: Path) -> Path:
    (path,) = folder.glob("ngrams-*.bin")
    return path


def test_a_conversation_helps_the_next_one() -> None:
    source = opened(None)
    converse(source, TEXT[:5], TEXT[5:])
    assert drafted(source, TEXT[:7]) == TEXT[7:11]
    assert drafted(source, TEXT[1:4]) == TEXT[4:8]  # the shorter n-grams
    assert drafted(source, [1, 2, 3]) == []


def test_the_conversation_at_hand_is_left_to_prompt_lookup() -> None:
    assert drafted(opened(None), [*TEXT, *TEXT[:10]]) == []


def test_a_rewound_conversation_is_learned_once() -> None:
    source = opened(None)
    drafter = source.new()
    for _ in range(5):
        drafter.begin(TEXT, DraftSettings())
    drafter.begin([*TEXT[:6], 7], DraftSettings())
    drafter.begin([1], DraftSettings())
    store_drafts = source.new()
    store_drafts.begin(TEXT[:4], DraftSettings())
    draft = store_drafts.propose(1)
    assert draft is not None
    assert draft.grades[1] == 6 + 2  # of the shorter n-grams, seen once


def test_it_is_kept_from_one_run_to_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "when needed"
    first = opened(folder)
    converse(first, TEXT[:5], TEXT[5:])
    assert not folder.exists()
    first.close()
    assert the_file(folder).stat().st_mode & 0o077 == 0
    second = opened(folder)
    assert drafted(second, TEXT[:7]) == TEXT[7:11]
    before = the_file(folder).stat().st_mtime_ns
    second.close()  # a prompt is something to learn, too
    assert the_file(folder).stat().st_mtime_ns >= before
    assert drafted(opened(folder, key="b"), TEXT[:7]) == []
    assert [path.suffix for path in folder.iterdir() if path != the_file(folder)] == [".lock"]


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = opened(None)
    converse(source, TEXT, TEXT)
    source.close()
    assert list(tmp_path.iterdir()) == []


def test_it_is_saved_between_answers_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(tmp_path)
    converse(source, TEXT, TEXT)
    drafted(source, [1])
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(ngram_store, "SAVE_EVERY", 0.0)
    drafted(source, [1])
    assert drafted(opened(tmp_path), TEXT[:7]) == TEXT[7:11]


def saved(folder: Path) -> bytes:
    source = opened(folder)
    converse(source, TEXT, [])
    source.close()
    return the_file(folder).read_bytes()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"", "it ends after 0 bytes"),
        (lambda data: data[:50], "it ends after 50 bytes"),
        (lambda data: data[:-1], "entries do not fill"),
        (lambda data: data + b"x", "entries do not fill"),
        (lambda data: b"PK" + data[2:], "it is no n-gram store"),
        (lambda data: flipped(data, 8), "its version is"),
        (lambda data: flipped(data, 12), "it is another model's"),
        (lambda data: flipped(data, 40), "its checksum is wrong"),
        (lambda data: flipped(data, len(data) // 2), "its checksum is wrong"),
        (lambda data: flipped(data, len(data) - 1), "its checksum is wrong"),
        (lambda data: data[:19] + b"\xff" + data[20:], "entries do not fill"),
    ],
)
def test_a_bad_file_is_named_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object, said: str
) -> None:
    data = saved(tmp_path)
    the_file(tmp_path).write_bytes(damage(data))  # type: ignore[operator]
    source = opened(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert drafted(source, TEXT[:7]) == []
    (record,) = caplog.records
    assert said in record.getMessage()
    assert str(the_file(tmp_path)) in record.getMessage()
    converse(source, TEXT, [])
    source.close()
    assert len(caplog.records) == 1
    assert drafted(opened(tmp_path), TEXT[:7]) == TEXT[7:11]


def test_random_damage_never_gets_through(tmp_path: Path) -> None:
    data = saved(tmp_path)
    path = the_file(tmp_path)
    rng = np.random.default_rng(3)
    for _ in range(200):
        bad = bytearray(data)
        for at in rng.integers(0, len(data), int(rng.integers(1, 4))):
            bad[at] ^= int(rng.integers(1, 256))
        path.write_bytes(bad)
        table = NgramTable(1 << 12)
        NgramFile(tmp_path, "a", VOCAB).load(table)
        assert len(table.entries().keys) == 0 or bytes(bad) == data


def test_a_file_of_any_size_is_looked_at_before_it_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path)
    with the_file(tmp_path).open("r+b") as file:
        file.truncate(1 << 40)  # a sparse file
    with caplog.at_level(logging.WARNING):
        assert drafted(opened(tmp_path), TEXT[:7]) == []
    assert "more than a store ever has" in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path)
    path = the_file(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with caplog.at_level(logging.WARNING):
        assert drafted(opened(tmp_path), TEXT[:7]) == []
    assert "pipe" in caplog.text


def test_a_store_that_cannot_be_written_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    source = opened(tmp_path / "store")
    converse(source, TEXT, [])
    with caplog.at_level(logging.WARNING):
        assert drafted(source, TEXT[:7]) == TEXT[7:11]  # in memory it works
        source.close()
    assert "could not be saved" in caplog.text


def test_a_lock_that_stays_taken_does_not_hold_anybody_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path)
    monkeypatch.setattr(ngram_file, "LOCK_SECONDS", 0.05)
    lock = FileLock(the_file(tmp_path).with_suffix(".lock"))
    source = opened(tmp_path)
    converse(source, TEXT, [1, 2, 3, 4])
    with lock, caplog.at_level(logging.WARNING):
        source.close()
    assert "could not be saved" in caplog.text


def test_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    """Each writes a text of its own, again and again, and then closes; all texts are there."""
    script = (
        "import sys, pathlib\n"
        "from quickdraft.drafters.base import DrafterContext, DraftSettings\n"
        "from quickdraft.drafters import ngram_store\n"
        "ngram_store.SAVE_EVERY = 0.0\n"
        "folder, me = pathlib.Path(sys.argv[1]), int(sys.argv[2])\n"
        f"context = DrafterContext({VOCAB}, 4096, key='a', store=folder)\n"
        "source = ngram_store.open_ngram_store(context, {'log2_entries': 12})\n"
        "for round in range(5):\n"
        "    source.new().begin(list(range(100 * me, 100 * me + 20)), DraftSettings())\n"
        "source.close()\n"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(me)]) for me in range(3)
    ]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    source = opened(tmp_path)
    for me in range(3):
        text = list(range(100 * me, 100 * me + 20))
        assert drafted(source, text[:7]) == text[7:11]


SAVER = """
import sys, pathlib
from quickdraft.drafters.ngram_file import NgramFile
from quickdraft.drafters.ngram_table import NgramTable
file = NgramFile(pathlib.Path(sys.argv[1]), 'a', 1000)
table = NgramTable(1 << 14)
table.learn([(i * i) % 997 for i in range(9000)], 3)
print('ready', flush=True)
while True:
    file.save(table)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_save_survives_being_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Killed at any moment of a save, the file is a whole one, and the rest is cleared away."""
    sizes = set()
    for turn in range(8):
        saver = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert saver.stdout is not None
        saver.stdout.readline()
        time.sleep(0.013 * turn + 0.01)
        os.kill(saver.pid, signal.SIGKILL)
        saver.wait()
        saver.stdout.close()
        table = NgramTable(1 << 14)
        with caplog.at_level(logging.WARNING):
            NgramFile(tmp_path, "a", VOCAB).load(table)
        sizes.add(len(table.entries().keys))
    assert not caplog.records
    whole = NgramTable(1 << 14)
    whole.learn([(i * i) % 997 for i in range(9000)], 3)
    assert sizes <= {0, len(whole.entries().keys)}
    assert len(whole.entries().keys) in sizes
    assert table.successors(key_of([4, 9, 16]))[0][0] == 25
    assert NgramFile(tmp_path, "a", VOCAB).save(table)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_conversations_in_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram_store, "SAVE_EVERY", 0.0)
    source = opened(tmp_path)
    failures: list[BaseException] = []

    def run(me: int) -> None:
        try:
            for turn in range(10):
                converse(source, [me, turn], list(range(100 * me, 100 * me + 30)))
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=run, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    source.close()
    assert not failures
    again = opened(tmp_path)
    for me in range(4):
        assert drafted(again, [100 * me + i for i in range(6)], 2) == [100 * me + 6, 100 * me + 7]


def test_loading_is_quick_at_the_bound(tmp_path: Path) -> None:
    table = NgramTable(1 << 18)
    rng = np.random.default_rng(0)
    while (table.keys != 0).mean() < 0.95:
        table.learn(rng.integers(0, VOCAB, 1 << 17).tolist(), 5)
    assert NgramFile(tmp_path, "a", VOCAB).save(table)
    assert the_file(tmp_path).stat().st_size < 3.5e6
    times = []
    for _ in range(5):
        copy = NgramTable(1 << 18)
        started = time.perf_counter()
        NgramFile(tmp_path, "a", VOCAB).load(copy)
        times.append(time.perf_counter() - started)
    assert (copy.keys != 0).mean() >= 0.95
    assert min(times) < 0.05  # 10 ms on a quiet machine
