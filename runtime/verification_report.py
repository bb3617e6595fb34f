"""What `quickdraft verify` finds: where drafted answers leave the plain ones, and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

from quickdraft.runtime.result import Result, TokenLogprob
from quickdraft.types import Guarantee

ROUNDING = 0.05
"""Nats by which log-probabilities may differ where rows depend on the rows beside them."""


@dataclass(frozen=True)
class Difference:
    """Where a drafted answer leaves the plain one.

    position: of the first token (from 0) that differs, or whose most likely tokens do. plain,
    drafted: the tokens there, None where the answer had ended. same_logits: whether both came from
    the same bits. deviation: nats by which log-probabilities up to there differ at most. allowed:
    whether the backend's guarantee covers it.
    """

    prompt: str
    drafter: str
    sampled: bool
    position: int
    plain: int | None
    drafted: int | None
    same_logits: bool
    deviation: float
    allowed: bool

    @property
    def same_tokens(self) -> bool:
        """Whether only bits differ."""
        return self.plain == self.drafted

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        deviation = self.deviation if math.isfinite(self.deviation) else None
        return {**asdict(self), "deviation": deviation, "same_tokens": self.same_tokens}


@dataclass(frozen=True)
class LawCheck:
    """How often each beginning of an answer came, against how often it should.

    what: what was drawn from, and how. draws: answers. drafted, accepted: tokens while drawing
    them: a drafter that proposed nothing has not been tested. ratio: how far the counts are from
    the law, over the mean of exact draws; these stay below limit.
    """

    what: str
    draws: int
    drafted: int
    accepted: int
    ratio: float

    limit: float

    @property
    def holds(self) -> bool:
        """Whether the draws follow the law as closely as exact ones do."""
        return self.ratio <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; a ratio that is infinite becomes null."""
        ratio = round(self.ratio, 4) if math.isfinite(self.ratio) else None
        return {**asdict(self), "ratio": ratio, "limit": round(self.limit, 4), "holds": self.holds}


@dataclass
class DrafterReport:
    """What came of one drafter, or of several at once.

    answers, verified: answers that were compared, and drafted tokens in them. tokens, steps,
    drafted, accepted: of the greedy ones, drafted as they are by default. fallbacks: proposals that
    could not be used.
    """

    name: str
    differences: list[Difference] = field(default_factory=list)
    laws: list[LawCheck] = field(default_factory=list)
    answers: int = 0
    verified: int = 0
    tokens: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    fallbacks: int = 0

    @property
    def identical(self) -> bool:
        """Whether every token of every answer was the plain one."""
        return all(d.same_tokens for d in self.differences)

    @property
    def bits_identical(self) -> bool:
        """Whether the most likely tokens had the same log-probabilities as well, to the bit."""
        return not self.differences

    @property
    def holds(self) -> bool:
        """Whether everything is as promised."""
        return all(d.allowed for d in self.differences) and all(law.holds for law in self.laws)

    @property
    def tokens_per_step(self) -> float | None:
        """Tokens that a step decided on average; None without steps."""
        return self.tokens / self.steps if self.steps else None

    @property
    def acceptance(self) -> float | None:
        """Accepted tokens over drafted ones; None where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    def count(self, result: Result) -> None:
        """Add the figures of an answer. The token of the prefill took no step."""
        self.tokens += max(len(result.token_ids) - 1, 0)
        self.steps += result.timings.steps
        self.drafted += result.timings.draft_n
        self.accepted += result.timings.draft_n_accepted

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "identical": self.identical,
            "tokens_per_step": _rounded(self.tokens_per_step),
            "acceptance": _rounded(self.acceptance),
            "bits_identical": self.bits_identical,
            "holds": self.holds,
            "answers": self.answers,
            "verified": self.verified,
            "fallbacks": self.fallbacks,
            "laws": [law.to_dict() for law in self.laws],
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


@dataclass(frozen=True)
class Verification:
    """What `run_verification` found.

    untested: drafters that took no part, with the reason.
    """

    model: str
    backend: str
    flavour: str
    device: str
    isa: str | None
    guarantee: Guarantee
    prompts: int
    tokens: int
    drafters: Mapping[str, DrafterReport]
    untested: Mapping[str, str]

    @property
    def holds(self) -> bool:
        """Whether everything is as promised."""
        return all(report.holds for report in self.drafters.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: the object that `quickdraft verify --json` prints."""
        reports = self.drafters.values()
        return {
            "model": self.model,
            "identical": all(report.identical for report in reports),
            "bits_identical": all(report.bits_identical for report in reports),
            "prompts": self.prompts,
            "drafters": {name: report.to_dict() for name, report in self.drafters.items()},
            "holds": self.holds,
            "guarantee": self.guarantee,
            "backend": self.backend,
            "flavour": self.flavour,
            "device": self.device,
            "isa": self.isa,
            "tokens": self.tokens,
            "untested": dict(self.untested),
            "differences": [d.to_dict() for report in reports for d in report.differences],
        }


def difference_of(
    prompt: str,
    drafter: str,
    sampled: bool,
    plain: Result,
    drafted: Result,
    guarantee: Guarantee,
) -> Difference | None:
    """Where two answers with log-probabilities part: in a token, or else in bits; None if nowhere.

    Up to the first token that differs both follow the same tokens, so that the logits are
    comparable up to there and no further.
    """
    tokens = list(zip_longest(plain.token_ids, drafted.token_ids))
    parted = next((i for i, (a, b) in enumerate(tokens) if a != b), None)
    entries = list(zip(plain.logprobs or (), drafted.logprobs or (), strict=False))
    if parted is not None:
        entries = entries[: parted + 1]
    unequal = [i for i, (a, b) in enumerate(entries) if a.top != b.top]
    if parted is None and not unequal:
        return None
    position = unequal[0] if parted is None else parted
    deviation = max((_deviation(a, b) for a, b in entries), default=0.0)
    allowed = guarantee == "lossy" or (
        guarantee == "same_distribution"
        and deviation <= ROUNDING
        and (parted is None or _is_close(*tokens[parted], entries, sampled))
    )
    return Difference(
        prompt, drafter, sampled, position, *tokens[position],
        same_logits=position not in unequal, deviation=deviation, allowed=allowed,
    )  # fmt: skip


def _deviation(a: TokenLogprob, b: TokenLogprob) -> float:
    """The largest difference between the log-probabilities that both report."""
    theirs = dict(b.top)
    return max((abs(p - theirs[t]) for t, p in a.top if t in theirs), default=math.inf)


def _is_close(
    plain: int | None,
    drafted: int | None,
    entries: Sequence[tuple[TokenLogprob, TokenLogprob]],
    sampled: bool,
) -> bool:
    """Whether rounding can have turned one token into another. A draw may fall on any boundary;
    a greedy choice turns only where two tokens are all but equally likely."""
    if plain is None or drafted is None:
        return False
    there = entries[-1][0]
    return sampled or there.logprob - dict(there.top).get(drafted, -math.inf) <= ROUNDING
