"""Do other tools' folders answer with us as with their makers, and ours with the others?

    python bench/adapters.py NAME MODEL FOLDER [--kinds KIND,...] [--peers-dir DIR] [--tokens 32]

MODEL is a .gguf file or a name of one. FOLDER gets a folder for each kind that is not there yet,
made with the tool's own command: those of the others from the checkpoint in float32 (`huggingface`,
made by bench/peers/convert.py), ours by `quickdraft export`. Every one is asked for greedy answers
in quickdraft, plainly and with drafts, and by the engines that it is for, from the same tokens of a
prompt (`same_prompt`: whether their tokenizer gives these), decoded by themselves.

We run a single row with a second one, so that drafted answers are the plain ones (see
docs/adapters.md). `same_ids_single_rows` counts the answers that are those of the engine when we
run single rows alone, as it does.

Where an answer differs, `gap` is how much less likely we find their token than ours, in nats:
kernels that round activations to int8 differ by up to 1 in the logits (docs/adapters.md).
`as_reference` counts the tokens of each answer that are those of our float32 reading of the same
blocks (`hotpath`), up to the first other one: what a weight format costs. The result goes to
bench/results/adapters-NAME.json after every kind; those not asked for keep what they have there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import PEERS, RESULTS, start_peer, write_result

import quickdraft
from quickdraft.hashes import cache_root
from quickdraft.models.resolve import find_checkpoint
from quickdraft.runtime.backends.adapted import AdaptedBackend
from quickdraft.runtime.backends.opening import opened_variant
from quickdraft.runtime.result import Result

PROMPTS = (
    "What is the capital of France?",
    "Write a Python function that adds two numbers.",
    "Name three colours.",
    "Why is the sky blue?",
)
CHECKPOINT = "huggingface"


@dataclass(frozen=True)
class Kind:
    """A kind of folder. engines: what it is for. tool: the environment of the command, `ours` for
    this one. command: a program of that environment, or `-m` and a module, and what follows."""

    engines: tuple[str, ...]
    tool: str
    command: str


BUILDER = "-m onnxruntime_genai.models.builder -i {huggingface} -o {out} -c {out}/cache -e cpu -p"
INTEL = "-m optimum.commands.optimum_cli export openvino -m {huggingface} --task {task}"
ONNX = "-m optimum.commands.optimum_cli"
KINDS = {
    "onnxruntime-genai-int4": Kind(
        ("onnxruntime-genai",), "onnxruntime-genai",
        f"{BUILDER} int4 --extra_options int4_accuracy_level=4 int4_block_size=32",
    ),
    "onnxruntime-genai-fp32": Kind(("onnxruntime-genai",), "onnxruntime-genai", f"{BUILDER} fp32"),
    "optimum-intel-int4": Kind(
        ("optimum-intel", "openvino-genai"), "openvino-genai",
        f"{INTEL} --weight-format int4 --sym --ratio 1.0 --group-size 64 {{out}}",
    ),
    "optimum-onnx-fp32": Kind(
        ("optimum-onnx",), "optimum",
        f"{ONNX} export onnx --model {{huggingface}} --task {{task}} --dtype fp32 {{out}}",
    ),
    "optimum-onnx-int8": Kind(
        ("optimum-onnx",), "optimum",
        f"{ONNX} onnxruntime quantize --onnx_model {{folder}}/optimum-onnx-fp32 --avx512_vnni "
        "--per_channel -o {out}",
    ),
    "ours-genai-gguf": Kind(
        ("onnxruntime-genai",), "ours",
        "-m quickdraft export {checkpoint} -o {out} --format genai --weights gguf",
    ),
    "ours-openvino-genai-gguf": Kind(
        ("openvino-genai",), "ours",
        "-m quickdraft export {checkpoint} -o {out} --format openvino-genai --weights gguf",
    ),
}  # fmt: skip
ENVIRONMENTS = {"optimum-intel": "openvino-genai", "optimum-onnx": "optimum"}
"""Of engines that have none of their own name."""


class Folders:
    """The folders of one model. peers: where bench/peers/install.py put the environments."""

    def __init__(self, place: Path, checkpoint: Path, peers: Path) -> None:
        self.place, self.checkpoint, self.peers = place, checkpoint, peers
        place.mkdir(parents=True, exist_ok=True)

    def python(self, environment: str) -> str:
        """The interpreter of an environment."""
        if environment == "ours":
            return sys.executable
        return str(self.peers / environment / "bin" / "python")

    def get(self, name: str) -> Path:
        """The folder of a kind, made if it is not there."""
        out = self.place / name
        if out.exists():
            return out
        if name == CHECKPOINT:
            convert = [self.python("gguf-decoder"), str(PEERS / "convert.py"), CHECKPOINT]
            subprocess.run([*convert, str(self.checkpoint), str(out)], check=True)
            return out
        kind = KINDS[name]
        if kind.tool != "ours":
            self.get(CHECKPOINT)
        if "{folder}" in kind.command:
            self.get("optimum-onnx-fp32")
        unfinished = self.place / f"{name}.unfinished"
        words = [word.format(**self._values(unfinished)) for word in kind.command.split()]
        print(name, "...", file=sys.stderr)
        subprocess.run([self.python(kind.tool), *words], check=True, stdout=sys.stderr)
        unfinished.rename(out)
        return out

    def _values(self, out: Path) -> Mapping[str, str]:
        return {
            "out": str(out),
            "folder": str(self.place),
            "checkpoint": str(self.checkpoint),
            CHECKPOINT: str(self.place / CHECKPOINT),
            "task": "text-generation-with-past",
        }


@dataclass(frozen=True)
class Spoken:
    """Answers of quickdraft to all prompts. ends: tokens that end a text. alone: plain answers of
    steps with a single row where that is not how it is run; else none."""

    texts: tuple[str, ...]
    plain: tuple[Result, ...]
    drafted: tuple[Result, ...]
    ends: frozenset[int]
    facts: Mapping[str, Any]
    alone: tuple[Result, ...] = ()

    def ids(self, index: int, *, alone: bool = False) -> list[int]:
        """The tokens of a plain answer, less the one that ends it."""
        ids = list((self.alone if alone else self.plain)[index].token_ids)
        return ids[:-1] if ids and ids[-1] in self.ends else ids


def ask_quickdraft(name: str, tokens: int, threads: int, **options: Any) -> Spoken:
    """Open a model and have it answer, plainly and with drafts."""
    greedy = {"temperature": 0.0, "max_new_tokens": tokens, "repetition_penalty": 1.0}
    with quickdraft.load(name, device="cpu", threads=threads, store=False, **options) as model:
        template = model.chat_template
        if template is None:
            raise SystemExit(f"{name} has no chat template")
        messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        top = min(20, model.backend.top or 20)
        facts = {
            "weights": opened_variant(model.manifest, model.backend).weight_format,
            "backend": model.backend.name,
            "kv_cache": model.backend.kv_type,
        }
        plain = tuple(model.chat(m, num_draft_tokens=0, logprobs=top, **greedy) for m in messages)
        drafted = tuple(model.chat(m, num_draft_tokens=4, **greedy) for m in messages)
        alone: tuple[Result, ...] = ()
        if isinstance(model.backend, AdaptedBackend) and model.backend.pairs:
            model.backend.pairs = False
            alone = tuple(model.chat(m, num_draft_tokens=0, **greedy) for m in messages)
        texts = tuple(template.render(message) for message in messages)
        ends = frozenset(model.manifest.tokenizer.eos_token_ids)
        return Spoken(texts, plain, drafted, ends, facts, alone)


def common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Tokens up to the first that differs."""
    pairs = zip(ours, theirs, strict=False)
    shortest = min(len(ours), len(theirs))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), shortest)


