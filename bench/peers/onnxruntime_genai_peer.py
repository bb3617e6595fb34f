"""ONNX Runtime GenAI as a peer process: MODEL is a folder its builder wrote.

GenAI's interface and plain ONNX Runtime run the same graph. Steps of several rows go through the
session (rows.onnx of bench/peers/convert.py), bound to one key and value buffer as GenAI does it;
of a step of one row both are timed, and the better one counts.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import onnxruntime_genai as og
from numpy.typing import NDArray
from serve import curve_handlers, peak_memory, serve

STEP_ROWS = 64
CHUNK = 512
PREFILL = 0
# Options of speculation by mode. It drafts 4 tokens unless told otherwise.
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "ngram": {"ngram_size": 3},
    "ngram-adaptive": {"ngram_size": 3, "max_draft_tokens": 8, "min_adaptive_k": 2},
}


class Cache:
    """Buffers of one conversation, bound once as past and as present of every layer."""

    def __init__(self, session: Any, heads: int, size: int, width: int) -> None:
        self.size = size
        self.binding = session.io_binding()
        self.nbytes = 0
        self._alive = []
        for value in session.get_inputs():
            if value.name.startswith("past_key_values."):
                kind = np.float16 if "16" in value.type else np.float32
                buffer = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, heads, size, width), kind))
                present = value.name.replace("past_key_values.", "present.")
                self.binding.bind_ortvalue_input(value.name, buffer)
                self.binding.bind_ortvalue_output(present, buffer)
                self._alive.append(buffer)
                self.nbytes += heads * size * width * np.dtype(kind).itemsize


class OrtSession:
    """The graph in ONNX Runtime itself."""

    def __init__(self, folder: Path, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        model = str(folder / "rows.onnx")
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
        self._decoder = config["model"]["decoder"]
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._vocab_size = self._session.get_outputs()[0].shape[2]
        self._caches: dict[int, Cache] = {}

    def cache(self, name: int, size: int) -> Cache:
        """The cache of that name, made again if it holds fewer than `size` tokens."""
        known = self._caches.get(name)
        if known is None or known.size < size:
            heads, width = self._decoder["num_key_value_heads"], self._decoder["head_size"]
            known = self._caches[name] = Cache(self._session, heads, size, width)
        return known

    def run(
        self, cache: Cache, tokens: Sequence[int], start: int, every: bool
    ) -> NDArray[np.float32]:
        """Logits of all rows, or of the last one."""
        n = len(tokens)
        rows = np.arange(n) if every else np.array([n - 1])
        feeds = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, start + n), np.int64),
            "position_ids": np.arange(start, start + n)[None],
            "output_rows": rows,
        }
        logits = np.empty((1, len(rows), self._vocab_size), np.float32)
        for name in self._inputs & feeds.keys():
            value = ort.OrtValue.ortvalue_from_numpy(feeds[name])
            cache.binding.bind_ortvalue_input(name, value)
        cache.binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(logits))
        self._session.run_with_iobinding(cache.binding)
        return logits[0]

    def open(self, context: int, tokens: Sequence[int]) -> int | None:
        """See Stepper."""
        cache = self.cache(context, context + STEP_ROWS)
        self.fill(cache, tokens)
        return cache.nbytes

    def fill(self, cache: Cache, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Run a prompt in chunks; logits of its last row."""
        for start in range(0, len(tokens), CHUNK):
            logits = self.run(cache, tokens[start : start + CHUNK], start, every=False)
        return logits

    def begin(self, context: int, rows: int) -> None:
        """See Stepper."""

    def rewind(self, context: int) -> None:
        """See Stepper: what lies behind the length is written over."""

    def step(self, context: int, tokens: Sequence[int]) -> None:
        """See Stepper."""
        self.run(self._caches[context], tokens, context, every=True)

    def prefill(self, tokens: Sequence[int]) -> None:
        """See Stepper."""
        self.fill(self.cache(PREFILL, len(tokens)), tokens)


