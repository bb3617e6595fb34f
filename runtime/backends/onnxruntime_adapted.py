"""ONNX Runtime on graphs of onnxruntime-genai's builder and of optimum, as they are.

Three kinds of cache: past and present in the same memory (GroupQueryAttention), past in and a
longer present out, and none, where every step computes everything again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import BackendError, BundleError
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.by_head import ByHeadCache
from quickdraft.kvcache.tokens import TokenCache
from quickdraft.manifest import AppendedLayout, RecomputedLayout, Variant
from quickdraft.runtime.backends import ort_session, providers
from quickdraft.runtime.backends.adapted import AdaptedBackend, Feeds, Piece, step_feeds
from quickdraft.runtime.backends.base import CancelToken, refuse_kv_types
from quickdraft.types import ModelSpec

FIRST_MODEL = "first_model"
"""Key of Variant.details: the graph for an empty cache, where the model is for a filled one."""
PROBED = "probed"
"""Key of Variant.details: whether it is known that a chain may run at once."""

_DTYPES: dict[str, type[np.generic]] = {
    "tensor(bool)": np.bool_,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


class OnnxRuntimeAdapted(AdaptedBackend[ByHeadCache | TokenCache]):
    """A Backend over one InferenceSession, or two (FIRST_MODEL), shared by all conversations."""

    name = "onnxruntime_adapted"

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        variant: Variant,
        threads: int | None = None,
        kv_cache: str | None = None,
        device: str = "CPU",
    ) -> None:
        """Load the variant. threads: of one step; None means one per physical core. device: see
        `providers`.

        Raises:
            OptionError: kv_cache is not f32. MissingExtra: onnxruntime is not installed.
            DeviceError: the device is not there, or takes nothing of the graph.
            BackendError: onnxruntime cannot load or run the model.
            BundleError: the graph's inputs or outputs are not those of the manifest.
        """
        super().__init__(spec, variant)
        refuse_kv_types(self.name, kv_cache)
        if not isinstance(variant.cache, AppendedLayout | RecomputedLayout):
            raise BundleError(f"{variant.model} has a cache of {variant.cache.kind!r}")
        self._layout = variant.cache
        self.device = device
        options = ort_session.options(threads)
        named = providers.use(options, device)
        self._sessions: list[Any] | None = []
        for model in (variant.details.get(FIRST_MODEL), variant.model):
            if model is not None:
                opened = ort_session.open_session(folder / str(model), options, named)
                self._sessions.append(opened)
        self.degraded = providers.fallen_back(self._sessions, device)
        self._check_names()
        values = [*self._sessions[-1].get_inputs(), *self._sessions[-1].get_outputs()]
        self.dtypes = {value.name: _DTYPES.get(value.type, np.float32) for value in values}
        if not variant.details.get(PROBED, False):
            self.probe()
        self.pairs = True

    def _check_names(self) -> None:
        assert self._sessions is not None  # just opened  # noqa: S101
        session, step, layout = self._sessions[-1], self._variant.step, self._layout
        inputs = {step.tokens, step.mask, step.positions, step.branch} - {None}
        outputs = {step.logits}
        if isinstance(layout, AppendedLayout):
            for layer in range(self.spec.num_layers):
                for past, present in _names(layout, layer):
                    inputs.add(past)
                    outputs.add(present)
        found = {value.name for value in session.get_inputs()}
        if inputs != found or not outputs <= {value.name for value in session.get_outputs()}:
            raise BundleError(
                f"{self._variant.model}: the graph's inputs and outputs are not those that it was "
                "opened for; was the file exchanged?"
            )

    def new_cache(self) -> ByHeadCache | TokenCache:
        """An empty cache that fits this backend."""
        if isinstance(self._layout, RecomputedLayout):
            return TokenCache(self.spec)
        return ByHeadCache(self.spec)

    def _begin(self, cache: KvCache, cancel: CancelToken | None) -> Piece:
        sessions = self._sessions  # `close` may come from another thread; a step that runs ends
        if sessions is None:
            raise BackendError("the model was closed")
        if isinstance(self._layout, RecomputedLayout) and isinstance(cache, TokenCache):
            return _Recompute(self, sessions[-1], cache, cancel)
        if isinstance(self._layout, AppendedLayout) and isinstance(cache, ByHeadCache):
            return _Append(self, sessions, cache, cancel)
        raise BackendError(f"this backend needs its own caches, not {type(cache).__name__}")

    def logits(self, bound: ort_session.Bound, rows: int) -> NDArray[Any]:
        """Where a run puts the logits of its rows."""
        name = str(self._variant.step.logits)
        made = np.empty((1, rows, self.spec.vocab_size), self.dtypes[name])
        bound.output(name, made)
        return made

    def feeds(self, tokens: NDArray[np.int64], past: int) -> Feeds:
        """The inputs besides the cache, in the types that the graph has."""
        feeds = step_feeds(self._variant.step, tokens, past)
        return {name: array.astype(self.dtypes[name], copy=False) for name, array in feeds.items()}

    @property
    def layout(self) -> AppendedLayout | RecomputedLayout:
        """How the graph is given its cache."""
        return self._layout

    def close(self) -> None:
        """Release the sessions."""
        self._sessions = None


def _names(layout: AppendedLayout, layer: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """Past and present, of keys and of values."""
    return (
        (layout.past_key.format(layer=layer), layout.present_key.format(layer=layer)),
        (layout.past_value.format(layer=layer), layout.present_value.format(layer=layer)),
    )


class _Recompute:
    """Pieces of a step that are given everything before them again."""

    def __init__(
        self,
        backend: OnnxRuntimeAdapted,
        session: Any,
        cache: TokenCache,
        cancel: CancelToken | None,
    ) -> None:
        self._backend, self._session, self._cache, self._cancel = backend, session, cache, cancel

    def __call__(self, tokens: NDArray[np.int64], past: int) -> NDArray[np.float32]:
        end = past + len(tokens)
        self._cache.tokens[past:end] = tokens
        bound = ort_session.Bound(self._session)
        feeds = self._backend.feeds(self._cache.tokens[:end], 0)
        for name, array in feeds.items():
            bound.input(name, array)
        logits = self._backend.logits(bound, end)
        bound.run(self._cancel)
        return np.asarray(logits[0, past:], np.float32)


class _Append:
    """Pieces of a step over keys and values."""

    def __init__(
        self,
        backend: OnnxRuntimeAdapted,
        sessions: list[Any],
        cache: ByHeadCache,
        cancel: CancelToken | None,
    ) -> None:
        self._backend, self._sessions, self._cache, self._cancel = backend, sessions, cache, cancel

    def __call__(self, tokens: NDArray[np.int64], past: int) -> NDArray[np.float32]:
        backend, layout = self._backend, self._backend.layout
        assert isinstance(layout, AppendedLayout)  # as `_begin` chose  # noqa: S101
        first = past == 0 and len(self._sessions) > 1
        bound = ort_session.Bound(self._sessions[0 if first else -1])
        feeds = backend.feeds(tokens, past)  # kept: a binding does not keep what it is given
        for name, array in feeds.items():
            bound.input(name, array)
        end = past + len(tokens)
        logits = backend.logits(bound, len(tokens))
        kept = []
        for layer in range(backend.spec.num_layers):
            pairs = zip(_names(layout, layer), self._cache.by_head(layer), strict=True)
            for (before, after), buffer in pairs:
                dtype = backend.dtypes[after]
                if layout.in_place and dtype == np.float32:
                    bound.in_place(before, after, buffer[None])
                    continue
                given = np.ascontiguousarray(buffer[None, :, :past], dtype)
                result = np.empty((1, len(buffer), end, backend.spec.head_dim), dtype)
                if not first:
                    bound.input(before, given)
                bound.output(after, result)
                kept.append((given, result, buffer))
        bound.run(self._cancel)
        for _, result, buffer in kept:
            buffer[:, past:end] = result[0, :, past:]
        return np.asarray(logits[0], np.float32)
