"""How to generate: one frozen value with transformers' names, checked when it is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, get_args

from quickdraft.errors import OptionError
from quickdraft.runtime.beam_options import BEAM_OPTIONS, MAX_BEAMS, EarlyStopping, check_beams
from quickdraft.runtime.prediction import Prefill

Acceptance = Literal["exact", "typical", "judge"]

MAX_NEW_TOKENS = 1 << 20
MAX_STOP_STRINGS = 16
MAX_STOP_BYTES = 256
MAX_BIASES = 1_024
MAX_TOKEN_ID = (1 << 31) - 1

_INTEGERS: Mapping[str, tuple[int, int]] = {
    "max_length": (1, MAX_NEW_TOKENS),
    "min_length": (0, MAX_NEW_TOKENS),
    "max_new_tokens": (1, MAX_NEW_TOKENS),
    "min_new_tokens": (0, MAX_NEW_TOKENS),
    "top_k": (0, 1 << 20),
    "no_repeat_ngram_size": (0, 256),
    "encoder_no_repeat_ngram_size": (0, 256),
    "seed": (0, (1 << 64) - 1),
    "logprobs": (0, 20),
    "num_draft_tokens": (0, 64),
    "prompt_lookup_num_tokens": (0, 64),
    "max_matching_ngram_size": (1, 16),
    "prefill_chunk_size": (1, 8_192),
    "num_beams": (1, MAX_BEAMS),
    "num_beam_groups": (1, MAX_BEAMS),
    "num_return_sequences": (1, MAX_BEAMS),
    "timestamp_begin": (1, MAX_TOKEN_ID),
}
_FLOATS: Mapping[str, tuple[float, float, bool]] = {  # low, high, whether low itself is allowed
    "temperature": (0.0, 100.0, True),
    "top_p": (0.0, 1.0, False),
    "min_p": (0.0, 1.0, True),
    "typical_p": (0.0, 1.0, False),
    "repetition_penalty": (0.01, 100.0, True),  # less would overflow what it divides
    "presence_penalty": (-100.0, 100.0, True),
    "frequency_penalty": (-100.0, 100.0, True),
    "max_time": (0.0, 1e7, False),
    "posterior_threshold": (0.0, 1.0, False),
    "posterior_alpha": (0.0, 1.0, False),
    "judge_threshold": (0.0, 1.0, True),
    "length_penalty": (-16.0, 16.0, True),  # more would overflow a power of a length
    "diversity_penalty": (0.0, 1e6, True),
}
_NAMES_TOKENS = (
    *("logit_bias", "eos_token_id", "suppress_tokens", "begin_suppress_tokens"),
    *("timestamp_begin", "forced_eos_token_id"),
)
_OPTIONAL = frozenset(
    {
        *("seed", "max_time", "eos_token_id", "num_draft_tokens"),
        *("prompt_lookup_num_tokens", "max_matching_ngram_size", "timestamp_begin"),
        *("max_length", "forced_eos_token_id"),
    }
)


@dataclass(frozen=True)
class GenerationConfig:
    """Options of one answer.

    Nothing is clamped: a value out of range raises OptionError. `do_sample` is derived
    (temperature 0 is greedy); `from_dict` and `replace` also take it as a key.

    max_new_tokens, min_new_tokens: tokens of the answer; end-of-text is masked below the minimum.
    max_length, min_length: the same of prompt and answer together (of an encoder-decoder model:
    what answers begin with, and answer). max_length gives way to max_new_tokens where `replace` is
    given that alone, min_length to min_new_tokens.
    temperature: 0 picks the most likely token. top_k: 0 turns it off.
    repetition_penalty: over prompt and answer, as in transformers (1 is off).
    presence_penalty, frequency_penalty: over the answer only, subtracted (0 is off).
    no_repeat_ngram_size: n-grams of prompt and answer that may not come twice (0 is off).
    encoder_no_repeat_ngram_size: n-grams of the source that an answer may not have (0 is off).
    bad_words_ids: sequences of tokens that may not come. forced_eos_token_id: the only tokens that
    may be the last one where max_new_tokens or max_length ends the answer.
    suppress_tokens: never chosen; begin_suppress_tokens: not as the first of the answer.
    timestamp_begin: token of time 0 of a speech model; its answer then says times by the rules of
    Whisper; None: no such rules. logit_bias: added to the logits, by token id. seed: None draws a
    fresh one.
    stop_strings: the answer ends before the first of these. eos_token_id: replaces the model's
    end-of-text tokens; ignore_eos: they do not end the answer.
    max_time: seconds from the call. logprobs: report this many most likely tokens per token.
    num_draft_tokens: tokens drafted per step; None leaves it to the controller, 0 is plain
    decoding. prompt_lookup_num_tokens: longest draft of prompt lookup (0 turns it off), and
    max_matching_ngram_size: longest n-gram it looks up; None leaves them to the drafter.
    acceptance: exact, or typical: lossy, it takes any draft whose probability is above the lower of
    posterior_threshold and posterior_alpha * exp(-entropy), or judge: lossy, it also takes a draft
    of which the judge of the bundle is surer than judge_threshold. prefill_chunk_size: tokens of
    the prompt per step. prefill: exact, or predicted or hybrid:N, lossy: keys and values of the
    prompt (of all but its last N tokens) are predicted where the session holds none of it; with
    @NAME by that predictor, with +refresh replaced by exact ones while the answer goes on.
    num_beams: more than one searches for the likeliest answers, undrafted; num_beam_groups of them
    differ from each other by diversity_penalty. length_penalty: answers are ranked by the sum of
    their log-probabilities over the length to this power. early_stopping: true ends as soon as
    there are num_beams answers, false when a better one is unlikely, never when there can be none.
    num_return_sequences: of the best answers. None of these matters to a single beam.
    """

    max_new_tokens: int = 512
    min_new_tokens: int = 0
    max_length: int | None = None
    min_length: int = 0
    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    forced_eos_token_id: tuple[int, ...] | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    timestamp_begin: int | None = None
    stop_strings: tuple[str, ...] = ()
    eos_token_id: tuple[int, ...] | None = None
    ignore_eos: bool = False
    max_time: float | None = None
    logprobs: int = 0
    num_draft_tokens: int | None = None
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    acceptance: Acceptance = "exact"
    posterior_threshold: float = 0.09
    posterior_alpha: float = 0.3
    judge_threshold: float = 0.5
    prefill_chunk_size: int = 256
    prefill: str = "exact"
    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        for name, (low, high) in _INTEGERS.items():
            self._set(name, partial(_integer, name, low=low, high=high))
        for name, (bottom, top, closed) in _FLOATS.items():
            self._set(name, partial(_real, name, low=bottom, high=top, closed=closed))
        self._set("logit_bias", _biases)
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            self._set(name, partial(_token_ids, name=name))
        self._set("stop_strings", _stop_strings)
        self._set("eos_token_id", _token_ids)
        self._set("forced_eos_token_id", partial(_token_ids, name="forced_eos_token_id"))
        self._set("bad_words_ids", _bad_words)
        self._set("prefill", lambda value: str(Prefill.parse(value)))
        if not isinstance(self.ignore_eos, bool):
            raise OptionError(f"ignore_eos is {self.ignore_eos!r}; it must be true or false")
        if self.acceptance not in get_args(Acceptance):
            known = ", ".join(get_args(Acceptance))
            raise OptionError(f"acceptance is {self.acceptance!r}; it must be one of {known}")
        if self.min_new_tokens > self.max_new_tokens:
            raise OptionError(
                f"min_new_tokens is {self.min_new_tokens}, more than max_new_tokens "
                f"({self.max_new_tokens}); lower one or raise the other"
            )
        check_beams(self)

    def _set(self, name: str, check: Callable[[Any], Any]) -> None:
        value = getattr(self, name)
        if value is None and name in _OPTIONAL:
            return
        object.__setattr__(self, name, check(value))

    @property
    def do_sample(self) -> bool:
        """Whether tokens are drawn at random; otherwise the most likely one is taken."""
        return self.temperature > 0

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> GenerationConfig:
        """A config from names and values.

        Raises:
            OptionError: a name is unknown (the message has the nearest), or a value is bad.
        """
        return cls().replace(**options)

    @classmethod
    def from_defaults(cls, generation: Mapping[str, Any]) -> GenerationConfig:
        """The defaults of a bundle, read as transformers reads generation_config.json.

        Nulls and keys that are not ours are left out (`model_defaults.not_followed` names those
        that would change answers), and max_length where there is max_new_tokens; temperature counts
        only with do_sample. Nobody gets a predicted prefill, a lossy rule or several beams without
        asking.

        Raises:
            OptionError: a known key has a bad value.
        """
        known = {k: v for k, v in generation.items() if k in OPTION_NAMES and v is not None}
        for name in ("prefill", "acceptance", *BEAM_OPTIONS):
            known.pop(name, None)
        if "max_new_tokens" in known:
            known.pop("max_length", None)
        if not _flag("do_sample", known.setdefault("do_sample", False)):
            known.pop("temperature", None)
        return cls.from_dict(known)

    def replace(self, **overrides: Any) -> GenerationConfig:
        """A copy with some options changed.

        `do_sample=False` sets temperature 0; `do_sample=True` sets it to 1 where it is 0. A length
        of the answer replaces that of prompt and answer, and the other way round.

        Raises:
            OptionError: a name is unknown (the message has the nearest), or a value is bad.
        """
        for name in overrides:
            if name not in OPTION_NAMES:
                raise OptionError(_unknown(name))
        if "max_new_tokens" in overrides:
            overrides.setdefault("max_length", None)
        elif overrides.get("max_length") is not None:
            overrides["max_new_tokens"] = overrides["max_length"]  # the weaker of the two
        if "min_new_tokens" in overrides:
            overrides.setdefault("min_length", 0)
        sample = overrides.pop("do_sample", None)
        if sample is not None:
            sample = _flag("do_sample", sample)
            given = overrides.setdefault("temperature", (self.temperature or 1.0) * sample)
            if not isinstance(given, str) and sample != bool(given):
                raise OptionError(
                    f"do_sample is {str(sample).lower()} and temperature is {given}; give one"
                )
        return dataclasses.replace(self, **overrides)

    def after(self, prompt: int) -> GenerationConfig:
        """The same for an answer after so many tokens: lengths in all become those of the answer.

        Raises:
            OptionError: max_length leaves no room for an answer.
        """
        if self.max_length is None and self.min_length <= prompt:
            return self
        most, least = self.max_new_tokens, max(self.min_new_tokens, self.min_length - prompt)
        if self.max_length is not None:
            most = min(most, self.max_length - prompt)
        if most < 1:
            raise OptionError(
                f"max_length is {self.max_length}, and there are {prompt} tokens before the "
                "answer; raise it, or give max_new_tokens"
            )
        least = min(least, most)
        return dataclasses.replace(
            self, max_length=None, min_length=0, max_new_tokens=most, min_new_tokens=least
        )

    def to_dict(self) -> dict[str, Any]:
        """All options as plain JSON types; `from_dict` reads it back."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        options["logit_bias"] = {str(k): v for k, v in self.logit_bias.items()}
        for name in ("stop_strings", "suppress_tokens", "begin_suppress_tokens"):
            options[name] = list(options[name])
        options["bad_words_ids"] = [list(tokens) for tokens in self.bad_words_ids]
        for name in ("eos_token_id", "forced_eos_token_id"):
            if options[name] is not None:
                options[name] = list(options[name])
        return options

    def check_vocabulary(self, size: int) -> None:
        """Refuse token ids that a vocabulary of `size` tokens does not have.

        Raises:
            OptionError: an id of an option is too high.
        """
        for name in _NAMES_TOKENS:
            value = getattr(self, name)
            self._check_tokens(name, (value,) if isinstance(value, int) else value or (), size)
        for tokens in self.bad_words_ids:
            self._check_tokens("bad_words_ids", tokens, size)

    @staticmethod
    def _check_tokens(name: str, tokens: Iterable[int], size: int) -> None:
        for token in tokens:
            if token >= size:
                raise OptionError(
                    f"{name} names token {token}, and the vocabulary has {size} tokens"
                )


