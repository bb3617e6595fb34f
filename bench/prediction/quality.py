"""What does predicting cost in quality? The same measures for every way to begin an answer."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prediction.tasks import Question, humaneval, trivia
from prediction.ways import Way

from quickdraft.runtime.model import Model
from quickdraft.runtime.suites import SPEC_BENCH, load_suites

TEXT = Path("text") / "wikitext2_test.raw.txt.gz"
SHORTEST_PROMPT = 2

Progress = Callable[[str, int, int], None]
Ids = list[int]


@dataclass(frozen=True)
class Setting:
    """How much is measured. windows: of held-out text, each a prefix and a continuation of so many
    tokens. prompts: of each column of Spec-Bench; agreed: tokens of the exact answer. trivia,
    humaneval: questions; 0 leaves a task out."""

    windows: int = 40
    prefix: int = 384
    continuation: int = 96
    prompts: int = 8
    agreed: int = 32
    trivia: int = 100
    humaneval: int = 40


class Quality:
    """The texts and questions of a setting, and the exact model's answers to its prompts."""

    def __init__(self, model: Model, setting: Setting, data: Path) -> None:
        self.setting = setting
        self.windows = list(read_windows(model, setting, data / TEXT))
        self.prompts = chat_prompts(model, setting.prompts, data)
        self.tasks: dict[str, list[Question]] = {
            "triviaqa": trivia(data, setting.trivia),
            "humaneval": humaneval(data, setting.humaneval),
        }
        self._answers: list[Ids] = []

    def learn(self, exact: Way) -> None:
        """Ask the exact model what the others are compared with."""
        count = self.setting.agreed
        self._answers = [
            list(exact.answer(ids, max_new_tokens=count).token_ids) for ids in self.prompts
        ]

    def measure(self, way: Way, progress: Progress) -> dict[str, Any]:
        """All figures of one way."""
        figures: dict[str, Any] = {}
        if self.windows:
            figures |= self._perplexity(way, progress)
        if self.prompts:
            figures |= self._agreement(way, progress)
        for task, questions in self.tasks.items():
            if questions:
                figures[task] = _accuracy(way, task, questions, progress)
        return figures

    def empty_perplexity(self, exact: Way) -> float:
        """Of the continuations with nothing but the last token of their prefix before them."""
        losses = [losses_of(exact, prefix[-1:], text) for prefix, text in self.windows]
        return perplexity(losses)

    def _perplexity(self, way: Way, progress: Progress) -> dict[str, Any]:
        losses = []
        for number, (prefix, text) in enumerate(self.windows):
            losses.append(losses_of(way, prefix, text))
            progress(f"{way.name}: perplexity", number + 1, len(self.windows))
        return {"perplexity": round(perplexity(losses), 4)}

    def _agreement(self, way: Way, progress: Progress) -> dict[str, Any]:
        """Whether it would choose the tokens of the exact answers, given those before them. Up to
        the first one where it would not, its own greedy answer is the same."""
        choices, first = [], []
        for number, (prompt, answer) in enumerate(zip(self.prompts, self._answers, strict=True)):
            same = way.forced(prompt, answer).argmax(-1) == answer
            choices.append(same.mean())
            first.append(len(answer) if same.all() else int(same.argmin()))
            progress(f"{way.name}: agreement", number + 1, len(self.prompts))
        whole = [count == len(answer) for count, answer in zip(first, self._answers, strict=True)]
        return {
            "agreement": round(float(np.mean(choices)), 4),
            "same_tokens": round(float(np.mean(first)), 2),
            "same_answers": round(float(np.mean(whole)), 4),
        }


def losses_of(way: Way, prefix: Sequence[int], text: Sequence[int]) -> np.ndarray:
    """Minus the natural logs of the probabilities of a text after a prefix: float64 [len(text)]."""
    logits = way.forced(prefix, text).astype(np.float64)
    best = logits.max(-1)
    total = best + np.log(np.exp(logits - best[:, None]).sum(-1))
    return total - logits[np.arange(len(text)), list(text)]


def perplexity(losses: Sequence[np.ndarray]) -> float:
    """Over all tokens."""
    return math.exp(float(np.concatenate(losses).mean()))


def _accuracy(
    way: Way, task: str, questions: Sequence[Question], progress: Progress
) -> dict[str, Any]:
    right = []
    for number, question in enumerate(questions):
        ids = way.model.tokenize(question.prompt)
        options = {"stop_strings": question.stops, "max_new_tokens": question.tokens}
        right.append(question.is_right(way.answer(ids, **options).text))
        progress(f"{way.name}: {task}", number + 1, len(questions))
    # One standard error, so that nobody reads differences into noise.
    share = sum(right) / len(right)
    error = math.sqrt(share * (1 - share) / len(right))
    return {"accuracy": round(share, 4), "error": round(error, 4), "questions": len(right)}


def read_windows(model: Model, setting: Setting, file: Path) -> Iterator[tuple[Ids, Ids]]:
    """Prefixes and continuations, at equal distances over a text."""
    if not setting.windows:
        return
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        text = opened.read()
    size = setting.prefix + setting.continuation
    # Six characters a token is more than any text needs; encoding all of it takes long.
    characters = 8 * size
    for number in range(setting.windows):
        begin = number * (len(text) - characters) // setting.windows
        begin = text.find("\n", begin) + 1
        ids = model.tokenizer.encode(text[begin : begin + characters])
        if len(ids) < size:
            raise SystemExit(f"{file.name}: window {number} holds only {len(ids)} tokens")
        yield ids[: setting.prefix], ids[setting.prefix : size]


def chat_prompts(model: Model, count: int, data: Path) -> list[Ids]:
    """The first turns of Spec-Bench, as the chat template puts them."""
    if not count:
        return []
    suites = load_suites(SPEC_BENCH, count, data)
    turns = [item.turns[0] for items in suites.values() for item in items]
    return [model.tokenize_chat([{"role": "user", "content": turn}]) for turn in turns]
