"""transformers as a peer process: MODEL is a Hugging Face folder (bench/peers/convert.py).

It is asked for whole answers only, plain or with its prompt lookup. The setting (third argument)
is the type of the weights: bfloat16, the default, or float32.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
import transformers
from serve import serve

# Options of `generate` by mode; 10 tokens is what its documentation drafts.
MODES: dict[str, dict[str, int]] = {"plain": {}, "prompt-lookup": {"prompt_lookup_num_tokens": 10}}


class Clock:
    """A streamer that notes when tokens came, and how many: first the prompt, then every step."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.counts: list[int] = []

    def put(self, tokens: torch.Tensor) -> None:
        """Take the tokens of a step."""
        self.times.append(time.perf_counter())
        self.counts.append(tokens.numel())

    def end(self) -> None:
        """The answer is complete."""


class Transformers:
    """A loaded checkpoint."""

    def __init__(self, folder: str, dtype: str) -> None:
        load = transformers.AutoModelForCausalLM.from_pretrained
        self._model = load(folder, dtype=getattr(torch, dtype)).eval()

    def generate(self, request: dict[str, Any]) -> dict[str, Any]:
        """See serve.py."""
        prompt, count = torch.tensor([request["prompt"]]), request["tokens"]
        clock = Clock()
        answer = self._model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=transformers.GenerationConfig(
                do_sample=False, max_new_tokens=count, min_new_tokens=count, pad_token_id=0
            ),
            streamer=clock,
            **MODES[request["mode"]],
        )
        return {
            "ids": answer[0, prompt.shape[1] :].tolist(),
            "prefill_s": clock.times[1] - clock.times[0],
            "decode_s": clock.times[-1] - clock.times[1],
            "decoded": sum(clock.counts[2:]),
        }


def main(folder: str, threads: int, dtype: str = "bfloat16") -> None:
    """Load the folder and serve."""
    torch.set_num_threads(threads)
    facts = {
        "engine": "transformers",
        "threads": threads,
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "setting": f"{dtype} weights",
        "modes": list(MODES),
    }
    serve(facts, {"generate": Transformers(folder, dtype).generate})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
