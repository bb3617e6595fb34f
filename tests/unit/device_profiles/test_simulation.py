"""What a model takes of a device: memory, and simulated time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quickdraft.device_profiles.memory_plan import Footprint, kv_bytes_per_token, plan_memory
from quickdraft.device_profiles.profile import Figure, profile_named
from quickdraft.device_profiles.simulation import Load, can_simulate, simulated_curve
from quickdraft.errors import DeviceError
from quickdraft.types import ModelSpec

SPEC = ModelSpec("toy", 2, 64, 1000, 4096, (4, 4), (2, 2), 16, (None, None))


def test_bytes_of_keys_and_values() -> None:
    # Key and value, two layers of two heads of 16.
    assert kv_bytes_per_token(SPEC, "f32") == 2 * 4 * 16 * 4
    assert kv_bytes_per_token(SPEC, "f16") == 2 * 4 * 16 * 2
    assert kv_bytes_per_token(SPEC, "int8") == 2 * 4 * (16 + 4)
    wide = replace(SPEC, head_dim=128)
    assert kv_bytes_per_token(wide, "int8") == 4 * (2 * 128 + 4 * 5)


def test_a_plan_adds_up_and_says_what_fits() -> None:
    plan = plan_memory(SPEC, Footprint(10_000_000, "f16"), 1024, 20_000_000)
    assert plan.needed == 10_000_000 + 1024 * 256 + plan.workspace
    assert plan.fits
    plan.check("m", "d")
    assert plan.longest_context == (10_000_000 - plan.workspace) // 256
    tight = replace(plan, budget=plan.needed - 1)
    with pytest.raises(DeviceError, match=r"m does not fit on d: weights 10 MiB .* at most 1023"):
        tight.check("m", "d")
    with pytest.raises(DeviceError, match="smaller model"):
        replace(plan, budget=1000).check("m", "d")
    assert replace(plan, budget=None).fits


@pytest.mark.parametrize("context", [0, 4097])
def test_a_context_the_model_lacks(context: int) -> None:
    with pytest.raises(DeviceError, match="holds 1 to 4096"):
        plan_memory(SPEC, Footprint(1, "f16"), context, None)


def test_compiled_widths_make_steps_of_the_curve() -> None:
    profile = profile_named("core-ultra-2-npu")
    curve = simulated_curve(profile, Load(136_000_000, 2_000_000_000, 136_000))
    # 136 MB at 136 GB/s are 1 ms; a row is 4e9 operations at 48e12/s, 1/12 ms.
    assert curve.at(1) == pytest.approx(1e-3)
    assert curve.at(9) == curve.at(16) == pytest.approx(16 / 12 * 1e-3)
    assert curve.at(17) == curve.at(64) == curve.at(128)
    assert curve.at(512) == pytest.approx(4 * curve.at(128))
    assert curve.at(1, 1000) - curve.at(1) == pytest.approx(1e-3)


def test_memory_that_computes_reads_a_context_faster() -> None:
    load = Load(1_000_000, 1_000_000, 1_000_000)
    pim = profile_named("npu-pim")
    assert pim.simulation is not None
    plain = replace(pim, simulation=replace(pim.simulation, attention_gb_s=None))
    assert simulated_curve(pim, load).growth[0] < simulated_curve(plain, load).growth[0]


def test_a_profile_without_figures_is_not_simulated() -> None:
    profile = profile_named("core-ultra-1-npu")
    assert not can_simulate(profile)
    with pytest.raises(DeviceError, match=r"no memory.bandwidth_gb_s.*core-ultra-2-npu"):
        simulated_curve(profile, Load(1, 1, 1))
    known = replace(profile, memory=replace(profile.memory, bandwidth_gb_s=Figure(1.0, "x")))
    with pytest.raises(DeviceError, match=r"no simulation.tops"):
        simulated_curve(known, Load(1, 1, 1))
