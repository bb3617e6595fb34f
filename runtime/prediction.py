"""KV prediction at runtime: how the rows of a prompt come about, and who predicts them.

A predictor, much cheaper than the target, fills the target's cache with guesses of the prompt's
keys and values, and the first token comes early (arXiv 2410.08391). The answer is another one than
the target's: nobody gets it who did not ask for it, and every result says so.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from quickdraft.device_profiles.machine import physical_cores
from quickdraft.errors import BackendError, OptionError
from quickdraft.manifest import Manifest
from quickdraft.runtime.backends.base import Backend, Predictor
from quickdraft.runtime.backends.opening import open_backend, open_predictor, parts
from quickdraft.runtime.backends.simulated import SimulatedBackend

LEAST_ROWS = 2
"""Predicting fewer rows would save nothing: the target runs a few rows in the time of one."""
MOST_HELD = 0.25
"""Part of a prompt that may be there already. An auxiliary model reads the prompt from its start,
and the largest takes three quarters of the target's time for it."""
MAX_TAIL = 1 << 20

_GRAMMAR = re.compile(r"(?:(exact)|(?:predicted|hybrid:(\d{1,9}))(?:@([^@+\s]+))?(\+refresh)?)")


@dataclass(frozen=True)
class Prefill:
    """How the rows of a prompt come about.

    mode: exact, all by the target; predicted, all but the last; hybrid, all but the last `tail`.
    predictor: its name, None for the first of the bundle. refresh: whether exact rows are computed
    while the answer goes on, and take the place of the predicted ones.
    """

    mode: Literal["exact", "predicted", "hybrid"] = "exact"
    tail: int = 1
    predictor: str | None = None
    refresh: bool = False

    @classmethod
    def parse(cls, text: Any) -> Prefill:
        """Read `exact`, or `predicted` or `hybrid:N` with `@NAME` and `+refresh` where wanted.

        Raises:
            OptionError: it is something else.
        """
        found = _GRAMMAR.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise OptionError(
                f"prefill is {text!r}; it must be exact, predicted or hybrid:N, the last two with "
                "@NAME to choose a predictor and +refresh to refresh, such as hybrid:64+refresh"
            )
        exact, tail, predictor, refresh = found.groups()
        if exact:
            return EXACT
        if tail is None:
            return cls("predicted", 1, predictor, refresh is not None)
        if not 1 <= int(tail) <= MAX_TAIL:
            raise OptionError(f"prefill is {text!r}; N of hybrid:N must be 1 to {MAX_TAIL}")
        return cls("hybrid", int(tail), predictor, refresh is not None)

    def __str__(self) -> str:
        """What `parse` reads."""
        tail = f":{self.tail}" if self.mode == "hybrid" else ""
        name = f"@{self.predictor}" if self.predictor is not None else ""
        return f"{self.mode}{tail}{name}{'+refresh' if self.refresh else ''}"

    @property
    def kind(self) -> str:
        """The same without the name of the predictor."""
        return str(replace(self, predictor=None))

    @property
    def predicts(self) -> bool:
        """Whether predicted rows may be used."""
        return self.mode != "exact"

    def rows(self, prompt: int, held: int = 0, first: int = 0) -> int:
        """How many tokens of a prompt of that many, from the first on, shall have a row when all is
        predicted; 0 where the target runs what is missing. held: exact rows there are of it; first:
        how many of them the target is to run in any case."""
        rows = prompt - self.tail
        pays = rows - max(held, first) >= LEAST_ROWS and held <= MOST_HELD * prompt
        return rows if self.predicts and pays else 0


EXACT = Prefill()


