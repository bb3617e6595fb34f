"""Curves kept between runs, in the user's cache: measuring one takes about a second.

A stored curve belongs to one device (processor, threads, instruction set, versions, KV type) and to
one set of model files. A file that is damaged or says something else is not believed: it is named
in the log, and the curve is measured again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from quickdraft import strict_json
from quickdraft.device_profiles.curve import Curve
from quickdraft.errors import InputError
from quickdraft.hashes import cache_root, write_atomically

SCHEMA_VERSION = 1
MAX_BYTES = 1 << 16
MAX_DEPTH = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """What the cost of a step depends on besides the model files.

    processors: hardware threads this process may use. threads: asked for, 0 where the backend
    chooses. isa: instruction set of our kernels, "" where another library computes. kv_type: how
    keys and values are stored. versions: of everything that computes.
    """

    processor: str
    processors: int
    threads: int
    backend: str
    isa: str
    kv_type: str
    versions: str


@dataclass(frozen=True)
class _Stored:
    """The file. Whole numbers: nanoseconds of a step, picoseconds per token of context."""

    schema_version: int
    device: Device
    bundle: str
    rows: tuple[int, ...]
    nanoseconds: tuple[int, ...]
    growth_ps: tuple[int, ...]


def curve_path(device: Device, bundle: str) -> Path:
    """Where the curve of a device and a bundle (its key) is kept."""
    facts = json.dumps([dataclasses.asdict(device), bundle], sort_keys=True)
    return cache_root() / "curves" / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.json"


def load_curve(device: Device, bundle: str) -> Curve | None:
    """The stored curve, or None: there is none, or it cannot be believed (see the log)."""
    path = curve_path(device, bundle)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("the curve in %s cannot be read (%s); measuring again", path, error)
        return None
    try:
        return _parse(data, device, bundle)
    except (strict_json.JsonProblem, InputError) as problem:
        _log.warning("the curve in %s is not used: %s; measuring again", path, problem)
        return None


def _parse(data: bytes, device: Device, bundle: str) -> Curve:
    value = strict_json.loads(data, max_bytes=MAX_BYTES, max_depth=MAX_DEPTH)
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:  # before the rest, which may have changed its meaning
        raise strict_json.JsonProblem(f"its schema_version is not {SCHEMA_VERSION}")
    stored = strict_json.decode(_Stored, value, "the curve")
    if (stored.device, stored.bundle) != (device, bundle):
        raise strict_json.JsonProblem("it was measured with another device or bundle")
    seconds = tuple(1e-9 * number for number in stored.nanoseconds)
    return Curve(stored.rows, seconds, tuple(1e-12 * number for number in stored.growth_ps))


def save_curve(device: Device, bundle: str, curve: Curve) -> Path | None:
    """Keep a curve for later runs; returns its file, or None where nothing can be written (see the
    log)."""
    stored = _Stored(
        SCHEMA_VERSION,
        device,
        bundle,
        curve.rows,
        tuple(max(round(1e9 * seconds), 1) for seconds in curve.seconds),
        tuple(round(1e12 * seconds) for seconds in curve.growth),
    )
    path = curve_path(device, bundle)
    try:
        write_atomically(path, json.dumps(strict_json.encode(stored), indent=1).encode() + b"\n")
    except OSError as error:
        _log.warning("the curve cannot be kept in %s (%s); every start measures it", path, error)
        return None
    return path
