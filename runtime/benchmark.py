"""Speed of a backend, measured the way llama-bench does.

`pp512` times the prefill of 512 tokens into an empty cache, `tg64` 64 steps of one token each
from an empty cache. Tokens are pseudo-random and the same in every run; no tokenising and no
sampling is inside the clock. Every repetition starts from an empty cache, after one untimed
warm-up. With a drafter the input must be real text, because acceptance depends on it:
`measure_text` decodes the answer to a prompt, sampling and engine included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.tree import Tree
from quickdraft.errors import OptionError
from quickdraft.runtime.backends.base import Backend, CancelToken
from quickdraft.runtime.clock import now
from quickdraft.runtime.drafting import Drafting, DraftingSetup
from quickdraft.runtime.model import Model
from quickdraft.runtime.prediction import Prefill
from quickdraft.runtime.sources import trial_cache

SEED = 20_240_229
PREFILL_CHUNK = 512

Clock = Callable[[], float]


@dataclass(frozen=True)
class Measurement:
    """One test. tokens: per repetition. seconds: one entry per repetition, in order.

    acceptance (0..1) and tokens_per_step are set for runs with a drafter only.
    """

    test: str
    tokens: int
    seconds: tuple[float, ...]
    acceptance: float | None = None
    tokens_per_step: float | None = None

    @property
    def rates(self) -> tuple[float, ...]:
        """Tokens per second of every repetition."""
        return tuple(self.tokens / seconds for seconds in self.seconds)

    @property
    def mean(self) -> float:
        """Mean of the rates."""
        return math.fsum(self.rates) / len(self.rates)

    @property
    def deviation(self) -> float:
        """Sample standard deviation of the rates; 0 for a single repetition."""
        if len(self.rates) < 2:
            return 0.0
        mean = self.mean
        return math.sqrt(math.fsum((r - mean) ** 2 for r in self.rates) / (len(self.rates) - 1))

    @property
    def slowest(self) -> float:
        """The smallest rate."""
        return min(self.rates)


def random_tokens(vocab_size: int, count: int) -> NDArray[np.int64]:
    """int64 [count]: the same pseudo-random ids every time; a longer draw begins with a shorter."""
    return np.random.default_rng(SEED).integers(0, vocab_size, count, np.int64)


def prefill_seconds(
    backend: Backend,
    tokens: NDArray[np.int64],
    chunk: int = PREFILL_CHUNK,
    cancel: CancelToken | None = None,
    clock: Clock = now,
) -> float:
    """Seconds to prefill int64 [n] tokens into an empty cache, `chunk` rows at a time.

    Only the last row's logits are computed, as for an answer, and no more of them than a greedy
    answer needs.
    """
    cache = trial_cache(backend)
    start = clock()
    for begin in range(0, len(tokens), chunk):
        part = tokens[begin : begin + chunk]
        last = np.array([len(part) - 1])
        backend.step(Tree.chain(part), cache, last, cancel, full_logits=False)
        cache.commit(range(len(part)))
    return clock() - start


def decode_seconds(
    backend: Backend,
    tokens: NDArray[np.int64],
    cancel: CancelToken | None = None,
    clock: Clock = now,
) -> float:
    """Seconds to decode int64 [n] tokens, one step each, from an empty cache."""
    cache = trial_cache(backend)
    start = clock()
    for token in tokens:
        backend.step(Tree.chain([int(token)]), cache, None, cancel, full_logits=False)
        cache.commit([0])
    return clock() - start


def measure(
    backend: Backend,
    prompts: tuple[int, ...] = (128, 512),
    decode: tuple[int, ...] = (64,),
    repetitions: int = 5,
    cancel: CancelToken | None = None,
) -> Iterator[Measurement]:
    """Run the tests in order, yielding each when it is done.

    prompts: lengths of prefill tests. decode: numbers of steps of decode tests.

    Raises:
        OptionError: a length that does not fit the context, or no repetition.
    """
    _check(backend.spec.context_length, prompts, decode, repetitions)

    def repeat(test: str, count: int, run: Callable[[NDArray[np.int64]], float]) -> Measurement:
        tokens = random_tokens(backend.spec.vocab_size, count)
        run(tokens)
        return Measurement(test, count, tuple(run(tokens) for _ in range(repetitions)))

    for count in prompts:
        yield repeat(f"pp{count}", count, lambda t: prefill_seconds(backend, t, cancel=cancel))
    for count in decode:
        yield repeat(f"tg{count}", count, lambda t: decode_seconds(backend, t, cancel=cancel))


def measure_prediction(
    model: Model, counts: tuple[int, ...], prefill: str, repetitions: int = 5
) -> Iterator[Measurement]:
    """Prefill tests again, with predicted rows: until the last token's logits are there.

    Raises:
        OptionError: see GenerationConfig; or a refresh is asked for, which comes later; or a length
            is too short to predict anything.
    """
    asked = Prefill.parse(prefill)
    model.prediction.prepare(asked)
    if asked.refresh:
        raise OptionError(f"prefill is {prefill!r}; a prefill test ends before a refresh begins")
    for count in counts:
        if not model.prediction.rows(asked, count):
            raise OptionError(f"nothing is predicted of {count} tokens with {prefill!r}")

    def repeat(count: int) -> Measurement:
        tokens = random_tokens(model.spec.vocab_size, count)
        seconds = [_predicted_seconds(model, tokens, asked) for _ in range(repetitions + 1)]
        return Measurement(f"pp{count} {prefill}", count, tuple(seconds[1:]))

    return map(repeat, counts)


def _predicted_seconds(model: Model, tokens: NDArray[np.int64], prefill: Prefill) -> float:
    session = model.session(Drafting((), model.backend))
    session.rewind(tokens.tolist(), predicted=True)
    cache = session.cache
    start = now()
    session.predict(model.prediction.rows(prefill, len(tokens)), prefill, None)
    while cache.length < len(tokens):
        part = tokens[cache.length : cache.length + PREFILL_CHUNK]
        last = np.array([len(part) - 1])
        model.backend.step(Tree.chain(part), cache, last, full_logits=False)
        cache.commit(range(len(part)))
    return now() - start


def measure_text(
    model: Model, prompt: str, count: int, drafter: str, repetitions: int = 5
) -> Measurement:
    """Decode `count` tokens of the greedy answer to a prompt with a drafter, several between
    commas, "auto" or "none". Nothing learnt is kept, and each repetition starts with nothing.

    The clock runs from the first token to the last: the prefill is not in it, drafting is.

    Raises:
        OptionError: an unknown drafter, fewer than 2 tokens, or no repetition.
        ContextOverflow: the prompt does not fit.
    """
    if count < 2:
        raise OptionError(f"a text test decodes {count} tokens; it must be at least 2")
    if repetitions < 1:
        raise OptionError(f"repetitions is {repetitions}; it must be at least 1")
    results = []
    for _ in range(repetitions + 1):
        with model.open_drafting(DraftingSetup(drafter, store=False)) as drafting:
            session = model.session(drafting)
            results.append(
                model.generate(
                    prompt, session=session, temperature=0.0, ignore_eos=True, max_new_tokens=count
                ).timings
            )
    timed = results[1:]
    steps = timed[0].steps
    return Measurement(
        test=f"text{count} {drafter}",
        tokens=timed[0].predicted_n - 1,
        seconds=tuple(t.predicted_ms / 1e3 for t in timed),
        acceptance=timed[0].draft_n_accepted / timed[0].draft_n if timed[0].draft_n else None,
        tokens_per_step=(timed[0].predicted_n - 1) / steps if steps else None,
    )


def _check(
    context_length: int, prompts: tuple[int, ...], decode: tuple[int, ...], repetitions: int
) -> None:
    """Refuse what cannot be measured before anything runs."""
    if repetitions < 1:
        raise OptionError(f"repetitions is {repetitions}; it must be at least 1")
    for kind, counts in (("prompt", prompts), ("decode", decode)):
        for count in counts:
            if not 1 <= count <= context_length:
                raise OptionError(
                    f"a {kind} test of {count} tokens does not fit: "
                    f"this model takes 1 to {context_length}"
                )