@dataclass(frozen=True)
class PredictionReport:
    """What an answer over predicted rows had of them.

    predictor: its name. rows: predicted rows the first token was decided over; predict_ms: time to
    predict them, 0 where an earlier answer of the session had done it. exact_from: number of
    the first token of the answer that was decided over exact rows only, None if none was.
    refresh_ms: time spent on exact rows; refresh_error: why there are none, None if nothing failed.
    """

    predictor: str
    rows: int
    predict_ms: float = 0.0
    exact_from: int | None = None
    refresh_ms: float = 0.0
    refresh_error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, times rounded to a microsecond."""
        return {
            "predictor": self.predictor,
            "rows": self.rows,
            "predict_ms": round(self.predict_ms, 3),
            "exact_from": self.exact_from,
            "refresh_ms": round(self.refresh_ms, 3),
            "refresh_error": self.refresh_error,
        }


@dataclass(frozen=True)
class PredictorEntry:
    """A predictor of a bundle. open: loads it. exact_first: how many of the first tokens the target
    runs itself; they draw the attention of all that follow. auxiliary: name of its auxiliary model
    in the bundle."""

    name: str
    open: Callable[[], Predictor]
    exact_first: int = 0
    auxiliary: str = ""


class _Closable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closable)


class _Lazy(Generic[T]):
    """Something that is opened when it is first asked for, by one thread only."""

    def __init__(self, opener: Callable[[], T]) -> None:
        self._opener = opener
        self._opened: T | None = None
        self._closed = False
        self._lock = threading.Lock()

    def get(self) -> T:
        """Open it, or what was opened.

        Raises:
            BackendError: it was closed.
        """
        with self._lock:
            if self._closed:
                raise BackendError("the model was closed")
            if self._opened is None:
                self._opened = self._opener()
            return self._opened

    def close(self) -> None:
        """Release it if it was opened; it is not opened any more."""
        with self._lock:
            self._closed = True
            if self._opened is not None:
                self._opened.close()


class Prediction:
    """What prediction needs beside a loaded target: predictors, and a second backend to refresh
    with. Opened on first use and shared by all conversations; thread-safe."""

    def __init__(
        self,
        backend: Backend,
        predictors: Sequence[PredictorEntry] = (),
        second: Callable[[], Backend] | None = None,
        missing: str | None = None,
    ) -> None:
        """backend: the target's. predictors: best first. second: loads the target once more; None
        lets the one backend do both. missing: why there are no predictors, and what to do; None
        where the bundle has none."""
        self._backend = backend
        self._missing = missing
        self.entries = {entry.name: entry for entry in predictors}
        self._predictors = {entry.name: _Lazy(entry.open) for entry in predictors}
        self._second = _Lazy(second) if second is not None else None

    @classmethod
    def of_bundle(
        cls, folder: Path, manifest: Manifest, backend: Backend, threads: int | None
    ) -> Prediction:
        """For a loaded target of a verified bundle. threads: of its steps, None for its default.
        Nothing is predicted on a simulated device, whose profile says nothing of that."""
        if isinstance(backend, SimulatedBackend):
            return cls(
                backend,
                missing=f"nothing is predicted on {backend.device}, whose profile does not say how "
                "long it takes; measure it on a real device, or leave the option out",
            )

        def second() -> Backend:
            half = max(1, (threads or physical_cores() or 2) // 2)
            return open_backend(folder, manifest, backend.name, half, backend.kv_type).backend

        predictors = [
            PredictorEntry(
                variant.name,
                partial(open_predictor, folder, manifest, backend, variant.name, threads),
                int(variant.details.get("exact_first", 0)),
                str(variant.details.get("auxiliary", "")),
            )
            for variant in parts(manifest, backend.name, "predictor")
        ]
        # Only the weights of the hotpath flavour are mapped, so that loading them twice is free.
        return cls(backend, predictors, second if backend.flavour == "hotpath" else None)

    def entry(self, prefill: Prefill) -> PredictorEntry:
        """The predictor that an answer asks for.

        Raises:
            OptionError: the bundle has none, or none of that name.
        """
        if not self.entries:
            why = self._missing or (
                f"there is no predictor for the backend {self._backend.name!r} in this bundle; fit "
                "one with 'quickdraft train predictor' and export the model with it (--trained "
                "FILE), or leave the option out"
            )
            raise OptionError(f"prefill is '{prefill}', and {why}")
        name = prefill.predictor
        if name is not None and name not in self.entries:
            raise OptionError(
                f"prefill is '{prefill}', and this bundle has no predictor {name!r}; it has: "
                f"{', '.join(self.entries)}"
            )
        return self.entries[name] if name is not None else next(iter(self.entries.values()))

    def rows(self, prefill: Prefill, prompt: int, held: int = 0) -> int:
        """See Prefill.rows; for the predictor that it asks for."""
        return prefill.rows(prompt, held, self.entry(prefill).exact_first)

    def predictor(self, name: str) -> Predictor:
        """One of `entries`, loaded.

        Raises:
            BackendError, BundleError: it cannot be loaded.
        """
        return self._predictors[name].get()

    def second(self) -> Backend:
        """The backend that refreshes: a second one with half the threads where that costs no
        memory, else the target's own.

        Raises:
            BackendError: it cannot be loaded.
        """
        return self._second.get() if self._second is not None else self._backend

    def prepare(self, prefill: Prefill) -> None:
        """Load now what answers of this kind will need.

        Raises:
            OptionError, BackendError, BundleError: as `entry`, `predictor` and `second`.
        """
        if prefill.predicts:
            self.predictor(self.entry(prefill).name)
            if prefill.refresh:
                self.second()

    def close(self) -> None:
        """Release all that was opened; later uses raise BackendError."""
        for lazy in self._predictors.values():
            lazy.close()
        if self._second is not None:
            self._second.close()
