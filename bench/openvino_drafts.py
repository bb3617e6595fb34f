"""Are drafted answers on OpenVINO the plain ones, and do static graphs stay right for long prompts?

    python bench/openvino_drafts.py NAME MODEL FOLDER [--prompts 3] [--tokens 32] [--long 3000]
        [--flavours dynamic,static]

FOLDER gets a bundle of each flavour, `openvino` (any number of rows) and `openvino-static`, unless
they are there. Each is asked what `quickdraft verify` asks: greedy and sampled answers to built-in
prompts, with every drafter by itself and with all of them. Then a text of --long tokens (English
prose and code of this repository) is continued greedily, plainly and with 8 drafted tokens a step;
the static answer is also held against the dynamic one, whose graph has no shapes that a long prompt
could leave. `deviation` is the largest difference of log-probabilities in nats, up to the first
token that differs: of the 20 likeliest tokens, and between flavours of the chosen one.

The result goes to bench/results/openvino-drafts-NAME.json; flavours that are not asked for keep
what they have there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness import RESULTS, ROOT, write_result

import quickdraft
from quickdraft.runtime.backends.opening import opened_variant
from quickdraft.runtime.model import Model
from quickdraft.runtime.result import Result
from quickdraft.runtime.verification import Prompt, VerificationPlan, run_verification
from quickdraft.runtime.verification_prompts import PROMPTS
from quickdraft.runtime.verification_report import difference_of

FLAVOURS = {"dynamic": "openvino", "static": "openvino-static"}
TEXTS = ("docs/architecture.md", "runtime/engine.py", "docs/openvino.md", "runtime/accept.py")
LAW_DRAWS = 100
"""The least that is allowed: the law of a tiny model has nothing to do with OpenVINO."""


def make(model: str, folder: Path, emitter: str) -> Path:
    """The bundle of a flavour."""
    out = folder / emitter
    if not out.exists():
        export = [sys.executable, "-m", "quickdraft", "export", model, "-o", str(out)]
        subprocess.run([*export, "--format", emitter], check=True, stdout=sys.stderr)
    return out


def long_prompt(model: Model, count: int) -> list[int]:
    """The first `count` tokens of prose and code."""
    text = "\n\n".join((ROOT / name).read_text(encoding="utf-8") for name in TEXTS)
    tokens = model.tokenize(text)
    if len(tokens) < count:
        raise SystemExit(f"the texts have {len(tokens)} tokens, not {count}")
    return tokens[:count]


def verified(model: Model, count: int, tokens: int) -> dict[str, Any]:
    """What `quickdraft verify` finds, less the law of a tiny model."""
    prompts = []
    for name, text in PROMPTS[:count]:
        chat = [] if isinstance(text, str) else [{"role": r, "content": c} for r, c in text]
        ids = model.tokenize(text) if isinstance(text, str) else model.tokenize_chat(chat)
        prompts.append(Prompt(name, ids))
    found = run_verification(model, prompts, VerificationPlan(tokens, LAW_DRAWS)).to_dict()
    for report in found["drafters"].values():
        del report["laws"]
    del found["model"], found["untested"]
    differences = found.pop("differences")
    found["largest_deviation"] = max((d["deviation"] for d in differences), default=0.0)
    found["other_tokens"] = [d for d in differences if not d["same_tokens"]]
    return found


def continued(model: Model, prompt: list[int], tokens: int, nodes: int) -> Result:
    """A greedy answer in a session of its own."""
    return model.generate(
        prompt, temperature=0.0, repetition_penalty=1.0, max_new_tokens=tokens, ignore_eos=True,
        logprobs=20, num_draft_tokens=nodes, session=model.session(),
    )  # fmt: skip


def between(plain: Result, other: Result) -> dict[str, Any]:
    """Where two answers to one prompt part."""
    found = difference_of("long", "", False, plain, other, "same_distribution")
    shared = [a == b for a, b in zip(plain.token_ids, other.token_ids, strict=True)]
    return {
        "same_tokens": all(shared),
        "tokens_equal": shared.index(False) if False in shared else len(shared),
        "deviation": 0.0 if found is None else round(found.deviation, 6),
        "allowed": found is None or found.allowed,
    }


def across(dynamic: dict[str, Any], static: dict[str, Any]) -> dict[str, Any]:
    """Where the plain answers of two flavours to the long prompt part."""
    pairs = list(zip(dynamic["ids"], static["ids"], strict=True))
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    chosen = zip(dynamic["logprobs"][:same], static["logprobs"][:same], strict=True)
    return {
        "same_tokens": same == len(pairs),
        "tokens_equal": same,
        "deviation": max((round(abs(a - b), 6) for a, b in chosen), default=0.0),
    }


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one bundle."""
    with quickdraft.load(
        str(folder), backend="openvino", device="cpu", store=False, threads=options.threads
    ) as model:
        figures: dict[str, Any] = {
            "weights": opened_variant(model.manifest, model.backend).weight_format,
            "flavour": model.backend.flavour,
            "kv_cache": model.backend.kv_type,
            "verify": verified(model, options.prompts, options.tokens),
        }
        prompt = long_prompt(model, options.long)
        plain = continued(model, prompt, options.tokens, 0)
        drafted = continued(model, prompt, options.tokens, 8)
        figures["long"] = {
            "prompt_tokens": len(plain.prompt_token_ids),
            "text": plain.text,
            "ids": plain.token_ids,
            "logprobs": [round(entry.logprob, 6) for entry in plain.logprobs or ()],
            "drafted": drafted.timings.draft_n,
            "accepted": drafted.timings.draft_n_accepted,
            "drafted_and_plain": between(plain, drafted),
        }
    return figures


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--long", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--flavours", default=",".join(FLAVOURS))
    options = parser.parse_args()
    known = RESULTS / f"openvino-drafts-{options.name}.json"
    found = json.loads(known.read_text())["flavours"] if known.exists() else {}
    for name in options.flavours.split(","):
        bundle = make(options.model, options.folder, FLAVOURS[name])
        setting = {"threads": options.threads, "tokens": options.tokens, "prompts": options.prompts}
        found[name] = setting | measure(bundle, options)
        print(name, found[name], file=sys.stderr)
    figures: dict[str, Any] = {
        "model": options.name,
        "versions": {"quickdraft": quickdraft.__version__, "openvino": version("openvino")},
        "flavours": found,
    }
    if found.keys() == FLAVOURS.keys():
        long = {name: json.loads(json.dumps(found[name]["long"])) for name in found}
        figures["long_static_and_dynamic"] = across(**long)
        print(figures["long_static_and_dynamic"])
    print(write_result(known.stem, figures))


if __name__ == "__main__":
    main()
