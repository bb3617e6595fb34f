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

NEAR_ROWS = 64
"""Up to here every number of rows has a point of its own."""


@dataclass(frozen=True)
class Load:
    """What a step of a model takes. weights: bytes read. parameters: multiplied and added per row.
    kv_per_token: bytes."""

    weights: int
    parameters: int
    kv_per_token: int


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
