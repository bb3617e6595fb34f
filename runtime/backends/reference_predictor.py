"""Predictors of the reference backend: the meaning of the others."""

from __future__ import annotations

from pathlib import Path

from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, OptionError
from quickdraft.kvcache.contiguous import ContiguousCache
from quickdraft.manifest import Variant
from quickdraft.runtime.backends.base import Backend, CancelToken
from quickdraft.runtime.backends.reference import caches, step_values
from quickdraft.runtime.backends.reference_program import Program
from quickdraft.runtime.backends.slots_predictor import Run, SlotsPredictor


class ReferencePredictor(SlotsPredictor[ContiguousCache]):
    """A Predictor that computes in NumPy."""

    caches = ContiguousCache
    kind = "slots"

    def __init__(
        self, backend: Backend, folder: Path, variant: Variant, threads: int | None = None
    ) -> None:
        """Load the predictor `variant` for the target `backend`, and decode its weights.

        Raises:
            OptionError: threads were asked for.
            BundleError: the files are damaged, or it fills other caches than the target's.
        """
        super().__init__(backend, variant)
        if threads is not None:
            raise OptionError(f"the reference backend cannot be told to use {threads} threads")
        self._program: Program | None = Program.read(folder, variant)

    def _new_cache(self, rows: int) -> ContiguousCache:
        return ContiguousCache(self.spec, rows)

    def _begin(self, cache: ContiguousCache) -> Run[ContiguousCache]:
        program = self._program
        if program is None:
            raise BackendError("the predictor was closed")

        def run(tree: Tree, own: ContiguousCache, row: int, cancel: CancelToken | None) -> None:
            where = caches(self.spec, tree, own, cache, row)
            program.run(step_values(tree, own.length), where, cancel)

        return run

    def close(self) -> None:
        """Release the weights."""
        self._program = None
