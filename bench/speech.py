"""How well and how fast is speech written down?

    python bench/speech.py CLIPS [--peer PYTHON] [--rounds N] [--threads N] [--out NAME]
        [--clock wall|processor] [--clips N]

CLIPS: a folder with transcripts.jsonl ({"file", "text"}) and sound files, of which the first N are
taken. Prints the word error rate over all clips and the real-time factor (seconds of work per
second of sound) of whisper-tiny.en: plain, and with every drafter of `auto`; first where the model
says words alone, then where it says times, too, as `quickdraft transcribe` lets it. PYTHON: the
interpreter of CTranslate2's environment (`bench/peers/install.py ctranslate2`); it answers about
the same features with the same file of weights, greedily with the same opening, in float32 and
int8, by its own rules for times. All take turns round by round, and the least disturbed time of
each clip counts; features are computed once, for everybody, and their time is told apart. Our
models are opened anew every round, so that nothing is drafted from what the same clip gave before.
`--clock processor` counts the time of processors, which hardly depends on what else the machine
does; with it take one thread, as threads may wait actively. --out writes bench/results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import start_peer, write_result

import quickdraft
from quickdraft.kvcache.memory import Memories, Source
from quickdraft.models.resolve import find_checkpoint
from quickdraft.runtime.audio.mel import log_mel
from quickdraft.runtime.audio.sound import open_sound
from quickdraft.runtime.engine_process import EngineProcess
from quickdraft.runtime.model import Model

MODEL = "whisper-tiny.en"
COMPUTE = ("float32", "int8")
MOST_TOKENS = 224
REST = 0.3
"""Seconds between engines: threads of the one before may wait for more work actively."""
MODES = {"without_times": False, "with_times": True}
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
_WORDS = re.compile(r"[^a-z0-9' ]+")

Answer = Callable[[str], tuple[list[int], float]]
"""Ids and seconds of the clip of a name."""
Engine = Callable[[], AbstractContextManager[Answer]]
"""What answers in one round."""


@dataclass
class Clips:
    """features: float32 [1, bins, frames] by file, in files named after them under `folder`."""

    folder: Path
    words: dict[str, str] = field(default_factory=dict)
    features: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    times: bool = False
    seconds: float = 0.0
    feature_seconds: float = 0.0
    clock: str = "wall"


@dataclass
class Run:
    """What an engine answered, and its best seconds."""

    ids: dict[str, list[int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--peer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--clips", dest="count", type=int)
    parser.add_argument("--out")
    options = parser.parse_args()
    with ExitStack() as stack:
        copies = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        clips = read_clips(options.clips, copies, options.count)
        clips.clock = options.clock
        versions = {"quickdraft": quickdraft.__version__}
        model = stack.enter_context(quickdraft.load(MODEL, drafter="none"))
        if options.peer:
            weights = str(find_checkpoint(MODEL))
            engine = start_peer("ctranslate2_peer.py", options.peer, weights, options.threads)
            stack.enter_context(engine)
            versions |= engine.facts["versions"]
        figures = facts(clips) | {"threads": options.threads, "clock": options.clock}
        figures |= {"rounds": options.rounds, "versions": versions}
        for mode, times in MODES.items():
            clips.times = times
            engines: dict[str, Engine] = {
                "quickdraft plain": partial(ours, "none", clips, options.threads),
                "quickdraft drafting": partial(ours, "auto", clips, options.threads),
            }
            for compute in COMPUTE if options.peer else ():
                answer = peer(engine, compute, opening(model, times), clips)
                engines[f"ctranslate2 {compute}"] = partial(staying, answer)
            runs = measure(engines, list(clips.features), options.rounds)
            figures[mode] = report(clips, runs, model)
    print(json.dumps(figures, indent=1))
    if options.out:
        write_result(options.out, figures)


def read_clips(folder: Path, copies: Path, count: int | None) -> Clips:
    """Sound to features, once for all engines."""
    clips = Clips(copies)
    lines = (folder / "transcripts.jsonl").read_text(encoding="utf-8").splitlines()
    for clip in map(json.loads, lines[:count]):
        with open_sound(folder / clip["file"]) as sound:
            clips.seconds += sound.seconds
            started = time.perf_counter()
            values = log_mel(sound.read(0, 480_000), 3000)
            clips.feature_seconds += time.perf_counter() - started
        clips.words[clip["file"]] = clip["text"]
        clips.features[clip["file"]] = values
        np.save(copies / f"{clip['file']}.npy", np.ascontiguousarray(values.T[None]))
    return clips


def opening(model: Model, times: bool) -> list[int]:
    """Answers begin with these."""
    said = model.manifest.generation
    silent = [] if times else [said["no_timestamps_token_id"]]
    return [said["decoder_start_token_id"], *silent]


def first_time(model: Model) -> int:
    """The token of time 0."""
    return int(model.manifest.generation["no_timestamps_token_id"]) + 1


@contextmanager
def ours(drafter: str, clips: Clips, threads: int) -> Iterator[Answer]:
    """A model that has just been loaded, and warmed up on silence."""
    with quickdraft.load(MODEL, drafter=drafter, threads=threads, store=False) as model:
        model.memories = Memories(0)  # a clip is encoded whenever it is asked about
        begins = opening(model, clips.times)
        rules = {"timestamp_begin": first_time(model)} if clips.times else {}

        def ask(features: np.ndarray[Any, Any]) -> list[int]:
            source = Source(features=features)
            result = model.generate(source, opening=begins, max_new_tokens=MOST_TOKENS, **rules)
            return list(result.token_ids)

        def answer(name: str) -> tuple[list[int], float]:
            now = CLOCKS[clips.clock]
            started = now()
            ids = ask(clips.features[name])
            return ids, now() - started

        ask(log_mel(np.zeros(1, np.float32), 3000))
        yield answer


def peer(engine: EngineProcess, compute: str, begins: Sequence[int], clips: Clips) -> Answer:
    """CTranslate2, which stays loaded."""

    def answer(name: str) -> tuple[list[int], float]:
        features = str(clips.folder / f"{name}.npy")
        found = engine.ask(
            op="write_down",
            compute=compute,
            features=features,
            opening=list(begins),
            tokens=MOST_TOKENS,
            clock=clips.clock,
        )
        return found["ids"], found["seconds"]

    return answer


def staying(answer: Answer) -> AbstractContextManager[Answer]:
    """An engine that stays open."""
    return nullcontext(answer)


def measure(engines: dict[str, Engine], names: Sequence[str], rounds: int) -> dict[str, Run]:
    """All engines in turns; the first round warms them up and counts as well."""
    runs = {engine: Run() for engine in engines}
    for _ in range(rounds + 1):
        for engine, opened in engines.items():
            run = runs[engine]
            with opened() as answer:
                time.sleep(REST)
                for name in names:
                    run.ids[name], took = answer(name)
                    run.seconds[name] = min(took, run.seconds.get(name, took))
    return runs


def report(clips: Clips, runs: dict[str, Run], model: Model) -> dict[str, Any]:
    """Rates and factors of all engines, and how they compare."""
    found: dict[str, Any] = {}
    for name, run in runs.items():
        texts = {file: words(model, ids) for file, ids in run.ids.items()}
        found[name] = {
            "word_error_rate": round(word_error_rate(clips.words, texts), 4),
            "real_time_factor": round(sum(run.seconds.values()) / clips.seconds, 5),
            "texts": texts,
        }
    speed = {
        f"{name} over {other}": round(
            found[other]["real_time_factor"] / each["real_time_factor"], 3
        )
        for name, each in found.items()
        for other in found
        if name.startswith("quickdraft") and name != other
    }
    return {
        "drafting_equals_plain": runs["quickdraft drafting"].ids == runs["quickdraft plain"].ids,
        "times_as_fast": speed,
        "engines": found,
    }


def facts(clips: Clips) -> dict[str, Any]:
    """What everybody heard."""
    return {
        "clips": len(clips.words),
        "seconds_of_sound": round(clips.seconds, 2),
        "seconds_of_features": round(clips.feature_seconds, 4),
    }


def words(model: Model, ids: Sequence[int]) -> str:
    """The text of an answer, without its times."""
    return model.detokenize([token for token in ids if token < first_time(model)]).strip()


def word_error_rate(expected: dict[str, str], found: dict[str, str]) -> float:
    """Edits of words over words, all clips together, without case and punctuation."""
    edits = total = 0
    for name, text in expected.items():
        right, heard = words_of(text), words_of(found[name])
        edits += distance(right, heard)
        total += len(right)
    return edits / total


def words_of(text: str) -> list[str]:
    """Words without case and punctuation; a hyphen parts two."""
    return _WORDS.sub(" ", text.lower().replace("-", " ")).split()


def distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Levenshtein's."""
    row = list(range(len(second) + 1))
    for i, word in enumerate(first, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


if __name__ == "__main__":
    main()
