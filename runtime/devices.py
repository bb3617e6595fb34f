"""Where does a model run? From `--device` to a profile and a backend, with the reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, get_args

from quickdraft.device_names import CHOOSING, Hardware, base, hardware, split_device
from quickdraft.device_profiles import machine
from quickdraft.device_profiles.memory_plan import LEAST_CONTEXT, MemoryPlan, plan_memory
from quickdraft.device_profiles.profile import Kind, Profile, matching, profile_named, profiles
from quickdraft.device_profiles.simulation import can_simulate, check_figures
from quickdraft.errors import BackendError, DeviceError, MissingExtra, OptionError
from quickdraft.manifest import Flavour, Manifest
from quickdraft.registry import BACKENDS
from quickdraft.runtime import native
from quickdraft.runtime.backends import hotpath, ort_session, providers
from quickdraft.runtime.backends.base import Backend
from quickdraft.runtime.backends.opening import backend_for, parts, variant_for
from quickdraft.runtime.backends.simulated import PREFIX
from quickdraft.runtime.beside import NOTHING, Beside, with_parts
from quickdraft.runtime.device_plan import longest_context, memory_budget, planned
from quickdraft.runtime.footprint import footprint
from quickdraft.runtime.forms import Form, form_of, kv_to_open, of_profile
from quickdraft.runtime.found_devices import found_devices

if TYPE_CHECKING:
    from quickdraft.runtime.model import Model

KINDS: tuple[Kind, ...] = get_args(Kind)
AUTO = "auto"
# What our kernels for an instruction set imply, where the system does not tell.
_IMPLIED = {
    "avx2": ("avx2", "fma"),
    "avxvnni": ("avx2", "fma"),
    "avx512vnni": ("avx2", "fma", "avx512f", "avx512bw", "avx512vl"),
    "dotprod": ("asimddp",),
    "i8mm": ("asimddp",),
}


@dataclass(frozen=True)
class Here:
    """What this machine is, as profiles are matched with it."""

    system: str
    architecture: str
    processor: str
    features: frozenset[str]

    @classmethod
    def look(cls) -> Here:
        """This machine."""
        found = set(machine.cpu_features() or ())
        try:
            for name in native.load().runnable():
                found.update(_IMPLIED.get(name, ()))
        except (BackendError, MissingExtra):
            pass  # a machine without our kernels says enough, mostly
        names = filter(None, (machine.cpu_name(), machine.board()))
        processor = ", ".join(names)
        return cls(machine.system(), machine.architecture(), processor, frozenset(found))

    def matching(self, kind: Kind) -> list[Profile]:
        """Profiles of a kind that this machine may be, the most specific first."""
        return matching(kind, self.system, self.architecture, self.processor, self.features)

    def __str__(self) -> str:
        return f"{self.processor or 'an unknown processor'} ({self.system}, {self.architecture})"


@dataclass(frozen=True)
class Placement:
    """Where a model runs. backend: for `open_backend`. why: a sentence for people. profile: None
    where none fits the machine, or what the backend was told to compute on. form: of the model that
    was opened, None before that."""

    backend: str
    why: str
    profile: Profile | None = None
    simulated: bool = False
    form: Form | None = None

    @property
    def device(self) -> str:
        """The name of the device: as `--device` takes it, or the backend with a device of its own
        that no profile describes."""
        if self.profile is None:
            on_processor = hardware(*split_device(self.backend)) == ("cpu",)
            return "cpu" if on_processor else self.backend
        return f"{PREFIX}:{self.profile.name}" if self.simulated else self.profile.name

    @property
    def threads(self) -> int | None:
        """Of the profile; None leaves them to the backend."""
        return (self.profile.run.threads or None) if self.profile is not None else None

    def settled(self, backend: Backend) -> Placement:
        """The same after a model was opened: a bundle may have nothing for the processor, and then
        another backend was chosen, on a device of its own."""
        if self.backend != AUTO or hardware(backend.name, backend.device) == ("cpu",):
            return self
        found = place(AUTO, f"{base(backend.name)}:{backend.device}")
        return replace(found, form=self.form)

    @property
    def flavour(self) -> Flavour | None:
        """That the profile wants of its backends; None where it does not speak of the one taken."""
        known = (
            self.profile is not None
            and not self.simulated
            and of_profile(self.profile, self.backend)
        )
        return self.profile.run.flavour if known and self.profile is not None else None

    def form_of(
        self, formats: Sequence[str], weights: str | None = None, kv_cache: str | None = None
    ) -> Form:
        """The form that a model takes here. formats: emitters of a bundle that is made for it.
        weights, kv_cache: what the user asked for, None if nothing."""
        if self.simulated:
            why = "tokens are computed by this machine; the profile says what time that takes"
            return form_of(None, self.backend, formats, (weights, kv_cache), why)
        return form_of(self.profile, self.backend, formats, (weights, kv_cache))

    def kv_to_open(self, manifest: Manifest) -> str | None:
        """The type of keys and values that the backend is told to have; None leaves it to one that
        has no choice and was not asked for any.

        Raises:
            BundleError, BackendError: no backend opens the bundle.
        """
        name, device = (AUTO, "") if self.simulated else split_device(self.backend)
        if self.form is None:
            return None
        return kv_to_open(self.form, backend_for(manifest, name, device))

    def opened(self, model: Model) -> Placement:
        """The same, once a model was opened there: with the form it really has."""
        backend = model.backend
        found = [
            variant
            for variant in parts(model.manifest, backend.name, "target")
            if variant.flavour == backend.flavour
        ]
        if self.form is None or not found:
            return self
        return replace(self, form=self.form.opened(backend.name, backend.kv_type, found[0]))

    def plan(
        self,
        manifest: Manifest,
        kv_cache: str | None,
        context: int | None,
        beside: Beside = NOTHING,
    ) -> MemoryPlan:
        """What a bundle takes here. context: in tokens; None for the least that is of use. beside:
        what runs beside the target, which on a simulated device counts nothing.

        Raises:
            DeviceError: the context is not one of the model.
            BundleError, BackendError: no backend opens the bundle.
        """
        spec = manifest.model
        name, device = (AUTO, "") if self.simulated else split_device(self.backend)
        backend = backend_for(manifest, name, device)
        variant = variant_for(manifest, backend, device)
        held = footprint(manifest, variant, kv_cache)
        held = with_parts(held, manifest, variant, beside, backend)
        longest = longest_context(self.profile if self.simulated else None, spec)
        tokens = min(LEAST_CONTEXT, longest) if context is None else context
        if self.simulated and self.profile is not None:
            return planned(self.profile, manifest, tokens, here=False)
        return plan_memory(spec, held, tokens, memory_budget(self.profile))

    def check_memory(
        self, manifest: Manifest, kv_cache: str | None, name: str, beside: Beside = NOTHING
    ) -> None:
        """Refuse a model that cannot fit, before it is loaded. beside: what runs beside it.

        Raises:
            DeviceError: it cannot; the message has the figures.
        """
        self.plan(manifest, kv_cache, None, beside).check(name, self.device)


def place(device: str = AUTO, backend: str = AUTO) -> Placement:
    """Choose a profile and a backend.

    device: auto, cpu, gpu, npu, the name of a profile or a file of one, or `simulated:` and either.
    backend: auto, or one that was asked for by name.

    Raises:
        DeviceError: there is no such device, or not here; the message has what to do.
        OptionError: device and backend contradict each other.
    """
    if split_device(backend)[0] == PREFIX:
        if device != AUTO:
            raise OptionError(f"device is {device!r} and backend {backend!r}; give one of them")
        return _simulated(backend)
    if device.startswith(f"{PREFIX}:"):
        if backend != AUTO:
            raise OptionError(
                f"device is {device!r} and backend {backend!r}; a simulated device computes with "
                "the best backend there is: leave --backend out"
            )
        return _simulated(device)
    here, kinds = Here.look(), hardware(*split_device(backend))
    if device == AUTO and kinds != ("cpu",):
        return _named_by_backend(here, backend, kinds)
    if device in (AUTO, "cpu"):
        _check_agreement(device, "cpu", backend)
        return _processor(here, device, backend)
    if device in KINDS:
        kind: Kind = device
        found = here.matching(kind)
        if not found:
            return _by_library(kind, backend, here)
        return _on(found[0], backend, f"{found[0].title} is known by its processor, {here}")
    profile = profile_named(device)
    if profile not in here.matching(profile.kind) and not device.endswith(".toml"):
        simulate = f"; its time can be simulated: --device {PREFIX}:{profile.name}"
        raise DeviceError(
            f"{profile.name} ({profile.title}) is not this machine, which is {here}"
            f"{simulate if can_simulate(profile) else ''}; see `quickdraft device list`"
        )
    return _on(profile, backend, f"{profile.title} was asked for by name")


def _simulated(name: str) -> Placement:
    profile = profile_named(name.removeprefix(f"{PREFIX}:"))
    check_figures(profile)
    why = f"SIMULATED {profile.title}: time from its profile, tokens from this machine's processor"
    return Placement(f"{PREFIX}:{name.removeprefix(f'{PREFIX}:')}", why, profile, simulated=True)


def _processor(here: Here, device: str, backend: str) -> Placement:
    """The processor: what our own kernels, and the guarantees, are for."""
    found = here.matching("cpu")
    profile = found[0] if found else None
    if profile is None:
        return Placement(backend, f"no profile fits {here}; the backend chooses", None)
    why = f"{profile.title}: it fits {here}"
    if device == AUTO:
        others = [p.name for kind in KINDS if kind != "cpu" for p in here.matching(kind)]
        if others:
            why += f"; {', '.join(others)} may be here too, and are taken when asked for by name"
    return Placement(backend, why, profile)


def _named_by_backend(here: Here, backend: str, kinds: tuple[Hardware, ...]) -> Placement:
    """A device that a backend was given by its own name: its profile, if this machine has one."""
    for profile in here.matching(kinds[0]) if len(kinds) == 1 else ():
        if _library(backend) in map(_library, profile.run.backends):
            return Placement(backend, f"{backend} was asked for; it is {profile.title}", profile)
    return Placement(backend, f"{backend} was asked for, and no profile describes it", None)


def _library(backend: str) -> str:
    """What drives a device: a backend, or one of ONNX Runtime's providers."""
    name, own = split_device(backend)
    return re.split("[.,]", own)[0] if base(name) == "onnxruntime" else name


