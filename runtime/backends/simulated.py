"""A device nobody has here: tokens are really computed, by a backend of this machine, and time is
that of the device's profile."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from quickdraft.device_profiles.memory_plan import kv_bytes_per_token
from quickdraft.device_profiles.profile import Profile
from quickdraft.device_profiles.simulation import Load, bytes_of_weights, simulated_curve
from quickdraft.drafters.tree import Tree
from quickdraft.kvcache.base import KvCache
from quickdraft.runtime import clock
from quickdraft.runtime.backends.base import Backend, CancelToken, StepOutput

PREFIX = "simulated"
"""Names of backends and devices that begin so, and a colon, are simulated."""


class SimulatedBackend:
    """A Backend around another one, whose steps take the time of a profile's curve.

    Its name, guarantee and bits are those of the backend that computes: what runs on the real
    device may differ by rounding. Drafting and everything else on the host is timed as it is.
    """

    def __init__(self, inner: Backend, profile: Profile, weights: int) -> None:
        """weights: bytes of the target's files, which count where the profile leaves the weights as
        they are.

        Raises:
            DeviceError: the profile lacks figures.
        """
        self.inner = inner
        self.profile = profile
        self.name = inner.name
        self.flavour = inner.flavour
        self.spec = inner.spec
        self.guarantee = inner.guarantee
        self.top = inner.top
        self.isa = inner.isa
        self.kv_type = inner.kv_type
        self.trees = inner.trees
        kv = kv_bytes_per_token(inner.spec, profile.run.kv_cache)
        parameters = inner.spec.num_parameters or weights
        read = bytes_of_weights(profile, inner.spec, weights)
        self.curve = simulated_curve(profile, Load(read, parameters, kv))

    @property
    def device(self) -> str:
        """What results say of it."""
        return f"{PREFIX}:{self.profile.name}"

    def new_cache(self) -> KvCache:
        """A cache of the backend that computes."""
        return self.inner.new_cache()

    def step(
        self,
        tree: Tree,
        cache: KvCache,
        rows: NDArray[np.int64] | None = None,
        cancel: CancelToken | None = None,
        *,
        full_logits: bool = True,
    ) -> StepOutput:
        """See Backend.step. Moves the thread's clock by the simulated time instead of the real."""
        length, started = cache.length, time.perf_counter()
        output = self.inner.step(tree, cache, rows, cancel, full_logits=full_logits)
        spent = time.perf_counter() - started
        clock.advance(self.curve.at(len(tree), length) - spent)
        return output

    def close(self) -> None:
        """Release the model."""
        self.inner.close()


def simulated_device(backend: Backend) -> str | None:
    """The name of the device that a backend simulates, None for a real one."""
    return backend.device if isinstance(backend, SimulatedBackend) else None
