"""llama.cpp (package llama-cpp-python) as a peer process: MODEL is a .gguf file.

The setting (third argument) is about flash attention: auto, the default, on or off; or it is
draft=FILE.gguf, a smaller model for the mode `draft`. Other modes of `generate`: plain;
prompt-lookup, the drafts of llama-cpp-python, verified through the C interface; and those of
llama_server.py.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from llama_server import Servers
from numpy.typing import NDArray
from serve import curve_handlers, serve

BATCH = 512
STEP_ROWS = 64
PREFILL = 0
FLASH_ATTENTION = {
    "auto": llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


class LlamaCpp:
    """Steps through the C interface: the Python class copies all logits.

    Every cache is a context of its own over one loaded model, keys and values in float16.
    """

    def __init__(self, path: str, threads: int, flash_attention: str = "auto") -> None:
        llama_cpp.llama_backend_init()
        self._flash_attention = FLASH_ATTENTION[flash_attention]
        self._threads = threads
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
        self._contexts: dict[int, tuple[Any, int]] = {}
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def context(self, name: int, size: int) -> Any:
        """The context of that name, made again if it holds fewer than `size` tokens."""
        known, held = self._contexts.get(name, (None, 0))
        if held >= size:
            return known
        if known is not None:
            llama_cpp.llama_free(known)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = size
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = self._threads
        params.flash_attn_type = self._flash_attention
        made = llama_cpp.llama_init_from_model(self._model, params)
        if not made:
            raise SystemExit(f"llama.cpp makes no context of {size} tokens")
        self._contexts[name] = made, size
        return made

    def decode(
        self, context: Any, tokens: Sequence[int], start: int, every: bool
    ) -> NDArray[np.float32]:
        """Logits of all rows, or of the last one: float32 [m, vocabulary], not copied."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = start + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = every or i == len(tokens) - 1
        code = llama_cpp.llama_decode(context, batch)
        if code:
            raise SystemExit(f"llama_decode returned {code}")
        shape = (len(tokens) if every else 1, self._vocab_size)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape)

    def run(self, context: Any, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits of the last row of a prompt, from an empty cache."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        for start in range(0, len(tokens), BATCH):
            logits = self.decode(context, tokens[start : start + BATCH], start, every=False)
        return logits

    def open(self, context: int, tokens: Sequence[int]) -> int | None:
        """See Stepper."""
        self.run(self.context(context, context + STEP_ROWS), tokens)
        return None

    def begin(self, context: int, rows: int) -> None:
        """See Stepper."""

    def rewind(self, context: int) -> None:
        """See Stepper."""
        memory = llama_cpp.llama_get_memory(self._contexts[context][0])
        llama_cpp.llama_memory_seq_rm(memory, 0, context, -1)

    def step(self, context: int, tokens: Sequence[int]) -> None:
        """See Stepper."""
        self.decode(self._contexts[context][0], tokens, context, every=True)

    def prefill(self, tokens: Sequence[int]) -> None:
        """See Stepper. The first call of a length makes the context, and is a warm-up."""
        self.run(self.context(PREFILL, len(tokens)), tokens)


def decode(engine: LlamaCpp, request: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens after a prompt, timed."""
    prompt, count = request["prompt"], request["tokens"]
    context = engine.context(PREFILL, len(prompt) + count)
    started = time.perf_counter()
    token = int(engine.run(context, prompt)[0].argmax())
    first = time.perf_counter()
    for place in range(len(prompt), len(prompt) + count - 1):
        token = int(engine.decode(context, [token], place, every=False)[0].argmax())
    return {"prefill_s": first - started, "decode_s": time.perf_counter() - first}


Propose = Callable[[list[int]], Sequence[int]]


def generate(engine: LlamaCpp, request: dict[str, Any], propose: Propose) -> dict[str, Any]:
    """Greedy tokens after a prompt, drafts verified in one step each."""
    prompt, count = request["prompt"], request["tokens"]
    context = engine.context(PREFILL, len(prompt) + count + STEP_ROWS)
    memory = llama_cpp.llama_get_memory(context)
    started = time.perf_counter()
    tokens = [*prompt, int(engine.run(context, prompt)[0].argmax())]
    first = time.perf_counter()
    while len(tokens) < len(prompt) + count:
        draft = [int(token) for token in propose(tokens)][: len(prompt) + count - len(tokens) - 1]
        place = len(tokens) - 1
        logits = engine.decode(context, [tokens[-1], *draft], place, every=True)
        for row, guess in enumerate([*draft, None]):
            tokens.append(int(logits[row].argmax()))
            if tokens[-1] != guess:
                break
        llama_cpp.llama_memory_seq_rm(memory, 0, len(tokens) - 1, -1)
    return {
        "ids": tokens[len(prompt) :],
        "prefill_s": first - started,
        "decode_s": time.perf_counter() - first,
        "decoded": count - 1,
    }


def lookup(tokens: list[int]) -> Sequence[int]:
    """What llama-cpp-python drafts, with its defaults."""
    return LlamaPromptLookupDecoding()(np.array(tokens, np.intc))


def score(engine: LlamaCpp, request: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities of the tokens of a window."""
    tokens = request["tokens"]
    context = engine.context(PREFILL, len(tokens))
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    logprobs: list[float] = []
    for start in range(0, len(tokens) - 1, BATCH):
        window = tokens[start : min(start + BATCH, len(tokens) - 1)]
        shifted = engine.decode(context, window, start, every=True).astype(np.float64)
        shifted -= shifted.max(-1, keepdims=True)
        picked = shifted[np.arange(len(window)), tokens[start + 1 : start + 1 + len(window)]]
        logprobs += (picked - np.log(np.exp(shifted).sum(-1))).tolist()
    return {"logprobs": logprobs}


def main(path: str, threads: int, setting: str = "auto") -> None:
    """Load the file and serve."""
    drafting, _, draft_model = setting.partition("=")
    flash_attention = "auto" if drafting == "draft" else setting
    engine = LlamaCpp(path, threads, flash_attention)
    servers = Servers(path, threads, draft_model or None)
    own: dict[str, Propose] = {"plain": lambda tokens: (), "prompt-lookup": lookup}

    def generate_in_mode(request: dict[str, Any]) -> dict[str, Any]:
        mode = request["mode"]
        return generate(engine, request, own[mode]) if mode in own else servers.generate(request)

    facts = {
        "engine": "llama.cpp",
        "threads": threads,
        "versions": {"llama-cpp-python": llama_cpp.__version__},
        "setting": f"float16 cache, flash attention {flash_attention}, batch {BATCH}",
        "modes": [*own, *servers.modes],
    }
    handlers = {
        "decode": lambda request: decode(engine, request),
        "score": lambda request: score(engine, request),
        "generate": generate_in_mode,
    }
    serve(facts, handlers | curve_handlers(engine))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
