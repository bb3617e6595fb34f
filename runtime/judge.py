"""The judge of a bundle, opened beside its target: which drafted tokens will do, although the
target would have said others? See quickdraft.export.heads.judge; lossy, and only on request."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.tree import Tree
from quickdraft.manifest import Manifest, Role
from quickdraft.runtime.backends.base import Backend, StepOutput
from quickdraft.runtime.heads import BackendHead, open_head

ROLE: Role = "judge"


class Judge:
    """Shared by the answers of a model."""

    def __init__(self, head: BackendHead) -> None:
        self._head = head
        (self._layer,) = head.details["hidden_states"]
        self._cache = head.new_cache()
        self._lock = threading.Lock()

    def verdicts(self, tree: Tree, output: StepOutput, rows: Sequence[int]) -> NDArray[np.float32]:
        """float32 [nodes], how likely it is that a node's token will do.

        output: of the target's step; rows: those of its hidden states that belong to the nodes.

        Raises:
            BackendError: it failed.
        """
        states = output.hidden_states[self._layer][list(rows)]
        tokens = Tree.chain([0] * len(tree))  # no row looks at another
        with self._lock:
            said = self._head.step(tokens, self._cache, states, range(len(tree)))
            fine = np.take_along_axis(said.log_probs, np.argsort(said.ids, axis=1), axis=1)[:, 1]
            found: NDArray[np.float32] = np.exp(fine)
        return found

    def close(self) -> None:
        """Release it."""
        self._head.close()


class JudgeOfBundle:
    """Opens the judge of a bundle when an answer first asks for it."""

    def __init__(self, folder: Path, manifest: Manifest, target: Backend, threads: int | None):
        self._where = folder, manifest, target, threads
        self._lock = threading.Lock()
        self._judge: Judge | None = None

    def get(self) -> Judge:
        """The judge.

        Raises:
            InputError: the bundle has none for this backend, or its target puts out no hidden
                states for it. BundleError: its files are damaged. BackendError: it cannot run here.
        """
        with self._lock:
            if self._judge is None:
                self._judge = Judge(open_head(*self._where, None, ROLE))
            return self._judge

    def close(self) -> None:
        """Release it, if it was opened."""
        with self._lock:
            if self._judge is not None:
                self._judge.close()
                self._judge = None
