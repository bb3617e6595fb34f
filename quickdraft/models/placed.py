"""The bundle of a model for the place where it shall run, in the form that place wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from quickdraft.bundle import Bundle
from quickdraft.models.formats import default_formats
from quickdraft.models.resolve import Preferred, resolve
from quickdraft.types import Progress

if TYPE_CHECKING:
    from quickdraft.runtime.beside import Beside
    from quickdraft.runtime.devices import Placement


def preferred_on(
    placement: Placement, formats: Sequence[str], weights: str | None = None
) -> Preferred:
    """How a bundle is made in some formats for a place. weights: that the user asked for."""
    form = placement.form_of(formats, weights)
    return Preferred(form.weights.value or "auto", form.shapes)


def bundle_on(
    placement: Placement,
    name: str,
    weights: str | None = None,
    kv_cache: str | None = None,
    progress: Progress | None = None,
    offline: bool = False,
    beside: Beside | None = None,
) -> tuple[Placement, Bundle]:
    """The place with the form that a model takes there, and the bundle. weights, kv_cache: what the
    user asked for, None if nothing. beside: what will run beside the target.

    Raises as `resolve`; and
        DeviceError: the model cannot fit.
    """
    formats = default_formats(placement.backend, placement.flavour)
    form = placement.form_of(formats, weights, kv_cache)
    preferred = preferred_on(placement, formats, weights)
    bundle = resolve(
        name,
        weights=weights,
        formats=formats,
        preferred=preferred,
        progress=progress,
        offline=offline,
    )
    placed = replace(placement, form=form)
    kv_type = placed.kv_to_open(bundle.manifest)
    given = () if beside is None else (beside,)
    placed.check_memory(bundle.manifest, kv_type, name, *given)
    return placed, bundle
