"""A bundle that drafts for another: opened, compared with its target, wrapped for drafters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.device_names import split_device
from quickdraft.drafters.tree import Tree
from quickdraft.errors import InputError, OptionError
from quickdraft.manifest import Manifest
from quickdraft.registry import BACKENDS, lookup
from quickdraft.runtime.backends.base import Backend
from quickdraft.runtime.backends.opening import open_backend
from quickdraft.runtime.text import Tokenizer

BundleOpener = Callable[[str, str], tuple[Path, Manifest]]
"""Finds a bundle, given what leads to it and the backend that shall open it."""


class BackendDraftModel:
    """A backend as drafters.base.DraftModel.

    vocab_size: tokens both know; the matrices of the two may be padded to different sizes.
    """

    def __init__(self, backend: Backend, vocab_size: int) -> None:
        """vocab_size: of the target."""
        self._backend = backend
        self._width = vocab_size
        self.vocab_size = min(vocab_size, backend.spec.vocab_size)
        self.context_length = backend.spec.context_length

    def new_cache(self) -> Any:
        """An empty cache."""
        return self._backend.new_cache()

    def logits(self, tree: Tree, cache: Any, rows: Sequence[int]) -> NDArray[np.float32]:
        """float32 [len(rows), vocabulary of the target]: logits after these nodes over the
        committed cache. Valid until the next step over the same cache.

        Raises:
            ContextOverflow, BackendError: as steps of the backend.
        """
        logits = self._backend.step(tree, cache, np.asarray(rows, np.int64)).logits
        missing = self._width - logits.shape[1]
        if missing <= 0:
            return logits[:, : self._width]
        return np.pad(logits, ((0, 0), (0, missing)), constant_values=-np.inf)

    def close(self) -> None:
        """Release the model."""
        self._backend.close()


def open_draft_model(
    name: str,
    backend: str,
    open_bundle: BundleOpener | None,
    target: Manifest,
    tokenizer: Tokenizer,
) -> BackendDraftModel:
    """Load the bundle `name` as a model that drafts for `target`, whose tokenizer is given.

    backend: `auto`, or a name of the registry, after which `:` may name a device of its own: it
    need not be the target's.

    Raises:
        OptionError: there is no such backend. DeviceError: its device is not here.
        InputError: it cannot be found or opened, or a token means something else to it.
    """
    if open_bundle is None:
        raise OptionError(
            f"the draft model {name!r} cannot be looked up here; open the target with "
            "quickdraft.load"
        )
    if backend != "auto":
        lookup("backend", BACKENDS, split_device(backend)[0])  # before anything is fetched
    folder, manifest = open_bundle(name, backend)
    own = Tokenizer.from_entry(folder, manifest.tokenizer, manifest.model.vocab_size)
    problem = tokenizer.difference(own)
    if problem is not None:
        raise InputError(
            f"{name} cannot draft for {target.source.name}: {problem}; a draft model must have "
            "the tokenizer of its target"
        )
    opened = open_backend(folder, manifest, backend, None)
    return BackendDraftModel(opened.backend, target.model.vocab_size)
