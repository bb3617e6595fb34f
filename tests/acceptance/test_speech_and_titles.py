"""Real speech to exact text, and real titles as the package's own graphs give them in floats."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from tiny.lines import data_folder
from tiny.process import quickdraft

from quickdraft import load
from quickdraft.models.resolve import find_checkpoint

pytest.importorskip("onnx")

pytestmark = [pytest.mark.models, pytest.mark.timeout(600)]

SAID = {
    "cards-001.wav": "10 of clubs.",
    "librivox-ss01-0870.wav": "And Mr. John Dashwood had then leisure to consider how much there "
    "might be prudently in his power to do for them.",
}
TITLES = 20
LONGEST, NEW = 256, 48


def clips() -> list[Path]:
    """The clips of SAID."""
    files = [data_folder() / "audio" / name for name in SAID]
    if not all(file.exists() for file in files):
        pytest.skip(f"no clips in {data_folder()}; QUICKDRAFT_DATA says where they are")
    return files


def test_two_clips_are_written_down_as_they_are_said() -> None:
    files = clips()
    done = quickdraft("transcribe", *files, "--json", "--model", "whisper-tiny.en")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = {
        Path(line["file"]).name: " ".join(each["text"] for each in line["segments"])
        for line in lines
    }
    assert found == SAID
    assert not any(window["silent"] or window["temperature"] for window in lines[0]["windows"])
    plain = quickdraft("transcribe", *files, "--drafter", "none", "--no-checks")
    for name, text in SAID.items():
        assert f"{name}:\n{text}\n" in plain.stdout


def test_titles_in_floats_are_those_of_the_own_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    bench: Any = importlib.import_module("titles")
    texts = data_folder() / "summarization" / "multi_lexsum.jsonl.gz"
    if not texts.exists():
        pytest.skip(f"no texts in {data_folder()}; QUICKDRAFT_DATA says where they are")
    with load(bench.MODEL, weights="fp32", drafter="source_lookup", store=False) as model:
        answer = bench.own_graphs(
            find_checkpoint(bench.MODEL), NEW, 2, time.perf_counter, floats=True
        )
        sources = bench.read_sources(texts, TITLES, LONGEST, model)
        assert len(sources) == TITLES
        for source in sources:
            result = model.generate(source, max_new_tokens=NEW, do_sample=False)
            assert [token for token in result.token_ids if token != bench.END] == answer(source)[0]
