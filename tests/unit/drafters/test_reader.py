"""A draft model that reads along knows exactly the conversation, in as few steps as can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.toy_backend import ToyBackend, hashed, toy_spec

from quickdraft.drafters import reader as module
from quickdraft.drafters.reader import Reader
from quickdraft.errors import BackendError
from quickdraft.runtime.draft_model import BackendDraftModel

VOCAB = 8
LOGITS = hashed(VOCAB)

words = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6)


def opened(context: int = 128) -> tuple[Reader, ToyBackend]:
    backend = ToyBackend(LOGITS, toy_spec(VOCAB, context))
    return Reader(BackendDraftModel(backend, VOCAB)), backend


@settings(max_examples=80, deadline=None)
@given(
    turns=st.lists(
        st.tuples(st.sampled_from(["say", "again", "guess", "branch"]), words),
        min_size=1,
        max_size=8,
    )
)
def test_whatever_happened_the_model_sees_the_conversation(
    turns: list[tuple[str, list[int]]],
) -> None:
    """The toy backend reads its logits from the cache, so that a stale row would show."""
    reader, _ = opened()
    reader.begin([1, 2, 3])
    said = [1, 2, 3]
    for kind, tokens in turns:
        assert np.array_equal(reader.catch_up(), LOGITS(tuple(said)))
        if kind == "guess":
            for i, token in enumerate(tokens):
                found = reader.guess(token)
                assert np.array_equal(found, LOGITS((*said, *tokens[: i + 1])))
            # Some of it was right.
            tokens = [*tokens[: len(tokens) // 2], 0]
        elif kind == "branch":
            parent = [-1, *[i // 2 for i in range(len(tokens))]]
            tree = [said[-1], *tokens]
            nodes = [len(tree) - 1, 1]
            found = reader.branch(tree, parent, nodes)
            paths = []
            for node in nodes:
                path = []
                while node:
                    path.insert(0, tree[node])
                    node = parent[node]
                paths.append(path)
            for row, path in zip(found, paths, strict=True):
                assert np.array_equal(row, LOGITS((*said, *path)))
            tokens = [*paths[0], 0]
        if kind == "again":
            said = [*said[: len(said) // 2], *tokens]
            reader.begin(said)
        else:
            said += tokens
            reader.hear(tokens)
    assert np.array_equal(reader.catch_up(), LOGITS(tuple(said)))


def test_right_guesses_are_not_read_again() -> None:
    reader, backend = opened()
    reader.begin([1, 2, 3])
    reader.catch_up()
    for token in (4, 5, 6):
        reader.guess(token)
    reader.hear([4, 5, 7])
    backend.rows.clear()
    reader.catch_up()
    assert backend.rows == [1]  # the 7 alone


def test_a_right_path_of_a_tree_is_not_read_again() -> None:
    reader, backend = opened()
    reader.begin([1, 2, 3])
    reader.catch_up()
    reader.branch([3, 4, 5, 6, 7], [-1, 0, 0, 2, 3], [1, 4])
    reader.hear([5, 6, 7, 0])
    backend.rows.clear()
    reader.catch_up()
    assert backend.rows == [1]


def test_only_paths_that_are_asked_for_are_run() -> None:
    reader, backend = opened()
    reader.begin([1, 2, 3])
    reader.catch_up()
    reader.branch([3, 4, 5, 6, 7], [-1, 0, 0, 2, 2], [4])
    assert backend.rows == [3, 2]


def test_what_two_conversations_begin_with_is_read_once() -> None:
    reader, backend = opened()
    reader.begin([1, 2, 3, 4, 5, 6])
    reader.catch_up()
    reader.begin([1, 2, 3, 4, 0])
    reader.catch_up()
    reader.begin([1, 2, 3, 4, 0])
    reader.catch_up()
    assert backend.rows == [6, 1, 1]


def test_a_long_prompt_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    reader, backend = opened()
    reader.begin([1, 2, 3, 4, 5, 6, 7, 1, 2, 3])
    assert np.array_equal(reader.catch_up(), LOGITS((1, 2, 3, 4, 5, 6, 7, 1, 2, 3)))
    assert backend.rows == [4, 4, 2]


def test_a_failed_step_changes_nothing() -> None:
    reader, backend = opened()
    reader.begin([1, 2, 3])

    def fail(step: int, cancel: object) -> None:
        raise BackendError("the device is gone")

    works, backend.before_step = backend.before_step, fail
    for attempt in (reader.catch_up, lambda: reader.guess(4)):
        with pytest.raises(BackendError):
            attempt()
    backend.before_step = works
    assert np.array_equal(reader.catch_up(), LOGITS((1, 2, 3)))


@pytest.mark.parametrize(("length", "room"), [(6, 2), (8, 0), (9, -1)])
def test_the_context_of_the_model_is_what_it_has_room_for(length: int, room: int) -> None:
    reader, _ = opened(context=8)
    reader.begin([1] * length)
    assert reader.room == room


def test_tokens_beyond_the_vocabulary_leave_no_room() -> None:
    reader, _ = opened()
    reader.begin([1, VOCAB, 2])
    assert reader.room < 0
    reader.begin([1, 2])
    assert reader.room > 0
    reader.hear([VOCAB])
    assert reader.room < 0
