"""CTranslate2 as a peer process: MODEL is a folder with model.bin, config.json and tokenizer.json.

It is asked for whole answers of encoder-decoder models, greedy, by the type it computes in:

    {"op": "write_down", "compute", "features": NPY, "opening": [ids], "tokens": n,
        "clock": "wall" or "processor"}
                                                                    {"ids", "seconds"}
    {"op": "answer", "compute", "source": [ids], "tokens": n, "clock"}
                                                                    {"ids", "seconds"}

NPY holds log-mel features, float32 [1, bins, frames]. Packages: ctranslate2, numpy, tokenizers.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from serve import serve
from tokenizers import Tokenizer


class CTranslate2:
    """A model in every type it was asked for."""

    def __init__(self, folder: str, threads: int) -> None:
        self._threads = threads
        self._tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self._completed = tempfile.TemporaryDirectory()
        self._folder = Path(self._completed.name)
        for file in Path(folder).resolve().iterdir():
            (self._folder / file.name).symlink_to(file)
        # Folders for faster-whisper may leave it to the tokenizer; the library itself does not.
        if not list(self._folder.glob("*vocabulary.*")):
            words = self._tokenizer.get_vocab(with_added_tokens=True)
            listed = sorted(words, key=words.__getitem__)
            if listed[-1] == "<|notimestamps|>":  # Whisper's times, which tokenizers leave out
                listed += [f"<|{tick / 50:.2f}|>" for tick in range(1501)]
            (self._folder / "vocabulary.json").write_text(json.dumps(listed), encoding="utf-8")
        self._speech: dict[str, ctranslate2.models.Whisper] = {}
        self._text: dict[str, ctranslate2.Translator] = {}

    def write_down(self, request: dict[str, Any]) -> dict[str, Any]:
        """What is said in a window."""
        compute = request["compute"]
        if compute not in self._speech:
            self._speech[compute] = ctranslate2.models.Whisper(
                str(self._folder), compute_type=compute, intra_threads=self._threads
            )
        features = np.load(request["features"])
        now = time.process_time if request["clock"] == "processor" else time.perf_counter
        started = now()
        found = self._speech[compute].generate(
            ctranslate2.StorageView.from_array(features),
            [request["opening"]],
            beam_size=1,
            max_length=request["tokens"],
        )
        ids = found[0].sequences_ids[0]
        return {"ids": ids, "seconds": now() - started}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a source."""
        compute = request["compute"]
        if compute not in self._text:
            self._text[compute] = ctranslate2.Translator(
                str(self._folder), compute_type=compute, intra_threads=self._threads
            )
        source = [self._tokenizer.id_to_token(token) for token in request["source"]]
        now = time.process_time if request["clock"] == "processor" else time.perf_counter
        started = now()
        found = self._text[compute].translate_batch(
            [source], beam_size=1, max_decoding_length=request["tokens"], max_input_length=0
        )
        seconds = now() - started
        return {
            "ids": [self._tokenizer.token_to_id(token) for token in found[0].hypotheses[0]],
            "seconds": seconds,
        }


def main(folder: str, threads: int) -> None:
    """Serve the folder."""
    engine = CTranslate2(folder, threads)
    facts = {
        "engine": "ctranslate2",
        "threads": threads,
        "versions": {"ctranslate2": ctranslate2.__version__},
    }
    serve(facts, {"write_down": engine.write_down, "answer": engine.answer})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
