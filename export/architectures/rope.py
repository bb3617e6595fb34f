"""Rotary frequencies from a config, rounded as transformers rounds them (float32 throughout).

Sources: RoPE (Su et al. 2021, arXiv 2104.09864), linear interpolation (Chen et al. 2023, arXiv
2306.15595), YaRN (Peng et al. 2023, arXiv 2309.00071), LongRoPE (Ding et al. 2024, arXiv
2402.13753), Llama 3.1 (model card); constants as in transformers 4.57.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import CheckpointError
from quickdraft.export.architectures.config import Config
from quickdraft.export.ops import Rope

Floats = NDArray[np.float32]
_ONE = np.float32(1)

MAX_HEAD_DIM = 1 << 14

_SCALING_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}


def read_rope(
    config: Config, head_dim: int, theta: float, partial: float = 1.0, scaled: bool = True
) -> Rope:
    """The rotary embedding that `rope_scaling` describes.

    head_dim: width of a head; the first int(head_dim * partial) values rotate. scaled: False
    ignores `rope_scaling` (the local layers of Gemma 3).

    Raises:
        UnsupportedModel: a rope type we do not implement.
    """
    width = int(head_dim * partial)
    if head_dim > MAX_HEAD_DIM:
        raise config.wrong("head_dim", head_dim, f"at most {MAX_HEAD_DIM}")
    if width < 2 or width % 2 or width > head_dim:
        raise config.refuse("partial_rotary_factor", partial, "an even, non-zero rotated width")
    periods = _powers(theta, width)
    scaling = _scaling(config) if scaled else None
    if scaling is None:
        return _rope(_ONE / periods)
    rope: Rope = scaling.choice("rope_type", _SCALINGS)(config, scaling, periods, theta)
    return rope


def context_length(config: Config) -> int:
    """How many positions the frequencies are right for.

    LongRoPE switches to other frequencies past the original context, for the whole sequence at
    once; cached keys would be wrong, so we end there.
    """
    limit = config.integer("max_position_embeddings")
    scaling = _scaling(config)
    if scaling is not None and scaling.values["rope_type"] == "longrope":
        return min(limit, config.optional_integer("original_max_position_embeddings") or limit)
    return limit


def _scaling(config: Config) -> Config | None:
    """`rope_scaling`, its older key `type` renamed."""
    scaling = config.section("rope_scaling", _SCALING_DEFAULTS)
    if scaling is None:
        return None
    values = scaling.values
    kind = values.get("rope_type") or values.get("type")
    return Config({**values, "rope_type": kind}, scaling.where)


def _powers(theta: float, width: int) -> Floats:
    """theta ** (2 i / width): exponents in float32, the power rounded once, as torch comes to."""
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return np.power(theta, exponents.astype(np.float64)).astype(np.float32)


def _rope(frequencies: Floats, attention_factor: float = 1.0) -> Rope:
    values = tuple(float(value) for value in frequencies.astype(np.float32))
    return Rope(values, attention_factor)


def _default(config: Config, scaling: Config, periods: Floats, theta: float) -> Rope:
    return _rope(_ONE / periods)


def _linear(config: Config, scaling: Config, periods: Floats, theta: float) -> Rope:
    return _rope((_ONE / periods) / np.float32(scaling.number("factor")))


def _llama3(config: Config, scaling: Config, periods: Floats, theta: float) -> Rope:
    """Low frequencies divided by `factor`, high ones kept, a linear blend between."""
    factor = np.float32(scaling.number("factor"))
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if high <= low:
        raise CheckpointError(
            f"{scaling.where}: 'high_freq_factor' is {high}, not above 'low_freq_factor' {low}"
        )
    original = scaling.integer("original_max_position_embeddings")
    frequencies = _ONE / periods
    # Products with reciprocals, not quotients: that is how torch divides a number by a tensor.
    lengths = (_ONE / frequencies) * np.float32(2 * math.pi)
    blend = ((_ONE / lengths) * np.float32(original) - np.float32(low)) / np.float32(high - low)
    blended = (_ONE - blend) * frequencies / factor + blend * frequencies
    slow, fast = lengths > original / low, lengths < original / high
    result = np.where(slow, frequencies / factor, np.where(fast, frequencies, blended))
    return _rope(result.astype(np.float32))


def _yarn(config: Config, scaling: Config, periods: Floats, theta: float) -> Rope:
    """Interpolated below `beta_slow` rotations over the original context, kept above
    `beta_fast`, a linear ramp over dimensions between."""
    factor = scaling.number("factor")
    width = 2 * len(periods)
    # The published code falls back on max_position_embeddings, so we do.
    original = scaling.optional_integer("original_max_position_embeddings")
    context = original or config.integer("max_position_embeddings")

    def dimension(rotations: float) -> float:
        return width * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension(scaling.number("beta_fast"))
    high = dimension(scaling.number("beta_slow"))
    if scaling.flag("truncate"):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    index = np.arange(width // 2, dtype=np.float32)
    kept = _ONE - np.clip((index - np.float32(low)) / np.float32(high - low), 0, 1)
    interpolated = _ONE / (np.float32(factor) * periods)
    frequencies = interpolated * (_ONE - kept) + (_ONE / periods) * kept
    return _rope(frequencies, _yarn_attention_factor(scaling, factor))


def _yarn_attention_factor(scaling: Config, factor: float) -> float:
    given = scaling.optional_number("attention_factor")
    if given is not None:
        return given

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    one, all_dims = scaling.optional_number("mscale"), scaling.optional_number("mscale_all_dim")
    if one and all_dims:
        return magnitude(one) / magnitude(all_dims)
    return magnitude(1.0)


def _longrope(config: Config, scaling: Config, periods: Floats, theta: float) -> Rope:
    """Each frequency divided by its own short factor; see `context_length` for the long ones."""
    short = np.asarray(scaling.numbers("short_factor", len(periods)), np.float32)
    limit = config.integer("max_position_embeddings")
    original = config.optional_integer("original_max_position_embeddings")
    if original is not None:
        factor: float | None = limit / original
    else:
        original, factor = limit, scaling.optional_number("factor")
    attention_factor = scaling.optional_number("attention_factor")
    if attention_factor is None:
        if factor is None:
            raise CheckpointError(
                f"{scaling.where} has neither 'factor' nor 'attention_factor', and "
                f"{config.where} has no 'original_max_position_embeddings'"
            )
        grows = factor > 1
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if grows else 1.0
    return _rope(_ONE / (short * periods), attention_factor)


_SCALINGS: dict[str, Callable[[Config, Config, Floats, float], Rope]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