def _check_agreement(device: str, kind: Kind, backend: str) -> None:
    """Refuse a backend whose device is of another kind than the one that was asked for.

    Raises:
        OptionError: it is, or nobody can tell.
    """
    name, own = split_device(backend)
    kinds = hardware(name, own)
    if base(name) not in CHOOSING or kinds == (kind,):
        return
    computes = f"computes on {' and '.join(kinds)}" if kinds else "chooses by itself what it takes"
    which = "" if device == kind else f", which is a {kind},"
    raise OptionError(
        f"device is {device!r}{which} and backend {backend!r} {computes}; leave one of them out, "
        f"or name a {kind.upper()} of the backend"
    )


def _on(profile: Profile, backend: str, why: str) -> Placement:
    """A profile with the first of its backends that runs here, or the one asked for."""
    if backend != AUTO:
        named, own = split_device(backend)
        if own and backend not in profile.run.backends:
            _check_agreement(profile.name, profile.kind, backend)
        if profile.kind == "cpu" and hardware(named, own) == ("cpu",):
            return Placement(backend, why, profile)
        fitting = [name for name in profile.run.backends if name in (backend, named)]
        fitting += [name for name in profile.run.backends if split_device(name)[0] == named]
        if not fitting:
            raise OptionError(
                f"backend is {backend!r}, and {profile.name} runs with "
                f"{', '.join(profile.run.backends)}; leave --backend out, or name one of these"
            )
        chosen = backend if ":" in backend else fitting[0]
        problem = backend_problem(chosen)
        if problem is not None:
            raise DeviceError(f"{profile.name} cannot be used with {chosen}: {problem}")
        return Placement(chosen, why, profile)
    if profile.kind == "cpu":
        return Placement(AUTO, why, profile)
    problems = []
    for name in profile.run.backends:
        problem = backend_problem(name)
        if problem is None:
            return Placement(name, f"{why}; {name} runs here", profile)
        problems.append(f"{name}: {problem}")
    raise DeviceError(f"{profile.name} ({profile.title}) cannot be used. {'. '.join(problems)}")


