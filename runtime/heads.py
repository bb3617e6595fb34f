"""A head of a bundle, opened beside its target and wrapped for drafters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.base import HeadOutput
from quickdraft.drafters.tree import Tree
from quickdraft.errors import InputError
from quickdraft.kvcache.memory import Memory
from quickdraft.manifest import Manifest, Role, Variant
from quickdraft.runtime.backends.base import (
    Backend,
    HeadBackend,
    Seq2SeqBackend,
    StepOutput,
    TopTokens,
)
from quickdraft.runtime.backends.opening import (
    find_part,
    open_part,
    opened_variant,
    parts,
    read_token_map,
)
from quickdraft.runtime.sampling import largest

TOP = 16
"""Likeliest tokens of a row, from backends that give all logits."""


class BackendHead:
    """A backend as drafters.base.HeadModel."""

    def __init__(
        self,
        backend: HeadBackend,
        variant: Variant,
        token_map: NDArray[np.int64] | None,
        vocab_size: int,
    ) -> None:
        """token_map: int64 [vocabulary of the head], the target's token for each of its own; None
        where they are the same. vocab_size: of the target, whose tokens it reads."""
        self.details: Mapping[str, Any] = variant.details
        self.features = variant.features
        self.reads_memory = variant.memory is not None
        self.vocab_size = vocab_size
        self.context_length = backend.spec.context_length
        self._backend = backend
        self._token_map = token_map
        said = variant.details.get("state", ())
        self._states: tuple[int, ...] = (said,) if isinstance(said, int) else tuple(said)
        self._none = np.zeros((0, backend.spec.hidden_size), np.float32)

    def new_cache(self) -> Any:
        """An empty cache."""
        return self._backend.new_cache()

    def new_cache_over(self, memory: Memory) -> Any:
        """An empty cache over a memory of the target, which this backend must have made."""
        assert isinstance(self._backend, Seq2SeqBackend)  # as `reads_memory`  # noqa: S101
        return self._backend.new_cache(memory)

    def step(
        self, tree: Tree, cache: Any, features: NDArray[np.float32], rows: Sequence[int]
    ) -> HeadOutput:
        """One step over the committed cache; see drafters.base.HeadModel.

        Raises:
            ContextOverflow, BackendError: as steps of the backend.
        """
        wanted = np.asarray(rows, np.int64)
        output = self._backend.step(tree, cache, wanted, full_logits=False, features=features)
        top = output.top if output.top is not None else _top(output.logits)
        ids = top.ids if self._token_map is None else self._token_map[top.ids]
        return HeadOutput(ids, top.values - top.log_sum[:, None], self._joined(output))

    def _joined(self, output: StepOutput) -> NDArray[np.float32]:
        """Its states, one beside another."""
        states = [output.hidden_states[number] for number in self._states] or [self._none]
        return states[0] if len(states) == 1 else np.concatenate(states, axis=1)

    def logits(self, tree: Tree, cache: Any, rows: Sequence[int]) -> NDArray[np.float32]:
        """float32 [len(rows), vocabulary of the target]; tokens that it cannot draft have -inf.
        Only where `features` is 0; see drafters.base.DraftModel.

        Raises:
            ContextOverflow, BackendError: as steps of the backend.
        """
        return self.whole(tree, cache, None, rows)[0]

    def whole(
        self, tree: Tree, cache: Any, features: NDArray[np.float32] | None, rows: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """All logits of a step, and its states; see drafters.base.HeadModel.

        Raises:
            ContextOverflow, BackendError: as steps of the backend.
        """
        wanted = np.asarray(rows, np.int64)
        given: dict[str, Any] = {} if features is None else {"features": features}
        output = self._backend.step(tree, cache, wanted, **given)
        if self._token_map is None:
            return output.logits, self._joined(output)
        spread = np.full((len(output.logits), self.vocab_size), -np.inf, np.float32)
        spread[:, self._token_map] = output.logits
        return spread, self._joined(output)

    def close(self) -> None:
        """Release the head."""
        self._backend.close()


def open_head(
    folder: Path,
    manifest: Manifest,
    target: Backend,
    threads: int | None,
    name: str | None,
    role: Role | None = None,
) -> BackendHead:
    """Load the head, draft or auxiliary model `name` of a bundle for its loaded target. role: what
    else it is; the first of that where there is no name.

    Raises:
        InputError: the bundle has no such part for the backend, or its target does not put out
            what the head reads.
        BundleError: its files are damaged. BackendError: it cannot run here.
    """
    if role is None:
        auxiliaries = {variant.name for variant in parts(manifest, target.name, "auxiliary")}
        role = "auxiliary" if name in auxiliaries else "drafter"
    variant = find_part(manifest, target.name, role, name)
    offered = opened_variant(manifest, target).step.hidden_states
    missing = [k for k in variant.details.get("hidden_states", ()) if k not in offered]
    if missing:
        raise InputError(
            f"the {role} {variant.name!r} of {manifest.source.name} reads the hidden states after "
            f"{missing[0]} layers, which the model does not put out; export it again with both"
        )
    token_map = read_token_map(folder, variant, manifest.model.vocab_size)
    backend = open_part(folder, manifest, target.name, role, variant.name, threads)
    return BackendHead(backend, variant, token_map, manifest.model.vocab_size)


def _top(logits: NDArray[np.float32]) -> TopTokens:
    """The `TOP` largest logits of every row."""
    count = min(TOP, logits.shape[1])
    ids = np.empty((len(logits), count), np.int64)
    for row, values in zip(ids, logits, strict=True):
        found = largest(values, count)
        row[:] = found[np.argsort(-values[found], kind="stable")][:count]
    best = logits.max(axis=1)
    sums = np.exp(logits - best[:, None]).sum(axis=1)
    return TopTokens(np.take_along_axis(logits, ids, axis=1), ids, best + np.log(sums))
