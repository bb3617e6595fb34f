"""Does a model fit? Weights, keys and values of a context, and room to compute in; the same of the
parts that run beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quickdraft.errors import DeviceError
from quickdraft.hotpath_attention import bands
from quickdraft.types import ModelSpec

LEAST_CONTEXT = 512
"""A model that cannot hold so many tokens (or its own context, where that is shorter) is of no
use."""
CHUNK = 512
"""Rows of a prefill chunk."""
COPIES = 16
"""Rows of the hidden width that a step keeps at once, the gated MLP's four to five times wider ones
counted as such: an estimate, above what was measured on models of 135M and 1.5B parameters."""
LOGITS = 16
"""Rows of logits that it keeps."""

_BYTES = {"f32": 4, "f16": 2, "int8": 1}
_SCALE_BYTES = 4


def kv_bytes_per_token(spec: ModelSpec, kv_type: str) -> int:
    """Bytes of the keys and values of one token over all layers; int8 values have a scale a head,
    keys a scale a band."""
    scales = _SCALE_BYTES * (len(bands(spec.head_dim)) + 1) if kv_type == "int8" else 0
    return sum(spec.num_kv_heads) * (2 * spec.head_dim * _BYTES[kv_type] + scales)


@dataclass(frozen=True)
class Footprint:
    """What a model keeps in memory, whatever its context.

    weights: bytes of one copy. kv_type: of keys and values. graphs: that each hold a copy of the
    weights, and `graph` bytes of their own. slots: of cache that graphs set aside for themselves
    until their first step; 0 for none. once: other bytes. scores: bytes that a step works in for
    each token of the context. parts: bytes of what runs beside the target and is in none of its
    files. kv_parts: bytes of a token in all caches but the target's. working: bytes that sessions
    beside the target's compute in.
    """

    weights: int
    kv_type: str
    graphs: int = 1
    graph: int = 0
    slots: int = 0
    once: int = 0
    scores: int = 0
    parts: int = 0
    kv_parts: int = 0
    working: int = 0

    @property
    def held(self) -> int:
        """Bytes of all copies of the weights and what comes with them."""
        return self.graphs * (self.weights + self.graph) + self.once


@dataclass(frozen=True)
class MemoryPlan:
    """All in bytes but `context`, in tokens, and `graphs`, which each hold the weights. weights: of
    all copies. kv: of the context, stored as `kv_type`. parts: weights beside the target's.
    kv_parts_per_token: in caches beside the target's, of parts and of a refresh. budget: what there
    is, None where the system does not say."""

    weights: int
    kv_per_token: int
    context: int
    workspace: int
    budget: int | None
    graphs: int = 1
    kv_type: str = "f16"
    parts: int = 0
    kv_parts_per_token: int = 0

    @property
    def kv(self) -> int:
        """Keys and values of the whole context."""
        return self.context * self.kv_per_token

    @property
    def kv_parts(self) -> int:
        """The same in caches beside the target's."""
        return self.context * self.kv_parts_per_token

    @property
    def needed(self) -> int:
        """All of it."""
        return self._fixed + self.kv + self.kv_parts

    @property
    def _fixed(self) -> int:
        """What does not grow with the context."""
        return self.weights + self.parts + self.workspace

    @property
    def fits(self) -> bool:
        """Whether there is room; so where nobody knows."""
        return self.budget is None or self.needed <= self.budget

    @property
    def longest_context(self) -> int | None:
        """Tokens that fit beside the weights; 0 if not even these do, None where nobody knows."""
        if self.budget is None:
            return None
        per_token = self.kv_per_token + self.kv_parts_per_token
        return max(self.budget - self._fixed, 0) // per_token

    def check(self, model: str, device: str) -> None:
        """Refuse a model that cannot fit.

        Raises:
            DeviceError: with the figures, and what to do.
        """
        if self.fits:
            return
        longest = self.longest_context or 0
        shorter = (
            f"ask for a context of at most {longest} tokens"
            if longest >= 1
            else "take a smaller model or a narrower weight format"
        )
        copies = f" ({self.graphs} graphs with a copy each)" if self.graphs > 1 else ""
        if copies:
            shorter += ", or export with fewer --widths"
        parts = [
            f"weights {_mib(self.weights)}{copies}",
            f"keys and values of {self.context} tokens {_mib(self.kv)}",
            f"workspace {_mib(self.workspace)}",
        ]
        if self.parts or self.kv_parts:
            parts.append(f"predictors and drafts {_mib(self.parts)}")
            parts.append(f"keys and values beside the model's {_mib(self.kv_parts)}")
            shorter += ", or leave out --prefill or drafters that are parts of the bundle"
        raise DeviceError(
            f"{model} does not fit on {device}: {' + '.join(parts)} = {_mib(self.needed)}, and it "
            f"may take {_mib(self.budget or 0)}; {shorter}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "weights": self.weights,
            "graphs": self.graphs,
            "kv_type": self.kv_type,
            "kv_per_token": self.kv_per_token,
            "context": self.context,
            "kv": self.kv,
            "workspace": self.workspace,
            "parts": self.parts,
            "kv_parts_per_token": self.kv_parts_per_token,
            "kv_parts": self.kv_parts,
            "needed": self.needed,
            "budget": self.budget,
            "fits": self.fits,
            "longest_context": self.longest_context,
        }


def plan_memory(
    spec: ModelSpec, footprint: Footprint, context: int, budget: int | None
) -> MemoryPlan:
    """What a model takes.

    Raises:
        DeviceError: the context is not one of the model.
    """
    if not 1 <= context <= spec.context_length:
        raise DeviceError(
            f"context is {context}; this model holds 1 to {spec.context_length} tokens"
        )
    workspace = workspace_of(spec) + footprint.working
    kv_type = footprint.kv_type
    per_token = kv_bytes_per_token(spec, kv_type)
    workspace += footprint.slots * per_token + footprint.scores * context
    return MemoryPlan(
        weights=footprint.held,
        kv_per_token=per_token,
        context=context,
        workspace=workspace,
        budget=budget,
        graphs=footprint.graphs,
        kv_type=kv_type,
        parts=footprint.parts,
        kv_parts_per_token=footprint.kv_parts,
    )


def workspace_of(spec: ModelSpec) -> int:
    """Bytes that one session computes in."""
    rows = min(CHUNK, spec.context_length)
    return 4 * (rows * spec.hidden_size * COPIES + spec.vocab_size * LOGITS)


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