def _by_library(kind: Kind, backend: str, here: Here) -> Placement:
    """A device that no profile knows, if a library finds one.

    Raises:
        DeviceError: none does. OptionError: the backend computes on something else.
    """
    named, own = split_device(backend)
    if own:
        _check_agreement(kind, kind, backend)
    for each in found_devices():
        name = split_device(each.backend)[0]
        if each.kind == kind and (backend == AUTO or name == named):
            chosen = backend if own else each.backend
            return Placement(chosen, f"{chosen} was found here: {each.title}", None)
    raise DeviceError(_no_such_kind(kind, here))


def _no_such_kind(kind: Kind, here: Here) -> str:
    known = ", ".join(p.name for p in profiles().values() if p.kind == kind and p.buyable)
    return (
        f"there is no {kind.upper()} that quickdraft knows on this machine, which is {here}, and "
        f"no library finds one (`quickdraft doctor` says what they find); leave --device out to "
        f"use the processor, or install what drives the {kind.upper()} (known: {known})"
    )


def backend_problem(name: str) -> str | None:
    """Why `backend:device` cannot run here, and what to do; None if nothing speaks against it.

    Raises:
        DeviceError, OptionError: there can be none of that name.
    """
    named, device = split_device(name)
    if named not in BACKENDS:
        return f"this version has no backend {named!r}"
    if named == "hotpath":
        return hotpath.problem()
    try:
        if named == "onnxruntime":
            ort_session.require()
            return providers.problem(device) if device else None
        if named == "openvino":
            return _openvino_problem(device)
    except MissingExtra as error:
        return str(error)
    if named == "coreml":
        return _coreml_problem(device)
    return None


def _openvino_problem(device: str) -> str | None:
    from quickdraft.runtime.backends import openvino_device  # imports OpenVINO, which is slow

    try:
        openvino_device.check_device(device or None)
    except DeviceError as error:
        return str(error)
    return None


def _coreml_problem(device: str) -> str | None:
    from quickdraft.runtime.backends import coreml_engine

    if device.upper() == coreml_engine.EVALUATOR:
        return None
    found = coreml_engine.problem()
    if found is None and find_spec("coremltools") is None:
        return str(MissingExtra("coremltools", "coreml"))
    return found
