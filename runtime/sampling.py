"""From logits to a distribution over the next token: NumPy, pure functions.

The order is transformers': processors, temperature, top-k, top-p, min-p, typical-p. As dividing by
a temperature keeps the order of logits, top-k runs first here, and what follows sees few tokens.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.distribution import Distribution
from quickdraft.errors import BackendError, OptionError
from quickdraft.runtime import processors
from quickdraft.runtime.backends.base import TopTokens
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.result import TokenLogprob

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]
Values = NDArray[np.float64]

BLOCK = 64
"""Logits per block in `largest`."""


def process(
    logits: Logits,
    context: Ids,
    generated: int,
    config: GenerationConfig,
    eos_ids: tuple[int, ...] = (),
    source: Ids = processors.NO_SOURCE,
) -> Distribution:
    """The distribution of the next token.

    logits: float32 [vocabulary], not changed. context: int64, prompt and answer so far, of which
    the last `generated` are the answer. eos_ids: masked below the minimum length. source: tokens
    that the encoder read, none of a model without one.

    Raises:
        BackendError: a logit is not a number, or none is finite.
        OptionError: the options leave no token to choose.
    """
    best = _checked_best(logits)
    if processors.is_active(config, generated):
        logits = processors.apply_all(logits.copy(), context, generated, config, eos_ids, source)
        best = int(np.argmax(logits))
        if not np.isfinite(logits[best]):
            raise OptionError(
                "the options leave no token to choose; relax no_repeat_ngram_size, logit_bias, "
                "bad_words_ids, encoder_no_repeat_ngram_size or min_new_tokens"
            )
    if not config.do_sample or config.top_k == 1:
        return Distribution.certain(best)
    return _sampled(logits, float(logits[best]), config)


def top_decides(config: GenerationConfig, generated: int, top: int, ahead: int = 0) -> bool:
    """Whether the `top` largest logits of a row are enough for `process_top`, equal ones aside; of
    this row and of rows up to `ahead` tokens after it."""
    if top < max(config.logprobs, 1) or processors.is_active(config, generated, ahead):
        return False
    return not config.do_sample or config.top_k == 1 or 0 < config.top_k < top


def top_is_tied(top: TopTokens, config: GenerationConfig) -> bool:
    """Whether in some row logits that equal the top_k-th may be missing, all of which count."""
    if not config.do_sample or config.top_k == 1:
        return False
    return bool((top.values[:, config.top_k - 1] == top.values[:, -1]).any())


def process_top(top: TopTokens, row: int, config: GenerationConfig) -> Distribution:
    """What `process` makes of all logits of a row, to the last bit, from the largest ones.

    Asked only where `top_decides` and not `top_is_tied`.

    Raises:
        BackendError: a logit is not a number, or none is finite.
    """
    values = top.values[row]
    unsound = math.isfinite(values[0]) and math.isnan(top.log_sum[row])
    check_largest(np.float32(np.nan) if unsound else values[0])
    if not config.do_sample or config.top_k == 1:
        return Distribution.certain(int(top.ids[row, 0]))
    count = int(np.count_nonzero(values >= values[config.top_k - 1]))
    order = np.argsort(top.ids[row, :count])
    return _filtered(top.ids[row, order], values[order], float(values[0]), config)


def _checked_best(logits: Logits) -> int:
    """The index of the largest logit; argmax finds a NaN first, so checking costs nothing."""
    best = int(np.argmax(logits))
    check_largest(logits[best])
    return best


def check_largest(value: np.float32) -> None:
    """Refuse what only a faulty model has as its largest logit.

    Raises:
        BackendError: it is not a number, or none is finite.
    """
    if not math.isfinite(value):
        found = "no finite logit" if value == -np.inf else f"a logit of {value}"
        raise BackendError(f"the model produced {found}; the bundle or the backend is faulty")


def _sampled(logits: Logits, best: float, config: GenerationConfig) -> Distribution:
    """Temperature and filters, over all logits."""
    if 0 < config.top_k < len(logits):
        ids = largest(logits, config.top_k)
        return _filtered(ids, logits[ids], best, config)
    if config.top_p < 1.0:
        return _cut(*_nucleus_candidates(logits, best, config), config)
    return _filtered(np.arange(len(logits)), logits, best, config)


def _filtered(ids: Ids, logits: Logits, best: float, config: GenerationConfig) -> Distribution:
    """Temperature and filters, over the logits of some ids."""
    return _cut(ids, _weights(logits, best, config.temperature), config)


@np.errstate(over="ignore")  # a tiny temperature makes all but the best minus infinity, rightly
def _weights(logits: Logits, best: float, temperature: float) -> Values:
    """Probabilities relative to that of the best logit."""
    weights: Values = np.exp((logits.astype(np.float64) - best) / temperature)
    return weights


def _cut(ids: Ids, weights: Values, config: GenerationConfig) -> Distribution:
    """The filters that cut the distribution."""
    if config.top_p < 1.0:
        ids, weights = _select(ids, weights, nucleus(weights, config.top_p))
    if config.min_p > 0.0:
        ids, weights = _select(ids, weights, weights >= config.min_p * weights.max())
    if config.typical_p < 1.0:
        ids, weights = _select(ids, weights, typical(weights, config.typical_p))
    ids, weights = _select(ids, weights, weights > 0)
    return Distribution(ids, weights / weights.sum())


def _select(ids: Ids, weights: Values, keep: NDArray[np.bool_]) -> tuple[Ids, Values]:
    return ids[keep], weights[keep]


def largest(logits: Logits, k: int) -> Ids:
    """Ids, ascending, of the k largest logits and of all equal to the k-th.

    At least k logits reach the k-th largest block maximum, so the k-th largest logit does too:
    one vectorised pass leaves a few hundred of a large vocabulary to look at.
    """
    blocks = len(logits) // BLOCK
    if blocks > k:
        # A block is one column, so that the maxima are taken of whole rows at a time.
        maxima = logits[: blocks * BLOCK].reshape(BLOCK, blocks).max(axis=0)
        ids = np.flatnonzero(logits >= np.partition(maxima, blocks - k)[blocks - k])
    else:
        ids = np.arange(len(logits))
    values = logits[ids]
    kth = np.partition(values, len(values) - k)[len(values) - k]
    kept: Ids = ids[values >= kth]
    return kept


def _nucleus_candidates(
    logits: Logits, best: float, config: GenerationConfig
) -> tuple[Ids, Values]:
    """Enough of the largest logits to hold top_p of the mass, with their true probabilities.

    Sorting a whole vocabulary takes milliseconds; nearly always a few hundred tokens hold it.
    """
    weights = _weights(logits, best, config.temperature)
    total = weights.sum()
    k = 256
    while k < len(logits):
        ids = largest(logits, k)
        # A little more than needed, so that rounding cannot leave the last token out.
        if weights[ids].sum() > total * min(config.top_p + 1e-9, 1.0):
            return ids, weights[ids] / total
        k *= 8
    return np.arange(len(logits)), weights / total


def nucleus(weights: Values, top_p: float) -> NDArray[np.bool_]:
    """Which tokens are in the smallest set of the likeliest that holds `top_p` (Holtzman et al.,
    arXiv 1904.09751). Weights have a largest of 1, or are (a part of) a distribution."""
    total = max(float(weights.sum()), 1.0)
    order = np.argsort(-weights, kind="stable")
    ranked = weights[order]
    before = np.cumsum(ranked) - ranked
    keep = np.zeros(len(weights), np.bool_)
    keep[order[before < top_p * total]] = True
    return keep


def typical(weights: Values, mass: float) -> NDArray[np.bool_]:
    """Which tokens are locally typical (Meister et al., arXiv 2202.00666): the smallest set,
    nearest to the entropy first, that holds `mass`."""
    p = weights / weights.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(p)
        entropy = np.nansum(p * surprise)
    distance = np.abs(surprise - entropy)
    order = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(p[order]) < mass).sum()), len(p) - 1)
    keep: NDArray[np.bool_] = distance <= distance[order[last]]
    return keep


def token_logprob(logits: Logits, token: int, count: int) -> TokenLogprob:
    """Log-probability of a token under the model itself, and the `count` most likely ones."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    norm = float(np.log(np.exp(wide).sum()))
    ids = largest(logits, min(count, len(logits)))
    ranked = ids[np.argsort(-wide[ids], kind="stable")][:count]
    best = tuple((int(i), float(wide[i]) - norm) for i in ranked)
    return TokenLogprob(token, float(wide[token]) - norm, best)


def token_logprob_top(
    top: TopTokens, row: int, token: int, count: int, logits: Logits | None = None
) -> TokenLogprob:
    """`token_logprob` of a row from its largest logits, to the rounding of float32.

    count: at most the number of these. logits: all of the row, where the token may be another.
    """
    norm = float(top.log_sum[row])
    ids, values = top.ids[row].tolist(), top.values[row].tolist()
    logit = values[ids.index(token)] if logits is None else float(logits[token])
    best = tuple((i, v - norm) for i, v in zip(ids[:count], values[:count], strict=True))
    return TokenLogprob(token, logit - norm, best)
