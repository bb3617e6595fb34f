"""The memory of a loaded model, with what runs beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quickdraft.device_profiles.memory_plan import MemoryPlan
from quickdraft.runtime.beside import Beside
from quickdraft.runtime.device_plan import longest_context
from quickdraft.runtime.devices import Placement
from quickdraft.runtime.prediction import Prefill

if TYPE_CHECKING:
    from quickdraft.runtime.model import Model


def plan_for(model: Model, context: int | None) -> MemoryPlan:
    """What a loaded model takes for a context of so many tokens, None for the longest there is.

    Raises:
        DeviceError: the context is not one of the model, or of the device.
    """
    placement = model.placement or Placement(model.backend.name, "")
    if context is None:
        context = longest_context(placement.profile if placement.simulated else None, model.spec)
    beside = Beside(Prefill.parse(model.generation_config.prefill), model.drafting_setup)
    return placement.plan(model.manifest, model.backend.kv_type, context, beside)


def check_prefill(model: Model, prefill: Prefill) -> None:
    """Refuse a prefill that there is no predictor or no memory for, before anything is loaded.

    Raises:
        OptionError: the bundle has no such predictor.
        DeviceError: it does not fit; the message has the figures.
    """
    if prefill.predicts:
        model.prediction.entry(prefill)
    if model.placement is not None:
        beside = Beside(prefill, model.drafting_setup)
        kv_type = model.backend.kv_type
        model.placement.check_memory(model.manifest, kv_type, model.name, beside)