OPTION_NAMES = frozenset({f.name for f in dataclasses.fields(GenerationConfig)} | {"do_sample"})


def _unknown(name: str) -> str:
    near = get_close_matches(name, OPTION_NAMES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown generation option {name!r}{hint}"


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{name} is {value!r}; it must be true or false")
    return value


def _integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise OptionError(f"{name} is {value!r}; it must be a whole number")
    number = int(value)
    if not low <= number <= high:
        raise OptionError(f"{name} is {number}; it must be between {low} and {high}")
    return number


def _real(name: str, value: Any, low: float, high: float, closed: bool) -> float:
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise OptionError(f"{name} is {value!r}; it must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    # NaN fails both comparisons, so it is refused here too.
    if not ((low <= number if closed else low < number) and number <= high):
        bound = "at least" if closed else "above"
        raise OptionError(f"{name} is {value}; it must be {bound} {low:g} and at most {high:g}")
    return number


def _biases(value: Any) -> Mapping[int, float]:
    if not isinstance(value, Mapping):
        raise OptionError(f"logit_bias is {value!r}; it must map token ids to numbers")
    if len(value) > MAX_BIASES:
        raise OptionError(f"logit_bias has {len(value)} entries; at most {MAX_BIASES} are allowed")
    biases = {}
    for key, bias in value.items():
        digits = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 11
        token = _integer("a token id of logit_bias", int(key) if digits else key, 0, MAX_TOKEN_ID)
        biases[token] = _real(f"logit_bias of token {token}", bias, -1e6, 1e6, True)
    return MappingProxyType(biases)


def _stop_strings(value: Any) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)):
        raise OptionError(f"stop_strings is {value!r}; it must be a string or a list of strings")
    if len(strings) > MAX_STOP_STRINGS:
        raise OptionError(
            f"stop_strings has {len(strings)} entries; at most {MAX_STOP_STRINGS} are allowed"
        )
    for string in strings:
        if not isinstance(string, str) or not string:
            raise OptionError(f"stop_strings holds {string!r}; each must be a non-empty string")
        if len(string.encode("utf-8", "surrogatepass")) > MAX_STOP_BYTES:
            raise OptionError(
                f"stop_strings holds one of more than {MAX_STOP_BYTES} bytes; shorten it"
            )
    return tuple(strings)


def _bad_words(value: Any) -> tuple[tuple[int, ...], ...]:
    name = "bad_words_ids"
    if not isinstance(value, (list, tuple)) or len(value) > MAX_BIASES:
        raise OptionError(
            f"{name} must be a list of at most {MAX_BIASES} lists of token ids, as in [[5], [6, 7]]"
        )
    for tokens in value:
        if not isinstance(tokens, (list, tuple)) or not tokens:
            raise OptionError(
                f"{name} holds {tokens!r}; each must be a non-empty list of token ids"
            )
    return tuple(_token_ids(tokens, name) for tokens in value)


def _token_ids(value: Any, name: str = "eos_token_id") -> tuple[int, ...]:
    ids = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(_integer(name, token, 0, MAX_TOKEN_ID) for token in ids)
