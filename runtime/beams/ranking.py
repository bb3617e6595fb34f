"""The likeliest tokens after a beam, from what a step computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import OptionError
from quickdraft.runtime import processors
from quickdraft.runtime.backends.base import StepOutput
from quickdraft.runtime.beams.constraints import AllowedTokens
from quickdraft.runtime.beams.search import Beam
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.sampling import check_largest, largest

Floats = NDArray[np.float32]


class Ranking:
    """What is common to all steps of an answer."""

    def __init__(
        self,
        config: GenerationConfig,
        prompt: Sequence[int],
        eos_ids: tuple[int, ...],
        allowed: AllowedTokens | None,
        source: NDArray[np.int64] = processors.NO_SOURCE,
    ) -> None:
        """source: tokens that the encoder read, none of a model without one."""
        self._source = source
        self._config, self._eos_ids, self._allowed = config, eos_ids, allowed
        self._prompt = np.asarray(prompt, np.int64)

    def few_decide(self, generated: int, count: int, top: int) -> bool:
        """Whether the `top` largest logits of a row are enough to take `count` tokens from."""
        free = self._allowed is None and self._config.num_beam_groups == 1
        return free and count <= top and not processors.is_active(self._config, generated)

    def of(self, output: StepOutput) -> StepRanking:
        """The ranking of one step."""
        return StepRanking(self, output)

    def scores(self, log_probabilities: Floats, beam: Beam, chosen: Mapping[int, int]) -> Floats:
        """Log-probabilities after a beam under all options, as transformers' processors make them;
        a new array where anything changes."""
        config, changed = self._config, log_probabilities
        if chosen:
            changed = changed.copy()
            ids = np.fromiter(chosen, np.int64)
            counts = np.fromiter(chosen.values(), np.float32)
            changed[ids] -= np.float32(config.diversity_penalty) * counts
        if processors.is_active(config, len(beam.tokens)):
            context = np.concatenate([self._prompt, np.asarray(beam.tokens, np.int64)])
            changed = changed if changed is not log_probabilities else changed.copy()
            changed = processors.apply_all(
                changed, context, len(beam.tokens), config, self._eos_ids, self._source
            )
        only = None if self._allowed is None else self._allowed(beam.tokens)
        return changed if only is None else _only(changed, only)


class StepRanking:
    """Ranks what may follow the beams of one step; a `Rank` of a search."""

    def __init__(self, ranking: Ranking, output: StepOutput) -> None:
        self._ranking, self._output = ranking, output
        self._rows: dict[int, Floats] = {}

    def __call__(
        self, beam: Beam, chosen: Mapping[int, int], count: int
    ) -> list[tuple[np.float32, int]]:
        """See Rank.

        Raises:
            BackendError: a logit is not a number, or none is finite.
            OptionError: a constraint names a token that there is not.
        """
        top = self._output.top
        if top is not None and not len(self._output.logits):
            values = top.values[beam.row, :count]
            check_largest(top.log_sum[beam.row] if np.isfinite(values[0]) else values[0])
            ids = top.ids[beam.row, :count].tolist()
            return list(zip(values - top.log_sum[beam.row], ids, strict=True))
        scores = self._ranking.scores(self._row(beam.row), beam, chosen)
        ids = largest(scores, min(count, len(scores)))
        ids = ids[np.isfinite(scores[ids])]
        ids = ids[np.argsort(-scores[ids], kind="stable")][:count]
        return list(zip(scores[ids], ids.tolist(), strict=True))

    def _row(self, row: int) -> Floats:
        """Log-probabilities of a row, computed once for all beams that share it."""
        if row not in self._rows:
            self._rows[row] = log_softmax(self._output.logits[row])
        return self._rows[row]


def log_softmax(logits: Floats) -> Floats:
    """Float32 throughout, as in transformers.

    Raises:
        BackendError: a logit is not a number, or none is finite.
    """
    best = logits[int(np.argmax(logits))]
    check_largest(best)
    shifted = logits - best
    result: Floats = shifted - np.log(np.exp(shifted).sum(dtype=np.float32))
    return result


def _only(scores: Floats, ids: Sequence[int]) -> Floats:
    """Rule out all other tokens."""
    kept = np.full_like(scores, -np.inf)
    index = np.asarray(ids, np.int64)
    wrong = index[(index < 0) | (index >= len(scores))]
    if len(wrong):
        raise OptionError(
            f"a constraint allows token {wrong[0]}, and the vocabulary has {len(scores)} tokens"
        )
    kept[index] = scores[index]
    return kept
