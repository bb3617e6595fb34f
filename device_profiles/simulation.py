"""The curve of a device nobody has here, from the figures of its profile.

A step reads all weights and computes with them, whichever takes longer (a roofline at the published
peaks), then reads the keys and values of its context. Compiled widths make it a staircase. It is a
bound that no real device reaches, not a forecast.
"""

from __future__ import annotations

from dataclasses import dataclass

from quickdraft.device_profiles.curve import Curve
from quickdraft.device_profiles.memory_plan import CHUNK
from quickdraft.device_profiles.profile import Figure, Profile, Simulation, Static, profiles
from quickdraft.errors import DeviceError
from quickdraft.types import ModelSpec

NEAR_ROWS = 64
"""Up to here every number of rows has a point of its own."""


@dataclass(frozen=True)
class Load:
    """What a step of a model takes. weights: bytes read. parameters: multiplied and added per row.
    kv_per_token: bytes."""

    weights: int
    parameters: int
    kv_per_token: int


_BITS = {"fp32": 32.0, "fp16": 16.0, "int8": 9.0, "int4": 5.0, "int4-g128": 4.25, "int4-channel": 4}
"""Of a weight, with its share of a scale of 32 bits."""
_VOCABULARY_BITS = {"int4-g128": 8.25, "int4-channel": 8}
"""The same of what has a row for every token, where that is stored otherwise."""


def bytes_of_weights(profile: Profile, spec: ModelSpec, files: int) -> int:
    """Bytes of a model's weights in the format of a profile. files: of the weights that are at
    hand, which count where the profile leaves them as they are or the model does not say how
    large it is."""
    form = profile.run.weights
    if form not in _BITS or not spec.num_parameters:
        return files
    table = min(spec.vocab_size * spec.hidden_size, spec.num_parameters)
    bits = _BITS[form] * (spec.num_parameters - table)
    return int((bits + _VOCABULARY_BITS.get(form, _BITS[form]) * table) / 8)


def simulated_curve(profile: Profile, load: Load) -> Curve:
    """Seconds of a step by rows, and what a token of context adds.

    Raises:
        DeviceError: the profile lacks a figure this needs.
    """
    bandwidth, simulation = check_figures(profile)
    reading = load.weights / (1e9 * bandwidth.value)
    row = 2 * load.parameters / (1e12 * simulation.tops.value)
    attention = simulation.attention_gb_s or bandwidth
    growth = load.kv_per_token / (1e9 * attention.value)
    rows = (*range(1, NEAR_ROWS + 1), 128, 256, CHUNK)
    shapes = [_steps(profile.static, count) for count in rows]
    seconds = tuple(max(reading * steps, row * width) for steps, width in shapes)
    return Curve(rows, seconds, (growth,) * len(rows))


def check_figures(profile: Profile) -> tuple[Figure, Simulation]:
    """The bandwidth and what else a simulation needs.

    Raises:
        DeviceError: the profile lacks one; the message names profiles that do not.
    """
    bandwidth, simulation = profile.memory.bandwidth_gb_s, profile.simulation
    if bandwidth is not None and simulation is not None:
        return bandwidth, simulation
    lacking = "memory.bandwidth_gb_s" if bandwidth is None else "simulation.tops"
    able = ", ".join(name for name, found in profiles().items() if can_simulate(found))
    raise DeviceError(
        f"{profile.name} cannot be simulated: its profile has no {lacking}, because no source for "
        f"it was found; there are: {able}"
    )


def described(profile: Profile, weights: str) -> dict[str, object]:
    """What a simulated step is timed as, as plain JSON types. weights: format of those at hand,
    which count where the profile leaves them as they are.

    Raises:
        DeviceError: as `check_figures`.
    """
    bandwidth, simulation = check_figures(profile)
    static = profile.static
    return {
        "weights": profile.run.weights if profile.run.weights in _BITS else weights,
        "kv_cache": profile.run.kv_cache,
        "rows": None if static is None else [*static.widths, static.prefill_chunk],
        "tops": simulation.tops.value,
        "bandwidth_gb_s": bandwidth.value,
    }


def can_simulate(profile: Profile) -> bool:
    """Whether a profile has the figures."""
    return profile.memory.bandwidth_gb_s is not None and profile.simulation is not None


def _steps(static: Static | None, rows: int) -> tuple[int, int]:
    """Steps of the graph for so many rows, and rows computed in them."""
    if static is None:
        return 1, rows
    for width in (*static.widths, static.prefill_chunk):
        if rows <= width:
            return 1, width
    steps = -(-rows // static.prefill_chunk)
    return steps, steps * static.prefill_chunk
