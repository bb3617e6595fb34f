"""Prompts for the real models: a list of our own, and questions of the data folder."""

from __future__ import annotations

import json

from tiny.lines import data_folder

_TOPICS = (
    "the capital of France", "how rain forms", "a for loop in Python", "the water cycle",
    "prime numbers", "the French Revolution", "how to boil an egg", "photosynthesis",
    "the rules of chess", "a haiku about autumn", "binary search", "the speed of light",
    "how bread rises", "the planets of the solar system", "recursion", "good manners",
)  # fmt: skip
_FORMS = ("Explain {}.", "Write two sentences about {}.", "List three facts about {}.")
_REPEATING = (
    "Repeat this sentence three times: The cat sat on the mat and looked at the moon.",
    "Correct the spelling, and write the whole text again: Teh quick brown fox jumsp over teh dog.",
)
OWN = (*(form.format(topic) for form in _FORMS for topic in _TOPICS), *_REPEATING)
"""Fifty; the last two have answers that repeat them, which is what prompt lookup drafts from."""

MAX_CHARACTERS = 3_000


def questions(count: int) -> list[str]:
    """First turns of Spec-Bench, of all its categories alike; else prompts of our own."""
    file = data_folder() / "spec_bench" / "question.jsonl"
    if not file.is_file():
        return list(OWN[-count:])
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    turns = [row["turns"][0] for row in rows]
    short = [turn for turn in turns if len(turn) <= MAX_CHARACTERS]
    return [short[at * len(short) // count] for at in range(count)]