class GenAi:
    """The same graph through GenAI's generator."""

    def __init__(self, folder: Path, threads: int) -> None:
        config = og.Config(str(folder))
        options = {"session_options": {"intra_op_num_threads": threads}}
        config.overlay(json.dumps({"model": {"decoder": options}}))
        self._model = og.Model(config)
        self._generators: dict[int, Any] = {}

    def _generator(self, most: int, least: int = 0, **speculative: Any) -> Any:
        params = og.GeneratorParams(self._model)
        params.set_search_options(do_sample=False, max_length=most, min_length=least)
        if speculative:
            params.set_speculative_options(**speculative)
        return og.Generator(self._model, params)

    def one_row(self, history: Sequence[int], token: int, repeats: int) -> list[float]:
        """Milliseconds of steps of one token after a history, after one that is not timed."""
        context = len(history)
        if context not in self._generators:
            made = self._generators[context] = self._generator(context + STEP_ROWS)
            for start in range(0, context, CHUNK):
                made.append_tokens(list(history[start : start + CHUNK]))
        generator = self._generators[context]
        times = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            generator.append_tokens([token])
            times.append(1e3 * (time.perf_counter() - started))
            generator.rewind_to(context)
        return times[1:]

    def decode(self, request: dict[str, Any]) -> dict[str, Any]:
        """Greedy tokens after a prompt, timed."""
        return self.generate(request | {"mode": "plain"})

    def generate(self, request: dict[str, Any]) -> dict[str, Any]:
        """See serve.py. It hands out drafted tokens one by one, too."""
        prompt, count = request["prompt"], request["tokens"]
        total = len(prompt) + count
        generator = self._generator(total, total, **MODES[request["mode"]])
        started = time.perf_counter()
        generator.append_tokens(prompt)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(count - 1):
            generator.generate_next_token()
        finished = time.perf_counter()
        return {
            "ids": generator.get_sequence(0)[len(prompt) :].tolist(),
            "prefill_s": first - started,
            "decode_s": finished - first,
            "decoded": count - 1,
        }


class Either:
    """Answers requests, loading each of the two when it is needed first."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._session = cache(lambda: OrtSession(folder, threads))
        self._genai = cache(lambda: GenAi(folder, threads))
        self._plain = cache(lambda: curve_handlers(self._session()))
        self._histories: dict[int, list[int]] = {}

    def decode(self, request: dict[str, Any]) -> dict[str, Any]:
        """See serve.py."""
        return self._genai().decode(request)

    def generate(self, request: dict[str, Any]) -> dict[str, Any]:
        """See serve.py."""
        return self._genai().generate(request)

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """See serve.py."""
        self._histories[request["context"]] = request["tokens"]
        return self._plain()["open"](request)

    def step(self, request: dict[str, Any]) -> dict[str, Any]:
        """See serve.py. The better of the two for one row."""
        times = self._plain()["step"](request)["ms"]
        if len(request["tokens"]) == 1:
            history = self._histories[request["context"]]
            others = self._genai().one_row(history, request["tokens"][0], request["repeats"])
            times = min(times, others, key=min)
        return {"ms": times}

    def prefill(self, request: dict[str, Any]) -> dict[str, Any]:
        """See serve.py."""
        return self._plain()["prefill"](request)


def main(folder: str, threads: int) -> None:
    """Serve."""
    either = Either(Path(folder), threads)
    facts = {
        "engine": "onnxruntime-genai",
        "threads": threads,
        "versions": {"onnxruntime-genai": og.__version__, "onnxruntime": ort.__version__},
        "setting": "int4 in blocks of 32, accuracy level 4, one row: the better of GenAI and ORT",
        "modes": list(MODES),
    }
    handlers = {
        "decode": either.decode,
        "generate": either.generate,
        "open": either.open,
        "step": either.step,
        "prefill": either.prefill,
        "memory": lambda request: {"peak_bytes": peak_memory()},
    }
    serve(facts, handlers)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
