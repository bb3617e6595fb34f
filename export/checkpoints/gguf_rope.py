"""Rope scaling of a GGUF file as Hugging Face's `rope_scaling`.

Most kinds have keys. Llama 3's has none: converters store the divisor of each frequency in the
tensor `rope_freqs.weight`, from which its four parameters are recovered here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import UnsupportedModel

if TYPE_CHECKING:
    from quickdraft.export.checkpoints.gguf_config import Keys

Doubles = NDArray[np.float64]
_LLAMA_3 = (1.0, 4.0, 8_192)
"""Low and high frequency factor and original context of every published Llama 3."""


def read_rope_scaling(keys: Keys, theta: float, rotated: int) -> dict[str, Any] | None:
    """`rope_scaling`, or None. rotated: values of a head that rotate.

    Raises:
        UnsupportedModel: a kind of scaling that is not implemented.
        CheckpointError: a parameter is missing or malformed.
    """
    kind = keys.get("rope.scaling.type")
    if "rope_freqs.weight" in keys.weights:
        return _from_divisors(keys, theta, rotated)
    if "rope_factors_long.weight" in keys.weights or "rope_factors_short.weight" in keys.weights:
        return _longrope(keys, rotated)
    if kind is None:
        factor = keys.number("rope.scale_linear", 1.0)
        return None if factor == 1 else {"rope_type": "linear", "factor": factor}
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": keys.number("rope.scaling.factor")}
    if kind == "yarn":
        return _yarn(keys)
    keys.refuse("rope.scaling.type", kind, "none, linear, yarn, longrope, and Llama 3's")


def _yarn(keys: Keys) -> dict[str, Any]:
    for key in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor", "yarn_log_multiplier"):
        if keys.number(f"rope.scaling.{key}", 1.0) != 1:
            keys.refuse(f"rope.scaling.{key}", keys.get(f"rope.scaling.{key}"), "1")
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": keys.number("rope.scaling.factor"),
        "original_max_position_embeddings": keys.integer("rope.scaling.original_context_length"),
    }
    for name in ("beta_fast", "beta_slow"):
        if keys.get(f"rope.scaling.yarn_{name}") is not None:
            scaling[name] = keys.number(f"rope.scaling.yarn_{name}")
    return scaling


def _longrope(keys: Keys, rotated: int) -> dict[str, Any]:
    factors = {}
    for name in ("long", "short"):
        tensor = f"rope_factors_{name}.weight"
        values = keys.weights[tensor].dense().ravel() if tensor in keys.weights else np.empty(0)
        if len(values) * 2 != rotated or not (values > 0).all():
            keys.fail(f"{tensor!r} must hold {rotated // 2} positive values, as the rope rotates")
        factors[f"{name}_factor"] = [float(str(value)) for value in values]
    scaling: dict[str, Any] = {"rope_type": "longrope", **factors}
    stored = keys.number("rope.scaling.attn_factor", 0.0)
    usual = _longrope_attention_factor(keys)
    if stored and not math.isclose(stored, usual, rel_tol=1e-5):
        scaling["attention_factor"] = stored
    return scaling


def _longrope_attention_factor(keys: Keys) -> float:
    """What follows from the context lengths (Ding et al. 2024, arXiv 2402.13753)."""
    context = keys.integer("context_length")
    original = keys.integer("rope.scaling.original_context_length", context)
    if original < 2 or context <= original:
        return 1.0
    return math.sqrt(1 + math.log(context / original) / math.log(original))


def _from_divisors(keys: Keys, theta: float, rotated: int) -> dict[str, Any] | None:
    divisors = keys.weights["rope_freqs.weight"].dense().ravel().astype(np.float64)
    if len(divisors) * 2 != rotated or not (divisors >= 1 - 1e-6).all():
        keys.fail(f"'rope_freqs.weight' must hold {rotated // 2} values of at least 1")
    factor = float(divisors.max())
    if factor < 1 + 1e-6:
        return None
    if not theta > 1:
        keys.fail(f"{keys.architecture}.rope.freq_base is {theta}; it must be above 1")
    frequencies = theta ** (-np.arange(0, rotated, 2) / rotated)
    for low, high, original in (_LLAMA_3, _fit(frequencies, divisors, factor)):
        if high > low > 0 and original > 0:
            again = _divisors(frequencies, factor, low, high, original)
            if np.allclose(again, divisors, rtol=1e-4, atol=0):
                return {
                    "rope_type": "llama3",
                    "factor": float(str(np.float32(factor))),
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": original,
                }
    raise UnsupportedModel(
        f"{keys.file}: the tensor 'rope_freqs.weight' does not hold Llama 3's rope scaling, the "
        "only kind supported in this form"
    )


def _divisors(
    frequencies: Doubles, factor: float, low: float, high: float, original: int
) -> Doubles:
    """By what Llama 3's scaling divides each frequency."""
    blend = np.clip((original * frequencies / (2 * math.pi) - low) / (high - low), 0, 1)
    result: Doubles = 1 / ((1 - blend) / factor + blend)
    return result


def _fit(frequencies: Doubles, divisors: Doubles, factor: float) -> tuple[float, float, int]:
    """(low, high, original) from the blended divisors, with low fixed to 1; (0, 0, 0) if none.

    The blend is a line over the frequencies; only the ratios of the three parameters matter.
    """
    blend = (1 / divisors - 1 / factor) / (1 - 1 / factor)
    inside = (blend > 1e-4) & (blend < 1 - 1e-4)
    if inside.sum() < 2:
        return 0.0, 0.0, 0
    slope, start = np.polyfit(frequencies[inside] / (2 * math.pi), blend[inside], 1)
    if start >= 0:
        return 0.0, 0.0, 0
    high = 1 - 1 / start
    return 1.0, float(high), round(slope * (high - 1))
