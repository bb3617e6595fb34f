"""How well and how fast is speech written down?

    python bench/speech.py CLIPS [--peer PYTHON --peer-model FOLDER] [--rounds N] [--threads N]

CLIPS: a folder with transcripts.jsonl ({"file", "text"}) and sound files. Prints, as JSON, the word
error rate over all clips and the real-time factor (seconds of work per second of sound, the best
of the rounds summed over clips) of whisper-tiny.en: plain, and with every drafter of `auto`.
PYTHON: an interpreter that has ctranslate2 and tokenizers; it runs FOLDER's model on the same
features in the same rounds, float32 and int8, greedily with the same opening.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from quickdraft.runtime.model import Model

_WORDS = re.compile(r"[^a-z0-9' ]+")

PEER = """
import json, sys, time
import ctranslate2, numpy as np
from tokenizers import Tokenizer
folder, data, rounds, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
clips, found = np.load(data), {}
for kind in ("float32", "int8"):
    model = ctranslate2.models.Whisper(folder, compute_type=kind, intra_threads=threads)
    texts, seconds = {}, {}
    for _ in range(rounds + 1):
        for name in clips.files:
            started = time.perf_counter()
            view = ctranslate2.StorageView.from_array(np.ascontiguousarray(clips[name].T[None]))
            ids = model.generate(view, [[50257, 50362]], beam_size=1)[0].sequences_ids[0]
            took = time.perf_counter() - started
            texts[name] = tokenizer.decode(ids)
            seconds[name] = min(took, seconds.get(name, took))
    found[kind] = {"texts": texts, "seconds": seconds}
print(json.dumps(found))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--peer")
    parser.add_argument("--peer-model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    lines = (options.clips / "transcripts.jsonl").read_text(encoding="utf-8").splitlines()
    clips = [json.loads(line) for line in lines]
    runs = ours(options.clips, clips, options.rounds, options.threads)
    length = runs.pop("length")
    if options.peer:
        runs |= peer(options, runs.pop("features"))
    runs.pop("features", None)
    words = {clip["file"]: clip["text"] for clip in clips}
    report = {
        name: {
            "word_error_rate": round(word_error_rate(words, run["texts"]), 4),
            "real_time_factor": round(sum(run["seconds"].values()) / length, 5),
            "texts": run["texts"],
        }
        for name, run in runs.items()
    }
    drafted, plain = (runs[name]["texts"] for name in ("quickdraft auto", "quickdraft plain"))
    json.dump(
        {"seconds_of_sound": length, "drafted_equals_plain": drafted == plain} | report,
        sys.stdout,
        indent=1,
    )


def ours(
    folder: Path, clips: Sequence[dict[str, Any]], rounds: int, threads: int
) -> dict[str, Any]:
    """Texts and best seconds by clip, plain and drafted, and the features that were read."""
    import quickdraft
    from quickdraft.kvcache.memory import Memories, Source
    from quickdraft.runtime.audio.mel import log_mel
    from quickdraft.runtime.audio.sound import open_sound

    found: dict[str, Any] = {"features": {}, "length": 0.0}
    for clip in clips:
        with open_sound(folder / clip["file"]) as sound:
            found["features"][clip["file"]] = log_mel(sound.read(0, 480_000), 3000)
            found["length"] += sound.seconds
    for drafter in ("none", "auto"):
        with quickdraft.load("whisper-tiny.en", drafter=drafter, threads=threads) as model:
            start = model.manifest.generation["decoder_start_token_id"]
            silent = model.manifest.generation["no_timestamps_token_id"]

            def answer(
                features: np.ndarray[Any, Any],
                model: Model = model,
                opening: Sequence[int] = (start, silent),
            ) -> str:
                model.memories = Memories(0)  # every round encodes anew
                text = model.generate(Source(features=features), opening=opening).text
                return text.strip()

            name = "quickdraft plain" if drafter == "none" else "quickdraft auto"
            found[name] = timed(answer, found["features"], rounds)
    return found


def timed(
    answer: Callable[[Any], str], features: dict[str, Any], rounds: int
) -> dict[str, dict[str, Any]]:
    """Texts and best seconds by clip; the first round counts as well, as it is never the best."""
    texts, seconds = {}, {}
    for _ in range(rounds + 1):
        for name, values in features.items():
            started = time.perf_counter()
            texts[name] = answer(values)
            took = time.perf_counter() - started
            seconds[name] = min(took, seconds.get(name, took))
    return {"texts": texts, "seconds": seconds}


def peer(options: argparse.Namespace, features: dict[str, Any]) -> dict[str, Any]:
    """The same of CTranslate2, in its own environment."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/features.npz", **features)
        arguments = [f"{folder}/features.npz", str(options.rounds), str(options.threads)]
        command = [options.peer, "-c", PEER, str(options.peer_model), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {f"ctranslate2 {kind}": run for kind, run in json.loads(done.stdout).items()}


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
