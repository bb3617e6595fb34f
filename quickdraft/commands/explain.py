"""What `--explain` prints: what was planned for every step of an answer, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quickdraft.commands.output import table

if TYPE_CHECKING:
    from quickdraft.runtime.metrics import StepRecord
    from quickdraft.runtime.model import Result

HEAD = (
    *("step", "asked", "offered", "chosen", "depth", "expected", "got"),
    *("draft ms", "verify ms", "expected ms", "plain ms", "reason"),
)


def explain(result: Result) -> str:
    """A line per step: drafters asked (with what each of them had accepted), tokens offered,
    chosen, expected and got, times against those that were expected and of a plain step; predicted
    rows it went over, where any did."""
    rows: list[tuple[str, ...]] = [HEAD]
    rows += [(str(number), *_cells(step)) for number, step in enumerate(result.steps)]
    if any(step.predicted_rows for step in result.steps):
        over = ["predicted rows", *(str(step.predicted_rows) for step in result.steps)]
        rows = [(*row[:-1], cell, row[-1]) for row, cell in zip(rows, over, strict=True)]
    return table(rows, right=frozenset({0, *range(2, len(rows[0]) - 1)}))


def _cells(step: StepRecord) -> tuple[str, ...]:
    plan = step.decision
    taken = {name: accepted for name, (_, accepted) in step.by_drafter.items() if accepted}
    asked = [f"{name}:{taken[name]}" if name in taken else name for name in step.draft_s_by]
    expected, seconds, plain, reason = "", "", "", "plain decoding"
    if plan is not None:
        expected = f"{plan.expected_tokens:.2f}"
        seconds, plain = (f"{1e3 * s:.2f}" for s in (plan.expected_s, plan.plain_s))
        reason = plan.reason
    return (
        ",".join(asked) or "-",
        str(plan.offered) if plan is not None else "",
        str(step.drafted),
        str(step.depth),
        expected,
        str(step.emitted),
        f"{1e3 * step.draft_s:.2f}",
        f"{1e3 * step.verify_s:.2f}",
        seconds,
        plain,
        reason,
    )
