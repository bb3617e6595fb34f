"""A draft model reads a conversation along: what it has seen, what it may have to forget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.base import DraftModel
from quickdraft.drafters.conversation import common_prefix
from quickdraft.drafters.tree import Tree

CHUNK = 256
"""Most tokens read in one step."""

Logits = NDArray[np.float32]


class Reader:
    """A draft model and its keys and values of one conversation.

    tokens: the conversation. The cache also holds what was only guessed; whatever turns out to be
    right stays, so that every step of a draft is one of the model's steps and no more.
    """

    def __init__(self, model: DraftModel) -> None:
        self.tokens: list[int] = []
        self.cache: Any = model.new_cache()
        self._model = model
        self._read: list[int] = []  # what the cache holds
        self._known = 0  # how many of these are known to be the conversation's
        self._staged: Tree | None = None
        self._strange = 0  # tokens of the conversation beyond the vocabulary of the model

    def begin(self, tokens: Sequence[int]) -> None:
        """Read this conversation instead; what both begin with is not read again."""
        self._known = common_prefix(self._read, tokens)
        self.tokens = []
        self._strange = 0
        self.hear(tokens)

    def adopt(self, tokens: Sequence[int], cache: Any) -> None:
        """Go on from a cache of the model that holds these tokens of the conversation, unless it is
        of another kind or no more than what is read already."""
        kinds = [(type(each), getattr(each, "kv_type", None)) for each in (cache, self.cache)]
        if kinds[0] != kinds[1] or self._known >= len(tokens):
            return
        self.cache, self._staged = cache, None
        self._read = list(tokens)
        self._known = common_prefix(self._read, self.tokens)

    def hear(self, tokens: Sequence[int]) -> None:
        """The conversation goes on."""
        self.tokens += tokens
        self._strange += sum(token >= self._model.vocab_size for token in tokens)

    @property
    def room(self) -> int:
        """Guessed tokens that can be read after the conversation; negative where that alone is
        too much for the model."""
        if self._strange:
            return -1
        return self._model.context_length - len(self.tokens)

    def catch_up(self) -> Logits:
        """float32 [vocabulary], after the last token: one step for all that is new."""
        self._keep_guesses()
        tokens, read = self.tokens, self._read
        self._known += common_prefix(read[self._known :], tokens[self._known :])
        self._forget(min(self._known, len(tokens) - 1))
        while True:
            chunk = tokens[len(read) : len(read) + CHUNK]
            logits = self._step(Tree.chain(chunk), [len(chunk) - 1])
            self.cache.commit(range(len(chunk)))
            read += chunk
            self._known = len(read)
            if len(read) == len(tokens):
                last: Logits = logits[0]
                return last

    def guess(self, token: int) -> Logits:
        """float32 [vocabulary], after one more guessed token."""
        logits = self._step(Tree.chain([token]), [0])
        self.cache.commit([0])
        self._read.append(token)
        last: Logits = logits[0]
        return last

    def branch(self, tokens: Sequence[int], parent: Sequence[int], nodes: Sequence[int]) -> Logits:
        """float32 [len(nodes), vocabulary], after these nodes of a guessed tree, whose root is the
        last token of the conversation. Only the paths that lead to them are run."""
        needed = set(nodes)
        for node in range(len(tokens) - 1, 0, -1):
            if node in needed:
                needed.add(parent[node])
        kept = sorted(needed - {0})
        new = {node: i for i, node in enumerate(kept)}
        staged = Tree(
            np.array([tokens[node] for node in kept], np.int64),
            np.array([new.get(parent[node], -1) for node in kept], np.int64),
        )
        logits = self._step(staged, [new[node] for node in nodes])
        self._staged = staged
        return logits

    def _step(self, tree: Tree, rows: Sequence[int]) -> Logits:
        self._staged = None
        return self._model.logits(tree, self.cache, rows)

    def _forget(self, length: int) -> None:
        if length < len(self._read):
            self.cache.truncate(length)
            del self._read[length:]
            self._known = min(self._known, length)

    def _keep_guesses(self) -> None:
        """Commit the path of the tree that the conversation took, if it is still staged; less its
        last token, whose logits are needed."""
        staged, self._staged = self._staged, None
        if staged is None or self._known < len(self._read):
            return
        path: list[int] = []
        node = -1
        for token in self.tokens[len(self._read) : -1]:
            children = np.flatnonzero((staged.parent == node) & (staged.tokens == token))
            if not len(children):
                break
            node = int(children[0])
            path.append(node)
            self._read.append(token)
        self.cache.commit(path)
        self._known = len(self._read)
