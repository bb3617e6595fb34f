"""How much memory a device has for a model, and what a model would take in the device's form."""

from __future__ import annotations

from quickdraft.device_profiles import machine
from quickdraft.device_profiles.memory_plan import MemoryPlan, plan_memory
from quickdraft.device_profiles.profile import Profile
from quickdraft.errors import DeviceError
from quickdraft.manifest import Manifest
from quickdraft.runtime.backends.opening import backend_for, variant_for
from quickdraft.runtime.footprint import footprint, footprint_by_profile
from quickdraft.types import ModelSpec


def longest_context(profile: Profile | None, spec: ModelSpec) -> int:
    """Tokens that a conversation may have on a device, as its profile has it."""
    static = profile.static if profile is not None else None
    return spec.context_length if static is None else min(spec.context_length, static.cache_length)


def planned(profile: Profile, manifest: Manifest, context: int, *, here: bool) -> MemoryPlan:
    """What a model would take on a device, in the form of its profile, whatever the bundle has.
    here: whether the memory is that of this machine.

    Raises:
        DeviceError: the context is not one of the model, or of the device.
        BundleError, BackendError: no backend opens the bundle.
    """
    longest = longest_context(profile, manifest.model)
    if longest < context <= manifest.model.context_length:
        raise DeviceError(
            f"context is {context}; by its profile {profile.name} holds {longest} tokens, whatever "
            "the model could"
        )
    files = footprint(manifest, variant_for(manifest, backend_for(manifest, "auto"))).weights
    held = footprint_by_profile(profile, manifest, files)
    return plan_memory(manifest.model, held, context, memory_budget(profile, not here))


def memory_budget(profile: Profile | None, simulated: bool = False) -> int | None:
    """Bytes that a model may take: the profile's share of the system's memory; of a simulated
    device of its own, None where its profile does not say."""
    total = machine.memory()[0]
    if simulated:
        size = profile.memory.size_gib if profile is not None else None
        total = None if size is None else int(size.value * 2**30)
    share = profile.memory.share if profile is not None else 0.9
    return None if total is None else int(total * share)
