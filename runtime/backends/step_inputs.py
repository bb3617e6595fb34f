"""What a step feeds a model besides tokens, as pure functions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, ContextOverflow
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.memory import Memory
from quickdraft.manifest import Variant
from quickdraft.types import ModelSpec

MASKED = np.float32(np.finfo(np.float32).min)
"""Bias of a slot that a row must not see: finite, so that no engine meets infinity - infinity."""


def check_step(tree: Tree, length: int, spec: ModelSpec, vocab_size: int | None = None) -> None:
    """Refuse a step that the model has no meaning for. vocab_size: of the tokens it reads, where
    that is not the one of the spec.

    Raises:
        BackendError: a token id is outside the vocabulary.
        ContextOverflow: a node's position is outside the context.
    """
    tokens = tree.tokens
    if len(tokens) <= 16:  # NumPy's reductions take longer for so few
        few = tokens.tolist()
        low, high = min(few), max(few)
    else:
        low, high = int(tokens.min()), int(tokens.max())
    limit = spec.vocab_size if vocab_size is None else vocab_size
    if low < 0 or high >= limit:
        raise BackendError(f"a token id is outside the vocabulary of {limit}")
    end = length + (len(tree) if tree.is_chain else int(tree.depth.max()) + 1)
    if end > spec.context_length:
        raise ContextOverflow(end, spec.context_length, "step")


def make_room(cache: KvCache, rows: int, staged: int) -> None:
    """Stage the rows of a step: the first of a tree, or, after `staged` ones, the next of it.

    Raises:
        BackendError: the cache has not as many staged.
    """
    if not staged:
        cache.stage(rows)
        return
    if cache.staged != staged or rows < 1:
        raise BackendError(
            f"the tree is to grow by {rows} rows after {staged}, and the cache has "
            f"{cache.staged} staged"
        )
    cache.extend(rows)


def check_memory(variant: Variant, memory: Memory | None) -> None:
    """A cache is over a memory in an encoder-decoder model, and in no other.

    Raises:
        BackendError: it is not so.
    """
    if (variant.memory is None) != (memory is None):
        raise BackendError(
            "this cache is over no source; make it with new_cache(memory)"
            if memory is None
            else "this cache is over a source, and the model has no encoder for one"
        )


def check_features(variant: Variant, rows: int, found: NDArray[np.float32] | None) -> None:
    """Refuse vectors that are not those a part takes with its tokens.

    Raises:
        BackendError: they have another shape, or are missing, or too much.
    """
    wanted = (rows, variant.features) if variant.features else None
    if wanted != (None if found is None else found.shape):
        takes = f"features {list(wanted)}" if wanted else "no features"
        given = "none" if found is None else f"some of shape {list(found.shape)}"
        raise BackendError(f"a step of {variant.model} takes {takes}, and was given {given}")


def positions(tree: Tree, length: int) -> NDArray[np.int64]:
    """Logical positions of the nodes over `length` committed rows: int64 [n]."""
    if tree.is_chain:
        return np.arange(length, length + len(tree))
    return length + tree.depth


def distances(tree: Tree, length: int, slots: int) -> NDArray[np.int64]:
    """Position of what a slot holds less that of a row, int64 [n, slots]; see `attention_bias` for
    where it lies. Slots past the staged rows go on counting."""
    places = np.arange(slots)
    rows = positions(tree, length)
    places[length : length + len(tree)] = rows
    return places - rows[:, None]


def ancestors(tree: Tree, first: int = 0) -> NDArray[np.int32]:
    """int32 [n - first, largest depth + 1]: the node on the way to each node from number `first` on
    at each depth, itself last, then -1."""
    depth, parents = tree.depth.tolist(), tree.parent.tolist()
    found = np.full((len(tree) - first, max(depth) + 1), -1, np.int32)
    for row, node in enumerate(range(first, len(tree))):
        parent, at = parents[node], depth[node]
        if parent >= first:
            found[row, :at] = found[parent - first, :at]
        else:  # of an earlier step, whose rows are not here
            path = []
            while parent >= 0:
                path.append(parent)
                parent = parents[parent]
            found[row, :at] = path[::-1]
        found[row, at] = node
    return found


def attention_bias(
    tree: Tree, length: int, slots: int, window: int | None = None
) -> NDArray[np.float32]:
    """Additive attention bias, float32 [n, slots]: 0 where a row may look, MASKED elsewhere.

    Committed row s lies in slot s at position s; node i is staged in slot length + i at position
    length + depth[i]. A node sees the committed rows, its ancestors and itself, and of those, with
    a window w, only positions above its own - w. slots >= length + n; the rest is masked.
    """
    n = len(tree)
    bias = np.full((n, slots), MASKED, np.float32)
    if n == 1:
        bias[0, 0 if window is None else max(0, length + 1 - window) : length + 1] = 0
        return bias
    bias[:, :length] = 0
    visible = tree.mask
    if window is not None:
        first = positions(tree, length) + (1 - window)  # the oldest position each node sees
        # Every node forgets what the root forgets; only a band of slots differs between nodes.
        low, high = (int(np.clip(edge, 0, length)) for edge in (first.min(), first.max()))
        bias[:, :low] = MASKED
        bias[:, low:high][np.arange(low, high) < first[:, None]] = MASKED
        visible = visible & (tree.depth > (tree.depth - window)[:, None])
    bias[:, length : length + n][visible] = 0
    return bias
