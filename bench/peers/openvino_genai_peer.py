"""OpenVINO as a peer process: MODEL is a folder of bench/peers/convert.py (rows.xml).

The setting (third argument) is how keys and values are stored: u8, the default, f16 or f32.

OpenVINO GenAI runs the same stateful graph but offers no step of several rows, so for steps the
graph is run by OpenVINO itself, with the settings GenAI gives it. Whole answers are GenAI's own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai
from numpy.typing import NDArray
from serve import Handler, curve_handlers, serve

CHUNK = 1024
LENGTH_AXIS = 2
# Options of an answer by mode; prompt lookup takes both (these are the ones of its documentation).
MODES: dict[str, dict[str, int]] = {
    "plain": {},
    "prompt-lookup": {"num_assistant_tokens": 5, "max_ngram_size": 3},
}


class OpenVino:
    """One compiled model; every cache is the state of an infer request of its own."""

    def __init__(self, folder: Path, setting: dict[str, Any]) -> None:
        self._model = ov.Core().compile_model(folder / "rows.xml", "CPU", setting)
        self._inputs = {name for value in self._model.inputs for name in value.names}
        self._requests: dict[int, Any] = {}
        self._states: dict[int, list[NDArray[Any]]] = {}
        self._lengths: dict[int, int] = {}

    def _run(self, request: Any, tokens: Sequence[int], start: int, every: bool) -> None:
        n = len(tokens)
        feeds = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, start + n), np.int64),
            "position_ids": np.arange(start, start + n)[None],
            "beam_idx": np.zeros(1, np.int32),
            "output_rows": np.arange(n) if every else np.array([n - 1]),
        }
        wanted = {name: feeds[name] for name in feeds if name in self._inputs}
        request.infer(wanted, share_inputs=True, share_outputs=True)

    def _fill(self, request: Any, tokens: Sequence[int]) -> None:
        request.reset_state()
        for start in range(0, len(tokens), CHUNK):
            self._run(request, tokens[start : start + CHUNK], start, every=False)

    def open(self, context: int, tokens: Sequence[int]) -> int | None:
        """See Stepper."""
        request = self._requests[context] = self._model.create_infer_request()
        self._fill(request, tokens)
        self._states[context] = [np.array(s.state.data) for s in request.query_state()]
        return None

    def begin(self, context: int, rows: int) -> None:
        """See Stepper. The step that is not timed begins early, so that the first timed one begins
        at `context`: setting a state drops the room that its buffers had for more rows."""
        self._lengths[context] = length = max(context - rows, 1)
        states = self._requests[context].query_state()
        for state, kept in zip(states, self._states[context], strict=True):
            cut = np.ascontiguousarray(np.take(kept, range(length), LENGTH_AXIS))
            state.state = ov.Tensor(cut)

    def rewind(self, context: int) -> None:
        """See Stepper. The rows stay: a series of steps passes over slightly more of them."""

    def step(self, context: int, tokens: Sequence[int]) -> None:
        """See Stepper."""
        start = self._lengths[context]
        self._run(self._requests[context], tokens, start, every=True)
        self._lengths[context] = start + len(tokens)

    def prefill(self, tokens: Sequence[int]) -> None:
        """See Stepper."""
        if 0 not in self._requests:
            self._requests[0] = self._model.create_infer_request()
        self._fill(self._requests[0], tokens)


class GenAi:
    """GenAI's pipelines, one per mode, each loaded when it is needed first."""

    def __init__(self, folder: Path, setting: dict[str, Any]) -> None:
        self._folder = folder
        self._setting = setting
        self._pipelines: dict[str, Any] = {}

    def _pipeline(self, mode: str) -> Any:
        if mode not in self._pipelines:
            drafting = {"prompt_lookup": True} if MODES[mode] else {}
            setting = self._setting | drafting
            self._pipelines[mode] = openvino_genai.LLMPipeline(str(self._folder), "CPU", **setting)
        return self._pipelines[mode]

    def generate(self, request: dict[str, Any]) -> dict[str, Any]:
        """See serve.py."""
        mode, count = request["mode"], request["tokens"]
        options = {"max_new_tokens": count, "ignore_eos": True, "do_sample": False}
        config = openvino_genai.GenerationConfig(**options, **MODES[mode])
        config.apply_chat_template = False
        prompt = np.array([request["prompt"]], np.int64)
        inputs = openvino_genai.TokenizedInputs(ov.Tensor(prompt), ov.Tensor(np.ones_like(prompt)))
        result = self._pipeline(mode).generate(inputs, config)
        metrics = result.perf_metrics
        prefill_s = metrics.get_ttft().mean / 1e3
        ids = [int(token) for token in result.tokens[0]]
        return {
            "ids": ids,
            "prefill_s": prefill_s,
            "decode_s": metrics.get_generate_duration().mean / 1e3 - prefill_s,
            "decoded": len(ids) - 1,
        }


def main(folder: str, threads: int, kv_precision: str = "u8") -> None:
    """Load the folder when it is needed, and serve."""
    setting = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "KV_CACHE_PRECISION": kv_precision,
    }
    stepper = cache(lambda: curve_handlers(OpenVino(Path(folder), setting)))
    facts = {
        "engine": "openvino-genai",
        "threads": threads,
        "versions": {"openvino": ov.__version__, "openvino-genai": openvino_genai.__version__},
        "setting": f"LATENCY, {kv_precision} cache, prefill in chunks of {CHUNK}",
        "modes": list(MODES),
    }
    steps: dict[str, Handler] = {
        name: lambda request: stepper()[request["op"]](request)
        for name in ("open", "step", "prefill", "memory")
    }
    serve(facts, steps | {"generate": GenAi(Path(folder), setting).generate})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
