"""What the backends over ONNX Runtime share: opening a session, binding arrays, running a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import BackendError, BundleError, Cancelled, MissingExtra
from quickdraft.runtime.backends.base import CancelToken

try:
    import onnxruntime as ort
except ImportError:  # reported when a backend is opened, with the extra to install
    ort = None

_ERRORS_ONLY = 3
Result = TypeVar("Result")


def require() -> Any:
    """The module onnxruntime.

    Raises:
        MissingExtra: it is not installed.
    """
    if ort is None:
        raise MissingExtra("onnxruntime", "onnx")
    return ort


def options(threads: int | None, beside: bool = False) -> Any:
    """Options of a session. threads: of one step; None means one per physical core. beside: it
    takes turns with the target's session, so its threads sleep when they have nothing to do: those
    that wait awake for their next turn hold the cores that the other session needs (steps of the
    target took twice as long)."""
    made = require().SessionOptions()
    made.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        made.intra_op_num_threads = threads
    if beside:
        made.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return made


def open_session(
    model: Path, session_options: Any, providers: Sequence[Any] | None = ("CPUExecutionProvider",)
) -> Any:
    """An InferenceSession, on the CPU unless providers are named, with options or without; None:
    the session's options hold them.

    Raises:
        BackendError: onnxruntime cannot load the model.
    """
    load: Callable[..., Any] = require().InferenceSession
    try:
        # Else it would try again on the CPU, and say so on standard output only.
        how: dict[str, Any] = {"enable_fallback": False}
        if providers is not None:
            how["providers"] = list(providers)
        return load(str(model), session_options, **how)
    except Exception as error:
        raise BackendError(
            f"onnxruntime {ort.__version__} cannot load {model.name}: {error}"
        ) from error


def check_names(model: str, session: Any, inputs: set[str], outputs: set[str]) -> None:
    """Compare a graph with what its manifest promises.

    Raises:
        BundleError: an input or output is missing, or one too many.
    """
    for kind, promised, found in (
        ("input", inputs, session.get_inputs()),
        ("output", outputs, session.get_outputs()),
    ):
        differing = sorted(promised ^ {value.name for value in found})
        if differing:
            raise BundleError(
                f"{model}: manifest and graph disagree about the {kind} {differing[0]!r}; "
                "export the model again"
            )


def run_options() -> Any:
    """Options of one run: silent, as its errors become ours."""
    made = ort.RunOptions()
    made.log_severity_level = _ERRORS_ONLY + 1
    # Unset, this entry costs an exception per step inside onnxruntime's Python layer.
    made.add_run_config_entry("gpu_graph_id", "0")
    return made


class Runs:
    """Runs one after another, which can be stopped."""

    def __init__(self) -> None:
        self._options = run_options()

    def run(self, start: Callable[[Any], Result], cancel: CancelToken | None) -> Result:
        """What `start` gives, called with options of a run.

        Raises:
            Cancelled: on request, within an op or two. BackendError: onnxruntime failed.
        """
        try:
            return start(self._options) if cancel is None else self._run_until(start, cancel)
        except Exception as error:
            if cancel is not None and cancel.cancelled:
                raise Cancelled("stopped on request") from None
            raise BackendError(f"onnxruntime failed in a step: {error}") from error

    def _run_until(self, start: Callable[[Any], Result], cancel: CancelToken) -> Result:
        current = self._options

        def stop() -> None:
            current.terminate = True

        cancel.attach(stop)
        try:
            return start(current)
        finally:
            cancel.attach(None)
            if current.terminate:  # it stays set, and would stop every later step
                self._options = run_options()


class Bound:
    """An IOBinding and the arrays behind its inputs and outputs."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._runs = Runs()

    def input(self, name: str, array: NDArray[Any]) -> None:
        """Let runs read an input from this memory, as it is then."""
        self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))

    def output(self, name: str, array: NDArray[Any]) -> None:
        """Let runs write an output to this memory."""
        self._binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))

    def in_place(self, past: str, present: str, array: NDArray[Any]) -> None:
        """The same memory as an input and as the output that continues it."""
        shared = ort.OrtValue.ortvalue_from_numpy(array)
        self._binding.bind_ortvalue_input(past, shared)
        self._binding.bind_ortvalue_output(present, shared)

    def run(self, cancel: CancelToken | None) -> None:
        """One step.

        Raises:
            Cancelled, BackendError: see Runs.run.
        """
        self._runs.run(self._start, cancel)

    def _start(self, how: Any) -> None:
        self._session.run_with_iobinding(self._binding, how)


class Feeds:
    """Inputs and outputs of changing shapes; memory of the last step's shapes is used again.

    Binding fresh memory took 60 us of a step of SmolLM2, page faults not counted.
    """

    def __init__(self, bound: Bound) -> None:
        self._bound = bound
        self._inputs: dict[str, NDArray[Any]] = {}
        self._outputs: dict[str, NDArray[np.float32]] = {}

    def feed(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Give a step its inputs, copied."""
        for name, array in feeds.items():
            known = self._inputs.get(name)
            if known is not None and known.shape == array.shape:
                np.copyto(known, array)
            else:
                self._inputs[name] = array = array.copy()
                self._bound.input(name, array)

    def result(self, name: str, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Where the step puts an output."""
        known = self._outputs.get(name)
        if known is None or known.shape != shape:
            known = self._outputs[name] = np.empty(shape, np.float32)
            self._bound.output(name, known)
        return known
