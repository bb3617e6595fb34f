"""OpenVINO on stateful graphs of optimum-intel, as they are.

Keys and values live in states of an inference request, one request per conversation. They are cut
when a step finds more rows in them than the conversation has: all accepted drafts cost nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.device_names import hardware
from quickdraft.errors import BackendError, BundleError, DeviceError, OptionError
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.growing import GrowingCache, Slots
from quickdraft.manifest import StatesLayout, StepNames, Variant
from quickdraft.runtime.backends import openvino_device
from quickdraft.runtime.backends.adapted import AdaptedBackend, Piece, step_feeds
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.types import ModelSpec

KV_PRECISIONS = {"f32": "f32", "f16": "f16", "int8": "u8"}
"""Values of OpenVINO's KV_CACHE_PRECISION by ours. f32 is the default: cutting states reads and
writes them, which rounds anything else again."""


class StatesCache(GrowingCache):
    """A KvCache in the states of an inference request.

    The states are [1, kv_heads, rows, head_dim] and in the order of the engine; `rows` tells which
    row of the states each committed row is, so that nothing moves before the next step.
    """

    def __init__(self, spec: ModelSpec, request: Any) -> None:
        super().__init__(spec, spec.context_length, 1)
        self.request = request
        self._rows = np.arange(0)
        self._written = 0
        request.reset_state()

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that the states hold."""
        heads = sum(self._spec.num_kv_heads)
        return self._written * 2 * heads * self._spec.head_dim * 4

    def keep(self, rows: Sequence[int], committed: int) -> None:
        """See KvCache."""
        start = self._length
        super().keep(rows, committed)
        kept = start + np.asarray(rows, np.int64)
        self._rows = np.concatenate([self._known(start), kept])

    def _known(self, length: int) -> NDArray[np.int64]:
        """Where committed rows lie in the states; those beyond were never written."""
        rows = self._rows[:length]
        return np.concatenate([rows, np.arange(len(rows), length)])

    def settle(self) -> None:
        """Make the states hold the committed rows and no others, in order."""
        wanted = self._known(self._length)
        if self._written == len(wanted) and (wanted == np.arange(len(wanted))).all():
            self._rows = wanted
            return
        if len(wanted) == 0:
            self.request.reset_state()
        else:
            for state in self.request.query_state():
                state.state = self._picked(state.state.data, wanted)
        self._rows, self._written = np.arange(len(wanted)), len(wanted)

    def _picked(self, data: NDArray[Any], rows: NDArray[np.int64]) -> Any:
        import openvino as ov

        made = np.zeros((1, data.shape[1], len(rows), data.shape[3]), data.dtype)
        there = rows < (data.shape[2] if self._written else 0)
        if there.any():  # the state of an empty cache has no batch either
            made[:, :, there] = data[:, :, rows[there]]
        return ov.Tensor(made)

    def wrote(self, end: int) -> None:
        """A run has appended rows to the states, which are `end` now."""
        self._rows, self._written = np.arange(end), end

    def truncate(self, length: int) -> None:
        """See KvCache."""
        super().truncate(length)
        self._rows = self._known(length)

    def fork(self) -> StatesCache:
        """An independent copy of the committed rows."""
        self.settle()
        twin = StatesCache(self._spec, self.request.get_compiled_model().create_infer_request())
        twin._length, twin._predicted = self._length, self._predicted
        if self._length:
            others = {state.name: state for state in self.request.query_state()}
            for state in twin.request.query_state():
                state.state = others[state.name].state
            twin.wrote(self._length)
        return twin

    def layer(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keys and values of one layer: a copy of what the states hold."""
        found = {}
        for state in self.request.query_state():
            for kind in ("key", "value"):
                if state.name.startswith(f"past_key_values.{index}.{kind}"):
                    data = np.asarray(state.state.data, np.float32)[0].transpose(1, 0, 2)
                    found[kind] = data[self._known(self._length)]
        return found["key"], found["value"]

    def _resize(self, capacity: int) -> None:
        """States grow by themselves."""

    def _move(self, source: Slots, target: Slots) -> None:
        """Rows are moved when the next step needs them; see `settle`."""


class OpenVinoAdapted(AdaptedBackend[StatesCache]):
    """A Backend over one compiled model, shared by all conversations."""

    name = "openvino_adapted"

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        variant: Variant,
        threads: int | None = None,
        kv_cache: str | None = None,
        device: str | None = None,
    ) -> None:
        """Compile the variant for a device (see openvino_device.check_device). threads: of one
        step, on the CPU; None leaves it to OpenVINO.

        Raises:
            DeviceError: no such device here, or it takes fixed shapes only. OptionError: no such
                kv_cache, or the device does not take an option.
            MissingExtra: OpenVINO is not installed.
            BundleError: the files are damaged, or the graph keeps no states.
            BackendError: the device cannot compile the graph.
        """
        super().__init__(spec, variant)
        if kv_cache is not None and kv_cache not in KV_PRECISIONS:
            raise OptionError(f"kv_cache is {kv_cache!r}; available: {', '.join(KV_PRECISIONS)}")
        if not isinstance(variant.cache, StatesLayout):
            raise BundleError(f"{variant.model} has a cache of {variant.cache.kind!r}")
        self._device = openvino_device.check_device(device)
        if "npu" in hardware("openvino", self._device):
            raise DeviceError(
                f"{self._device} takes graphs of fixed shapes only, and {variant.model} has none; "
                "export the checkpoint it was made of with --format openvino-static"
            )
        binaries = [name for name in variant.files if name.endswith(".bin")]
        if len(binaries) != 1:
            raise BundleError(f"{variant.model} has {len(binaries)} files of weights, not one")
        how = openvino_device.properties(self._device, threads)
        if self._device == openvino_device.DEFAULT_DEVICE:
            how["KV_CACHE_PRECISION"] = KV_PRECISIONS[kv_cache or "f32"]
        elif kv_cache is not None:
            raise OptionError(
                f"kv_cache is {kv_cache!r}, and only OpenVINO's CPU is told how to store keys and "
                f"values; leave the option out for {self._device}"
            )
        model, weights = folder / variant.model, folder / binaries[0]
        self._model: Any = openvino_device.compile_graph(model, weights, self._device, how)
        self.kv_type = openvino_device.kv_type(self._model)
        self._lock = threading.Lock()

    def new_cache(self) -> StatesCache:
        """An empty cache that fits this backend: an inference request of its own."""
        if self._model is None:
            raise BackendError("the model was closed")
        with self._lock:
            return StatesCache(self.spec, self._model.create_infer_request())

    def _begin(self, cache: KvCache, cancel: CancelToken | None) -> Piece:
        if self._model is None:
            raise BackendError("the model was closed")
        if not isinstance(cache, StatesCache):
            raise BackendError(f"this backend needs its own caches, not {type(cache).__name__}")
        cache.settle()
        return _Run(self._variant.step, cache, cancel)

    @property
    def device(self) -> str:
        """See Backend; of `AUTO`, also what it has chosen."""
        return openvino_device.placed(self._device, self._model)

    def close(self) -> None:
        """Release the model."""
        self._model = None


class _Run:
    """Pieces of a step over the states of a cache."""

    def __init__(self, names: StepNames, cache: StatesCache, cancel: CancelToken | None) -> None:
        self._names, self._cache, self._cancel = names, cache, cancel

    def __call__(self, tokens: NDArray[np.int64], past: int) -> NDArray[np.float32]:
        request, cancel = self._cache.request, self._cancel
        feeds = step_feeds(self._names, tokens, past)
        # Whatever becomes of the run, the states are not what they were.
        self._cache.wrote(past + len(tokens))
        for name, array in feeds.items():
            request.set_tensor(name, openvino_device.tensor(array))
        openvino_device.run(request, cancel)
        return np.asarray(request.get_tensor(self._names.logits).data[0], np.float32)
