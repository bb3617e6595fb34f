"""Questions with a known answer: TriviaQA, one example before each question, and HumanEval.

Both follow the evaluation of KV prediction (arXiv 2410.08391, section 5): TriviaQA without context,
an answer ends at a line, full stop or comma and counts if it is one of the known answers but for
case, punctuation and articles. HumanEval continues the prompt as it is; an answer counts if the
tests of the problem pass.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prediction.sandbox import passes

from quickdraft.runtime.suites import read_rows

TRIVIA_STOPS = ("\n", ".", ",")
TRIVIA_TOKENS = 24
CODE_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```", "\nassert", "\nfrom")
CODE_TOKENS = 256


@dataclass(frozen=True)
class Question:
    """prompt: text to continue. stops, tokens: where the answer ends. answers: any is right, of
    TriviaQA; program: what stands before and after the answer, of HumanEval."""

    name: str
    prompt: str
    stops: tuple[str, ...]
    tokens: int
    answers: tuple[str, ...] = ()
    program: tuple[str, str] | None = None

    def is_right(self, answer: str) -> bool:
        """Whether an answer counts. HumanEval runs it."""
        if self.program is not None:
            before, after = self.program
            return passes(f"{before}{answer}{after}")
        return normalised(answer) in {normalised(known) for known in self.answers}


def trivia(folder: Path, count: int) -> list[Question]:
    """Questions of TriviaQA at equal distances; its first one is the example before each."""
    example, *rows = read_rows(folder / "triviaqa" / "triviaqa.jsonl.gz")
    shown = f"{_trivia_prompt(example['question'])} {example['answers'][0]}\n\n"
    return [
        Question(
            row["id"],
            shown + _trivia_prompt(row["question"]),
            TRIVIA_STOPS,
            TRIVIA_TOKENS,
            answers=tuple(row["answers"]),
        )
        for row in spread(rows, count)
    ]


def _trivia_prompt(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def humaneval(folder: Path, count: int) -> list[Question]:
    """Problems of HumanEval at equal distances."""
    rows = list(read_rows(folder / "humaneval" / "HumanEval.jsonl"))
    return [
        Question(
            row["task_id"],
            row["prompt"],
            CODE_STOPS,
            CODE_TOKENS,
            program=(row["prompt"], f"\n\n{row['test']}\n\ncheck({row['entry_point']})\n"),
        )
        for row in spread(rows, count)
    ]


def spread(rows: Sequence[Mapping[str, object]], count: int) -> list[Mapping]:
    """`count` rows at equal distances, or all of them."""
    if len(rows) <= count:
        return list(rows)
    return [rows[number * len(rows) // count] for number in range(count)]


def normalised(answer: str) -> str:
    """Lower case, without punctuation, articles and extra spaces."""
    plain = answer.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())
