"""Does flan-t5-small-titles answer as its own ONNX graphs do, and how much faster?

    python bench/titles.py TEXTS [--inputs 100] [--tokens 48] [--rounds 3] [--threads 2]
        [--peer PYTHON --peer-model FOLDER] [--out NAME]

TEXTS: JSON lines, gzipped or not, with `input`; the first --length tokens of each are the source.
The naive run is what the package's files offer by themselves: the encoder once, then the decoder
over the whole answer for every token, greedily, in onnxruntime with as many threads. PYTHON, an
interpreter with ctranslate2, runs FOLDER (bench/peers/ctranslate2_t5.py makes it) in float32 and
int8. Everybody gets the same ids and takes turns; the best time of each input counts. --out writes
bench/results/NAME.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from harness import start_peer, write_result

import quickdraft
from quickdraft.kvcache.memory import Memories
from quickdraft.models.resolve import find_checkpoint
from quickdraft.runtime.engine_process import EngineProcess
from quickdraft.runtime.model import Model

MODEL = "flan-t5-small-titles"
START, END = 0, 1
REST = 0.2
"""Seconds between engines: threads of the one before may wait for more work actively."""

Answer = Callable[[list[int]], tuple[list[int], float]]
"""Ids, without the end, and seconds of a source."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", type=Path)
    for name, default in (("inputs", 100), ("length", 256), ("tokens", 48), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer")
    parser.add_argument("--peer-model", type=Path)
    parser.add_argument("--out")
    options = parser.parse_args()
    tokens, threads = options.tokens, options.threads
    with ExitStack() as stack:
        engines: dict[str, Answer] = {}
        for drafter in ("none", "source_lookup"):
            model = quickdraft.load(MODEL, drafter=drafter, threads=threads, store=False)
            stack.enter_context(model)
            engines[f"quickdraft {drafter}"] = ours(model, tokens)
        engines["own graphs"] = own_graphs(find_checkpoint(MODEL), tokens, threads)
        versions = {"onnxruntime": onnxruntime.__version__}
        if options.peer:
            weights = str(options.peer_model)
            engine = start_peer("ctranslate2_peer.py", options.peer, weights, threads)
            stack.enter_context(engine)
            versions |= engine.facts["versions"]
            for compute in ("float32", "int8"):
                engines[f"ctranslate2 {compute}"] = peer(engine, compute, tokens)
        sources = read_sources(options.texts, options.inputs, options.length, model)
        figures = compare(engines, sources, options.rounds)
    figures |= {"threads": threads, "versions": versions}
    print(json.dumps(figures, indent=1))
    if options.out:
        write_result(options.out, figures)


def read_sources(file: Path, count: int, length: int, model: Model) -> list[list[int]]:
    """The first tokens of the first texts, each with its end."""
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["input"] for line in lines][:count]
    sources = [model.tokenizer.encode_source(text) for text in texts]
    return [ids if len(ids) <= length else [*ids[: length - 1], END] for ids in sources]


def ours(model: Model, tokens: int) -> Answer:
    """A loaded model; every source is encoded anew."""
    model.memories = Memories(0)

    def answer(source: list[int]) -> tuple[list[int], float]:
        started = time.perf_counter()
        result = model.generate(source, max_new_tokens=tokens, do_sample=False)
        seconds = time.perf_counter() - started
        return [token for token in result.token_ids if token != END], seconds

    return answer


def own_graphs(folder: Path | None, tokens: int, threads: int) -> Answer:
    """The graphs of the package, without anything of ours."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    encoder, decoder = (
        onnxruntime.InferenceSession(
            f"{folder}/{name}.onnx", options, providers=["CPUExecutionProvider"]
        )
        for name in ("encoder", "decoder")
    )

    def answer(source: list[int]) -> tuple[list[int], float]:
        started = time.perf_counter()
        ids = np.array([source], np.int64)
        mask = np.ones_like(ids)
        hidden = encoder.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        said = [START]
        while len(said) <= tokens:
            feeds = {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}
            logits = decoder.run(None, feeds | {"input_ids": np.array([said], np.int64)})[0]
            said.append(int(logits[0, -1].argmax()))
            if said[-1] == END:
                break
        return [token for token in said[1:] if token != END], time.perf_counter() - started

    return answer


def peer(engine: EngineProcess, compute: str, tokens: int) -> Answer:
    """CTranslate2."""

    def answer(source: list[int]) -> tuple[list[int], float]:
        found = engine.ask(op="answer", compute=compute, source=source, tokens=tokens)
        return found["ids"], found["seconds"]

    return answer


def compare(
    engines: dict[str, Answer], sources: Sequence[list[int]], rounds: int
) -> dict[str, Any]:
    """Seconds of all inputs by engine, and how many answers are those of the own graphs."""
    ids: dict[str, list[list[int]]] = {}
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, answer in engines.items():
            time.sleep(REST)
            found = [answer(source) for source in sources]
            ids[name] = [answered for answered, _ in found]
            times = [took for _, took in found]
            seconds[name] = list(map(min, seconds.get(name, times), times))
    plain = sum(seconds["quickdraft none"])
    return {
        "inputs": len(sources),
        "source_tokens": sum(map(len, sources)),
        "answer_tokens": sum(map(len, ids["quickdraft none"])),
        "engines": {
            name: {
                "seconds": round(sum(times), 4),
                "ours_plain_times_as_fast": round(sum(times) / plain, 3),
                "answers_as_own_graphs": sum(map(list.__eq__, ids[name], ids["own graphs"])),
                "answers_as_plain": sum(map(list.__eq__, ids[name], ids["quickdraft none"])),
            }
            for name, times in seconds.items()
        },
    }


if __name__ == "__main__":
    main()
