"""Do we write what transformers writes? Greedy continuations of real prompts, token by token.

    python bench/text_parity.py NAME FP32_BUNDLE GGUF PROMPTS.jsonl

transformers runs the same GGUF with its weights decoded to float32; we run a float32 bundle, plain
and with prompt lookup. Where a continuation differs, the gap between transformers' two best logits
at that place is reported: a gap above 1e-3 counts as wrong. Needs torch, transformers, accelerate.
The result goes to bench/results/text-parity-NAME.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import write_result
from transformers import AutoModelForCausalLM

from quickdraft.bundle import open_bundle
from quickdraft.runtime.drafting import DraftingSetup
from quickdraft.runtime.model import Model

TOLERANCE = 1e-3


def read_prompts(path: Path, count: int) -> list[str]:
    """The first prompts of a .jsonl file, evenly spread over it."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    picked = rows[:: max(1, len(rows) // count)][:count]
    return [row["turns"][0] if "turns" in row else row["prompt"] for row in picked]


def reference(model: Any, prompt: list[int], tokens: int) -> tuple[list[int], np.ndarray]:
    """transformers' greedy continuation and the gap of its two best logits at every step."""
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=tokens,
        do_sample=False,
        repetition_penalty=1.0,
        return_dict_in_generate=True,
        output_logits=True,
        pad_token_id=0,
    )
    ids = output.sequences[0, len(prompt) :].tolist()
    best = torch.stack([step[0] for step in output.logits]).topk(2).values.numpy()
    return ids, best[:, 0] - best[:, 1]


def main() -> None:
    """Run, print a line per difference, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    theirs = AutoModelForCausalLM.from_pretrained(
        options.gguf.parent, gguf_file=options.gguf.name, dtype=torch.float32
    ).eval()
    bundle = open_bundle(options.bundle)
    setup = DraftingSetup("prompt_lookup")
    ours = Model.open(bundle.folder, manifest=bundle.manifest, drafting=setup)
    tokens, differences, drafts_equal = 0, [], True
    for index, text in enumerate(read_prompts(options.prompts, options.count)):
        limits = {"temperature": 0.0, "max_new_tokens": options.tokens}
        message = [{"role": "user", "content": text}]
        plain = ours.chat(message, repetition_penalty=1.0, num_draft_tokens=0, **limits)
        drafted = ours.chat(message, repetition_penalty=1.0, **limits)
        drafts_equal &= drafted.token_ids == plain.token_ids
        expected, gaps = reference(theirs, list(plain.prompt_token_ids), options.tokens)
        pairs = list(zip(plain.token_ids, expected, strict=False))
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        tokens += len(pairs) if place is None else place
        if place is not None:
            differences.append({"prompt": index, "place": place, "gap": float(gaps[place])})
        print(index, len(pairs), differences[-1:] if place is not None else "", file=sys.stderr)
    wrong = [d for d in differences if d["gap"] > TOLERANCE]
    figures = {
        "prompts": options.count,
        "tokens_equal": tokens,
        "differences": differences,
        "wrong": len(wrong),
        "prompt_lookup_equals_plain": drafts_equal,
        "setting": {"tokens": options.tokens, "tolerance": TOLERANCE},
    }
    print(json.dumps(figures))
    print(write_result(f"text-parity-{options.name}", figures))


if __name__ == "__main__":
    main()
