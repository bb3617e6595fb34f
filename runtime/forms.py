"""The form a model takes on a device: weights, formats, shapes, keys and values, and why each.

What the user asks for comes first, then what the profile of the device says, then what holds
everywhere. Nothing is chosen in silence: `Form.to_dict` is part of results.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from quickdraft.device_names import split_device
from quickdraft.device_profiles.profile import Profile
from quickdraft.manifest import Variant
from quickdraft.static_shapes import EMITTERS_OWN, StaticShapes, is_static

ASKED = "asked for"
CHOOSING = ("hotpath", "openvino_adapted")
"""Backends that hold keys and values in more than one type."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A value, None where it is left to whoever makes or opens the bundle, and why."""

    value: str | None
    why: str


@dataclass(frozen=True)
class Form:
    """What is made and opened. formats: of a bundle that is made, names of emitters. shapes: the
    same, where they are fixed, and why. variant: that was opened, None before that."""

    weights: Choice
    kv_cache: Choice
    formats: tuple[str, ...]
    shapes: StaticShapes
    shapes_why: str
    variant: Variant | None = None

    def with_shapes(self, asked: StaticShapes) -> Form:
        """The same with the dimensions that the user asks for in place of others."""
        if not asked.key:
            return self
        given = {name: value for name, value in vars(asked).items() if value is not None}
        why = f"{ASKED}: {', '.join(given)}; others {self.shapes_why}"
        return replace(self, shapes=replace(self.shapes, **given), shapes_why=why)

    def opened(self, backend: str, kv_type: str, variant: Variant) -> Form:
        """The same, after the bundle was opened: with what it really has.

        Where that is not what a profile wanted, the log says so.
        """
        weights, kv = self.weights, self.kv_cache
        if weights.value != variant.weight_format:
            note = ""
            if weights.value not in (None, "auto"):
                note = f"; {weights.why} they would be {weights.value}"
                _log.warning("the bundle has %s weights%s", variant.weight_format, note)
            weights = Choice(variant.weight_format, f"as the bundle has them{note}")
        if kv.value != kv_type:
            note = "" if kv.value is None else f"; {kv.why} they would be {kv.value}"
            kv = Choice(kv_type, f"what the backend {backend!r} has{note}")
        return replace(self, weights=weights, kv_cache=kv, variant=variant)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: how a model was opened."""
        found: dict[str, Any] = {
            "weights": vars(self.weights),
            "kv_cache": vars(self.kv_cache),
        }
        variant = self.variant
        if variant is not None:
            found["flavour"] = f"{variant.target_format} {variant.flavour}"
            if variant.flavour == "static":
                rows = sorted(variant.widths)
                found["static"] = {"rows": rows, "slots": variant.capacity, "why": self.shapes_why}
        return found

    def __str__(self) -> str:
        weights, kv = self.weights, self.kv_cache
        return f"weights {weights.value} ({weights.why}), keys and values {kv.value} ({kv.why})"


def of_profile(profile: Profile, backend: str) -> bool:
    """Whether what a profile says is meant for a backend, which may be named with its device."""
    base = split_device(backend)[0]
    return base == "auto" or base in {split_device(name)[0] for name in profile.run.backends}


def form_of(
    profile: Profile | None,
    backend: str,
    formats: Sequence[str],
    asked: tuple[str | None, str | None] = (None, None),
    why: str = "no profile fits this machine",
) -> Form:
    """The form on a device. backend: that was chosen, with its device. formats: what it opens.
    asked: weights, and keys and values, as the user wants them, None if he does not say. why: there
    is no profile."""
    weights, kv_cache = asked
    if profile is not None and not of_profile(profile, backend):
        why = f"the profile {profile.name} says nothing of the backend {backend!r}"
        profile = None
    if profile is None:
        wanted, kv, shapes = Choice("auto", why), Choice(None, why), EMITTERS_OWN
    else:
        why = f"by the profile {profile.name}"
        wanted, kv = Choice(profile.run.weights, why), Choice(profile.run.kv_cache, why)
        shapes = profile.static.shapes if profile.static is not None else EMITTERS_OWN
    if weights is not None:
        wanted = Choice(weights, ASKED)
    if kv_cache is not None:
        kv = Choice(kv_cache, ASKED)
    if not is_static(formats):
        shapes = EMITTERS_OWN
    return Form(wanted, kv, tuple(formats), shapes, why)


def kv_to_open(form: Form, backend: str) -> str | None:
    """The type of keys and values that a backend is told to have; None leaves it to the backend,
    which is so where it has but one and the user asked for none."""
    if form.kv_cache.why == ASKED or backend in CHOOSING:
        return form.kv_cache.value
    return None
