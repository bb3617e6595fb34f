"""Which tokens may come next: constraints of a search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from quickdraft.errors import OptionError

AllowedTokens = Callable[[Sequence[int]], Sequence[int] | None]
"""allowed(tokens): ids that may follow these tokens of an answer; None allows all, an empty list
ends this way without an answer. Asked once per beam and step; pure."""


class TokenTrie:
    """Answers that may be given, as token ids: an AllowedTokens.

    Where one of them is complete, only end-of-text may follow, or what makes it a longer one. With
    several end-of-text tokens an answer may be found once with each.
    """

    def __init__(self, answers: Iterable[Sequence[int]], eos_ids: Sequence[int]) -> None:
        """Raises:
        OptionError: there is no answer, one is empty, or the model has no end-of-text token.
        """
        if not eos_ids:
            raise OptionError("allowed answers need a token that ends them, and there is none")
        self._eos_ids = tuple(eos_ids)
        self._root: _Node = _Node()
        count = 0
        for answer in answers:
            if not len(answer):
                raise OptionError("one of the allowed answers is empty; leave it out")
            node = self._root
            for token in answer:
                node = node.children.setdefault(int(token), _Node())
            node.ends = True
            count += 1
        if not count:
            raise OptionError("there is no allowed answer; give at least one")

    def __call__(self, tokens: Sequence[int]) -> Sequence[int]:
        """Ids that may follow; none where no allowed answer begins so."""
        node: _Node | None = self._root
        for token in tokens:
            node = None if node is None else node.children.get(int(token))
        if node is None:
            return ()
        return [*node.children, *(self._eos_ids if node.ends else ())]

    def __iter__(self) -> Iterator[int]:
        """Every token that occurs, for checks; some more than once."""
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            yield from node.children
            nodes += node.children.values()


class _Node:
    """Answers that begin in one way. ends: whether one ends here."""

    __slots__ = ("children", "ends")

    def __init__(self) -> None:
        self.children: dict[int, _Node] = {}
        self.ends = False


def beginning_with(prefix: Sequence[int], rest: AllowedTokens | None = None) -> AllowedTokens:
    """Answers that begin with `prefix`; after it `rest` is asked, with all tokens of the answer."""
    forced = tuple(int(token) for token in prefix)

    def allowed(tokens: Sequence[int]) -> Sequence[int] | None:
        if len(tokens) < len(forced):
            return (forced[len(tokens)],)
        return None if rest is None else rest(tokens)

    return allowed