def held_against(spoken: Spoken, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Our answers beside those of an engine."""
    found: dict[str, Any] = {"same_prompt": 0, "same_ids": 0, "same_text": 0, "differences": []}
    found |= {"same_ids_single_rows": 0} if spoken.alone else {}
    for index, (plain, theirs) in enumerate(zip(spoken.plain, answers, strict=True)):
        ours = spoken.ids(index)
        found["same_prompt"] += theirs["prompt"] == list(plain.prompt_token_ids)
        found["same_ids"] += theirs["ids"] == ours
        found["same_text"] += theirs["text"] == plain.text
        if spoken.alone:
            found["same_ids_single_rows"] += theirs["ids"] == spoken.ids(index, alone=True)
        if theirs["ids"] != ours:
            place = common(ours, theirs["ids"])
            found["differences"].append(
                {"prompt": index, "place": place, "gap": gap(spoken, index, place, theirs["ids"])}
            )
    return found


def gap(spoken: Spoken, index: int, place: int, theirs: Sequence[int]) -> float | None:
    """Nats between our token at a place and theirs; None where one answer ended, or where theirs
    is not among our likeliest."""
    logprobs = spoken.plain[index].logprobs
    if logprobs is None or place >= min(len(theirs), len(logprobs)):
        return None
    there = logprobs[place]
    known = dict(there.top).get(theirs[place])
    return None if known is None else round(there.logprob - known, 4)


def measure(
    name: str, folders: Folders, options: argparse.Namespace, reference: Spoken
) -> dict[str, Any]:
    """One kind of folder: with us, and with its engines."""
    kind, folder = KINDS[name], folders.get(name)
    kv_cache = {"kv_cache": "f32"} if "openvino" in name or "intel" in name else {}
    spoken = ask_quickdraft(str(folder), options.tokens, options.threads, **kv_cache)
    lengths = [common(spoken.ids(i), reference.ids(i)) for i in range(len(PROMPTS))]
    found: dict[str, Any] = {
        "made_by": " ".join(word.rsplit("/", 1)[-1] for word in kind.command.split()),
        **spoken.facts,
        "drafted_as_plain": sum(
            a.token_ids == b.token_ids for a, b in zip(spoken.plain, spoken.drafted, strict=True)
        ),
        "as_reference": lengths,
        "answers": [answer.text for answer in spoken.plain],
        "engines": {},
    }
    for engine in kind.engines:
        python = folders.python(ENVIRONMENTS.get(engine, engine))
        with start_peer("answers_peer.py", python, str(folder), options.threads, engine) as process:
            answers = [
                process.ask(
                    op="answer", text=text, prompt=plain.prompt_token_ids, tokens=options.tokens
                )
                for text, plain in zip(spoken.texts, spoken.plain, strict=True)
            ]
            versions = process.facts["versions"]
        found["engines"][engine] = {"versions": versions} | held_against(spoken, answers)
    return found


def main() -> None:
    """Make what is missing, ask, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--peers-dir", type=Path, default=cache_root() / "peers")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    checkpoint = find_checkpoint(options.model)
    if checkpoint is None:
        raise SystemExit(f"{options.model} is a bundle; give the .gguf file it was made of")
    folders = Folders(options.folder.absolute(), checkpoint, options.peers_dir.absolute())
    reference = ask_quickdraft(options.model, options.tokens, options.threads, backend="hotpath")
    known = RESULTS / f"adapters-{options.name}.json"
    found = json.loads(known.read_text())["folders"] if known.exists() else {}
    for name in options.kinds.split(","):
        found[name] = {"tokens": options.tokens} | measure(name, folders, options, reference)
        print(name, found[name], file=sys.stderr)
        figures = {
            "model": options.name,
            "prompts": PROMPTS,
            "threads": options.threads,
            "versions": {"quickdraft": quickdraft.__version__},
            "reference": reference.facts | {"answers": [answer.text for answer in reference.plain]},
            "folders": found,
        }
        print(write_result(known.stem, figures))


if __name__ == "__main__":
    main()
