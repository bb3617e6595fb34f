"""Device profiles: what is known of a device and how models run best on it.

A profile is a TOML file, data only: `data/<name>.toml` beside this module, or a file of the user's.
Every key is checked; a figure stands beside its source, and what nobody published is left out.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

from quickdraft import strict_json
from quickdraft.errors import DeviceError, OptionError
from quickdraft.manifest import Flavour, WeightFormat
from quickdraft.static_shapes import StaticShapes

SCHEMA_VERSION = 1
FOLDER = Path(__file__).parent / "data"
MAX_BYTES = 1 << 16

Kind = Literal["cpu", "gpu", "npu"]
System = Literal["linux", "windows", "darwin"]
Architecture = Literal["x86_64", "arm64"]
Weights = Literal["auto", WeightFormat]
KvFormat = Literal["f32", "f16", "int8"]

_NAME = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")
_BACKEND = re.compile(r"[a-z_]+(?::[A-Za-z0-9_.,-]+)?")


class _Bad(Exception):
    """A value that a profile cannot have."""


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise _Bad(message)


@dataclass(frozen=True)
class Figure:
    """A published or measured number, and where it stands."""

    value: float
    source: str

    def __post_init__(self) -> None:
        _check(math.isfinite(self.value) and self.value > 0, f"{self.value} is not above 0")
        _check(bool(self.source.strip()), "a figure needs a source")


@dataclass(frozen=True)
class Quirk:
    """Something to know about the device, and where it stands."""

    text: str
    source: str

    def __post_init__(self) -> None:
        _check(bool(self.text.strip() and self.source.strip()), "a quirk needs text and source")


@dataclass(frozen=True)
class Detection:
    """How the device is known. processor: a regular expression found in the processor's name, in
    any case; "" takes any. features: of the processor, all of them. rank: of several profiles of a
    kind that match, the highest is meant."""

    systems: tuple[System, ...] = ()
    architectures: tuple[Architecture, ...] = ()
    processor: str = ""
    features: tuple[str, ...] = ()
    rank: int = 0

    def __post_init__(self) -> None:
        _check(self.rank <= 100, f"rank is {self.rank}; it must be between 0 and 100")
        try:
            re.compile(self.processor)
        except re.error as error:
            raise _Bad(f"processor is no regular expression: {error}") from None


@dataclass(frozen=True)
class Run:
    """How models run there. backends: best first, as `name` or `name:device` (a provider of ONNX
    Runtime, a device of OpenVINO). weights: of bundles that are made for it; `auto` keeps what the
    checkpoint has. threads: 0 leaves their number to the backend."""

    backends: tuple[str, ...]
    flavour: Flavour
    weights: Weights
    kv_cache: KvFormat
    threads: int = 0

    def __post_init__(self) -> None:
        _check(bool(self.backends), "backends is empty")
        for name in self.backends:
            _check(bool(_BACKEND.fullmatch(name)), f"{name!r} is not `backend` or `backend:device`")
        _check(self.threads <= 1024, f"threads is {self.threads}; it must be between 0 and 1024")


@dataclass(frozen=True)
class Static:
    """Compiled shapes: rows of a step, rows of a prefill chunk, and tokens that a conversation may
    have where the model's context is longer."""

    widths: tuple[int, ...]
    prefill_chunk: int
    cache_length: int

    def __post_init__(self) -> None:
        try:
            self.shapes.rows(self.widths, self.prefill_chunk)
        except OptionError as error:
            raise _Bad(str(error)) from None

    @property
    def shapes(self) -> StaticShapes:
        """What export is asked for.

        Raises:
            OptionError: that cannot be.
        """
        return StaticShapes(self.widths, self.prefill_chunk, longest_cache=self.cache_length)


@dataclass(frozen=True)
class Memory:
    """share: of the system's memory, what a model may take; `share_source` says why.
    bandwidth_gb_s: of reading it, in 1e9 bytes a second. size_gib: the least that such a device is
    sold with, in 2**30 bytes: what a simulated one has."""

    share: float = 0.9
    share_source: str = "our policy: a tenth stays with the system"
    bandwidth_gb_s: Figure | None = None
    size_gib: Figure | None = None

    def __post_init__(self) -> None:
        _check(0 < self.share <= 1, f"share is {self.share}; it must be above 0 and at most 1")


