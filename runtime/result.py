"""What an answer is: the whole of it, and the pieces it streams in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from quickdraft.runtime.metrics import StepRecord, Timings, drafting_summary
from quickdraft.runtime.prediction import PredictionReport
from quickdraft.types import Guarantee

FinishReason = Literal["stop", "length", "cancelled", "time"]
"""stop: an end-of-text token or a stop string. length: max_new_tokens or the context is full."""


@dataclass(frozen=True)
class TokenLogprob:
    """Natural-log probability of a chosen token under the model itself (before any option), and
    the most likely tokens, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        top = [{"token_id": token, "logprob": logprob} for token, logprob in self.top]
        return {"token_id": self.token_id, "logprob": self.logprob, "top": top}


@dataclass(frozen=True)
class Ranked:
    """One of the best answers of a search. score: the sum of its log-probabilities, under all
    options, over its length to the power of length_penalty."""

    text: str
    token_ids: tuple[int, ...]
    score: float
    finish_reason: FinishReason

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**vars(self), "token_ids": list(self.token_ids)}


@dataclass(frozen=True)
class BeamReport:
    """How a search went.

    num_beams, num_beam_groups: as asked for. rows: how keys and values of beams were held: `tree`,
    as branches over one cache, or `caches`, one each. computed: rows of all steps after the
    prefill. drafting: always `off`: what a search chooses next depends on all beams.
    """

    num_beams: int
    num_beam_groups: int
    rows: str
    computed: int
    drafting: str = "off"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(vars(self))


@dataclass(frozen=True)
class SourceReport:
    """What an encoder-decoder model answered about. n: tokens of a text or frames of sound, as unit
    says. encode_ms: the encoder, part of the prefill; 0 where it did not run, because the memory of
    the source was cached."""

    n: int
    unit: Literal["tokens", "frames"]
    encode_ms: float
    cached: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**vars(self), "encode_ms": round(self.encode_ms, 3)}


@dataclass(frozen=True)
class Result:
    """An answer. token_ids hold an end-of-text token that ended it; text does not, and ends
    before a stop string. logprobs is None unless asked for. guarantee: how this answer relates
    to that of plain decoding. device: what computed it, as its backend names that. kv_cache: how
    keys and values are stored. isa: instruction set of our kernels, None where others compute.
    degraded: why not the best variant of the bundle runs, or what of it does not run on the device.
    prefill: how the rows that the answer stands on came about, `exact` unless some were predicted,
    in this answer or an earlier one of the session; prediction: what is known of these. sequences:
    the best answers of a search, of which this is the first, and beams: how it went; empty and None
    where there was none. simulated: the device whose time the timings are, None for real ones.
    source: what an encoder-decoder model read; None of others, and where it was stopped before."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    model: str
    backend: str
    flavour: str
    guarantee: Guarantee
    timings: Timings
    steps: tuple[StepRecord, ...] = ()
    kv_cache: str = "f32"
    device: str = "CPU"
    isa: str | None = None
    degraded: str | None = None
    prefill: str = "exact"
    prediction: PredictionReport | None = None
    simulated: str | None = None
    sequences: tuple[Ranked, ...] = ()
    beams: BeamReport | None = None
    source: SourceReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """The object that `quickdraft run --json` prints."""
        answer: dict[str, Any] = {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "model": self.model,
            "backend": self.backend,
            "flavour": self.flavour,
            "device": self.device,
            "guarantee": self.guarantee,
            "kv_cache": self.kv_cache,
            "isa": self.isa,
            "degraded": self.degraded,
            "simulated": self.simulated,
            "prefill": self.prefill,
            "prediction": None if self.prediction is None else self.prediction.to_dict(),
            "source": None if self.source is None else self.source.to_dict(),
            "timings": self.timings.to_dict(),
            "drafting": drafting_summary(self.steps),
        }
        if self.logprobs is not None:
            answer["logprobs"] = [entry.to_dict() for entry in self.logprobs]
        if self.beams is not None:
            answer["sequences"] = [ranked.to_dict() for ranked in self.sequences]
            answer["beams"] = self.beams.to_dict()
        return answer


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer: text decided since the last piece (possibly none) and the
    tokens behind it. The last piece alone has a finish_reason and the whole result."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    result: Result | None = None
