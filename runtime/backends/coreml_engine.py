"""What runs the functions of a Core ML package: Core ML on macOS, or the evaluator in NumPy."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import BackendError, MissingExtra, OptionError
from quickdraft.runtime.backends.coreml_program import Program

Array = NDArray[Any]
UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")
"""Compute units, as coremltools names them."""
EVALUATOR = "EVALUATOR"
MACOS = 15
"""The first macOS whose Core ML has states."""


class Engine(Protocol):
    """A loaded package. States are opaque: they belong to the engine that made them; functions
    without any are given None."""

    def new_states(self) -> Any:
        """States of zeros for one conversation."""

    def run(self, function: str, inputs: Mapping[str, Array], states: Any) -> Mapping[str, Array]:
        """Run a function, which writes its states; its outputs by name.

        Raises:
            BackendError: it failed.
        """

    def read(self, states: Any, name: str) -> Array:
        """A copy of one state."""

    def write(self, states: Any, name: str, value: Array) -> None:
        """Set one state."""


def open_engine(package: Path, functions: tuple[str, ...], device: str | None) -> Engine:
    """Load a package. device: one of UNITS, `ALL` if None; or EVALUATOR, the oracle of the tests.

    Raises:
        OptionError: no such device. MissingExtra: coremltools is not installed.
        BackendError: Core ML is not here, or cannot load the package.
        BundleError: the package is damaged.
    """
    device = UNITS[0] if device is None else device.upper()
    if device == EVALUATOR:
        return Evaluator(package)
    if device not in UNITS:
        raise OptionError(
            f"Core ML has no device {device!r} (there are: {', '.join(UNITS)}; and {EVALUATOR}, "
            "which checks a package in NumPy)"
        )
    found = problem()
    if found is not None:
        raise BackendError(
            f"{found}; use another backend here (`quickdraft export --format onnx`), or, to check "
            f"what was exported, the backend coreml:{EVALUATOR}"
        )
    return CoreMl(package, functions, device)


def problem() -> str | None:
    """Why Core ML cannot run packages with states here, or None if it can."""
    if platform.system() != "Darwin":
        return f"Core ML is on macOS only, and this is {platform.system() or 'another system'}"
    version = platform.mac_ver()[0]
    if int((version or "0").split(".")[0]) < MACOS:
        return f"Core ML packages with states need macOS {MACOS}, and this is macOS {version}"
    return None


class Evaluator:
    """An Engine in NumPy; see coreml_program."""

    def __init__(self, package: Path) -> None:
        self.program = Program(package)

    def new_states(self) -> dict[str, Array]:
        """States of zeros."""
        declared = self.program.states(self.program.functions[0])
        return {name: np.zeros(shape, dtype) for name, (dtype, shape) in declared.items()}

    def run(
        self, function: str, inputs: Mapping[str, Array], states: dict[str, Array] | None
    ) -> Mapping[str, Array]:
        """Walk a function."""
        return self.program.run(function, inputs, {} if states is None else states)

    def read(self, states: dict[str, Array], name: str) -> Array:
        """A copy of one state."""
        return states[name].copy()

    def write(self, states: dict[str, Array], name: str, value: Array) -> None:
        """Set one state."""
        states[name] = value.copy()


class CoreMl:
    """An Engine of coremltools on macOS: one model per function, over the same states."""

    def __init__(self, package: Path, functions: tuple[str, ...], units: str) -> None:
        """Load every function; Core ML compiles the package once, and keeps what it compiled."""
        logging.getLogger("coremltools").setLevel(logging.ERROR)
        try:
            import coremltools
        except ImportError as error:
            raise MissingExtra("coremltools", "coreml") from error
        chosen = coremltools.ComputeUnit[units]
        try:
            first = coremltools.models.MLModel(
                str(package), function_name=functions[0], compute_units=chosen
            )
            compiled = first.get_compiled_model_path()
            self._models = {functions[0]: first}
            for name in functions[1:]:
                self._models[name] = coremltools.models.CompiledMLModel(
                    compiled, function_name=name, compute_units=chosen
                )
        except (RuntimeError, OSError, ValueError) as error:
            raise BackendError(f"Core ML cannot load {package}: {error}") from error
        self._first = first

    def new_states(self) -> Any:
        """States of zeros; those of one function fit all."""
        return self._first.make_state()

    def run(self, function: str, inputs: Mapping[str, Array], states: Any) -> Mapping[str, Array]:
        """Predict with a function."""
        try:
            extra = {} if states is None else {"state": states}
            found: Mapping[str, Array] = self._models[function].predict(dict(inputs), **extra)
        except (RuntimeError, ValueError) as error:
            raise BackendError(f"Core ML failed in {function}: {error}") from error
        return found

    def read(self, states: Any, name: str) -> Array:
        """A copy of one state."""
        return np.array(states.read_state(name))

    def write(self, states: Any, name: str, value: Array) -> None:
        """Set one state."""
        states.write_state(name, value)