@dataclass(frozen=True)
class Simulation:
    """What a simulated step costs besides reading weights. tops: 1e12 operations a second.
    attention_gb_s: how fast keys and values are read where memory itself computes; the memory's
    bandwidth if it is left out. only: there is no such device to buy."""

    tops: Figure
    attention_gb_s: Figure | None = None
    only: bool = False


@dataclass(frozen=True)
class Profile:
    """A device. name: as `--device` takes it. title: for people."""

    schema_version: int
    name: str
    title: str
    kind: Kind
    detect: Detection
    run: Run
    memory: Memory = field(default_factory=Memory)
    static: Static | None = None
    simulation: Simulation | None = None
    quirks: tuple[Quirk, ...] = ()

    def __post_init__(self) -> None:
        _check(bool(_NAME.fullmatch(self.name)), f"name is {self.name!r}; use a-z, 0-9, - and .")
        _check(
            (self.run.flavour == "static") == (self.static is not None),
            "the table `static` belongs to the flavour 'static', and is needed there",
        )

    @property
    def buyable(self) -> bool:
        """Whether there can be such a device at all."""
        return self.simulation is None or not self.simulation.only


def parse_profile(data: bytes, where: str) -> Profile:
    """A profile from the text of its file. where: named in errors.

    Raises:
        DeviceError: it is not TOML, a key is unknown or missing, or a value is out of its range.
    """
    if len(data) > MAX_BYTES:
        raise DeviceError(f"{where} is {len(data)} bytes long; a profile has at most {MAX_BYTES}")
    return _decoded(lambda: tomllib.loads(data.decode("utf-8")), where)


def _decoded(read: Callable[[], dict[str, Any]], where: str) -> Profile:
    try:
        value = read()
        version = value.get("schema_version")
        if version != SCHEMA_VERSION:
            raise _Bad(f"schema_version is {version!r}; this version reads {SCHEMA_VERSION}")
        return strict_json.decode(Profile, value, "the profile")
    except UnicodeDecodeError as error:
        problem = f"it is not UTF-8 (byte {error.start})"
    except tomllib.TOMLDecodeError as error:
        problem = f"it is not TOML: {error}"
    except RecursionError:
        problem = "it is nested too deeply"
    except (strict_json.JsonProblem, _Bad) as error:
        problem = str(error)
    raise DeviceError(f"{where} is no device profile: {problem}; see docs/devices.md")


def read_profile(path: Path) -> Profile:
    """A profile of the user's.

    Raises:
        DeviceError: the file cannot be read, or see parse_profile.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DeviceError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_profile(data, str(path))


@cache
def _tables() -> dict[str, dict[str, Any]]:
    """The profiles that come with quickdraft as they are written. Checking one takes five times as
    long as reading it, and loading a model asks for two or three of thirty."""
    return {path.stem: tomllib.loads(path.read_text("utf-8")) for path in FOLDER.glob("*.toml")}


@cache
def _own(name: str) -> Profile:
    return _decoded(lambda: _tables()[name], f"{name}.toml")


@cache
def profiles() -> dict[str, Profile]:
    """The profiles that come with quickdraft, by name, in order."""
    return {name: _own(name) for name in sorted(_tables())}


def profile_named(name: str) -> Profile:
    """A profile by its name, or of a file whose name ends in .toml.

    Raises:
        DeviceError: there is none, or it is damaged.
    """
    if name.endswith(".toml"):
        return read_profile(Path(name))
    known = _tables()
    if name in known:
        return _own(name)
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise DeviceError(f"there is no device {name!r}{hint}; see `quickdraft device list`")


def matching(
    kind: Kind,
    system: str,
    architecture: str,
    processor: str,
    features: Iterable[str],
) -> list[Profile]:
    """Profiles of a kind that a machine may be, the most specific first."""
    has = frozenset(features)

    def may_fit(table: dict[str, Any]) -> bool:
        pattern = table["detect"].get("processor", "")
        return table["kind"] == kind and bool(re.search(pattern, processor, re.IGNORECASE))

    def fits(profile: Profile) -> bool:
        detect = profile.detect
        return (
            profile.buyable
            and (not detect.systems or system in detect.systems)
            and (not detect.architectures or architecture in detect.architectures)
            and has.issuperset(detect.features)
        )

    named = [_own(name) for name, table in sorted(_tables().items()) if may_fit(table)]
    return sorted(filter(fits, named), key=lambda found: -found.detect.rank)
