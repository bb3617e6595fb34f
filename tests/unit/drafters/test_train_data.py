"""Batches of answers, and what drafts bring on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from quickdraft.answers import Answer, AnswersHeader, AnswersWriter  # noqa: E402
from quickdraft.drafters.train.acceptance import chain_tokens_per_step  # noqa: E402
from quickdraft.drafters.train.data import (  # noqa: E402
    Corpus,
    Document,
    Packed,
    cut,
    document_mask,
    read_corpus,
)
from quickdraft.errors import InputError, OptionError  # noqa: E402

pytestmark = pytest.mark.torch
VOCAB = 50


def corpus(count: int = 40, seed: int = 0) -> Corpus:
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        prompt, answer = rng.integers(1, 12), rng.integers(1, 30)
        tokens = rng.integers(1, VOCAB, prompt + answer).astype(np.int32)
        key = int(rng.integers(0, 2**64, dtype=np.uint64))
        documents.append(Document(tokens, int(prompt), key))
    return Corpus(tuple(documents), VOCAB, "0")


def texts(batch: dict[str, torch.Tensor]) -> list[tuple[int, ...]]:
    """The documents of a batch."""
    found = []
    for row in range(len(batch["tokens"])):
        numbers = batch["documents"][row]
        for number in range(1, int(numbers.max()) + 1):
            here = numbers == number
            found.append(tuple(batch["tokens"][row][here].tolist()))
            assert batch["positions"][row][here].tolist() == list(range(int(here.sum())))
    return found


def test_every_document_comes_once_an_epoch() -> None:
    data = corpus()
    packed = Packed(data, rows=3, length=48, seed=1)
    whole = sorted(tuple(document.tokens.tolist()) for document in data.documents)
    assert sorted(text for batch in packed.all_batches() for text in texts(batch)) == whole
    rows = sum(len(batch["tokens"]) for batch in packed.all_batches())
    streamed = [packed.batch(number) for number in range(2 * rows)]  # three epochs of rows twice
    assert sorted(text for batch in streamed for text in texts(batch)) == sorted(whole * 6)
    filled = sum(int((batch["documents"] > 0).sum()) for batch in packed.all_batches())
    assert filled / (rows * 48) > 0.85


def test_a_batch_is_its_number_and_its_seed() -> None:
    first, second = Packed(corpus(), 2, 48, seed=1), Packed(corpus(), 2, 48, seed=1)
    for number in (7, 0, 3):
        assert all(first.batch(number)[k].equal(v) for k, v in second.batch(number).items())
    other = Packed(corpus(), 2, 48, seed=2)
    assert not first.batch(0)["tokens"].equal(other.batch(0)["tokens"])
    assert not first.batch(0)["tokens"].equal(first.batch(40)["tokens"])


def test_answers_are_marked() -> None:
    data = corpus(5)
    batch = next(Packed(data, rows=1, length=256).all_batches())
    for document in data.documents:
        at = next(
            n
            for n in range(1, 6)
            if batch["tokens"][0][batch["documents"][0] == n].tolist() == document.tokens.tolist()
        )
        marked = batch["answer"][0][batch["documents"][0] == at]
        assert int((~marked).sum()) == document.answer
        assert bool(marked[document.answer :].all())
    assert not bool(batch["answer"][batch["documents"] == 0].any())


def test_nothing_is_seen_across_documents() -> None:
    mask = document_mask(torch.tensor([[1, 1, 2, 2, 2, 0]]))[0]
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


@given(st.integers(1, 100), st.integers(1, 100), st.integers(8, 64))
def test_a_long_document_is_cut(prompt: int, answer: int, length: int) -> None:
    tokens = np.arange(prompt + answer, dtype=np.int32)
    found = cut(Document(tokens, prompt, 0), length)
    assert len(found.tokens) == min(length, prompt + answer)
    assert 1 <= found.answer < len(found.tokens)
    assert (np.diff(found.tokens) == 1).all()
    assert found.tokens[found.answer] == prompt


def test_held_out_answers_stay_held_out() -> None:
    large = corpus(200)
    small = Corpus(large.documents[:80], VOCAB, "1")
    held = {document.key for document in large.split(0.1)[1].documents}
    assert 5 < len(held) < 40
    training, held_out = small.split(0.1)
    assert {document.key for document in held_out.documents} <= held
    assert not {document.key for document in training.documents} & held
    assert len(training) + len(held_out) == 80
    with pytest.raises(InputError, match="too few"):
        Corpus(large.documents[:1], VOCAB, "2").split()


def test_the_commonest_tokens() -> None:
    document = Document(np.array([1, 1, 1, 5, 5, 7, 9, 9, 9], np.int32), 3, 0)
    data = Corpus((document,), 12, "0")
    assert data.commonest(2).tolist() == [5, 9]
    assert data.commonest(2, always=[3]).tolist() == [3, 9]
    assert data.commonest(99).tolist() == list(range(12))
    assert data.commonest(5, rather=[8, 11, 5]).tolist() == [5, 7, 8, 9, 11]
    assert data.commonest(4).dtype == np.int32


def write(file: Path, fingerprint: str = "f", **changes: object) -> None:
    header = AnswersHeader("m", fingerprint, "fp32", "t", VOCAB, 0, {})
    with AnswersWriter(file, header) as writer:
        for number in range(4):
            answer = Answer(f"{file.stem}{number}", [1, 2], [3, 4, number], 0.0, 1, "stop")
            writer.add(Answer(**{**vars(answer), **changes}))  # type: ignore[arg-type]


def test_files_of_answers_are_joined(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl")
    write(tmp_path / "b.jsonl")
    data = read_corpus([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], "f", VOCAB)
    assert len(data) == 8
    assert data.documents[5].tokens.tolist() == [1, 2, 3, 4, 1]
    assert data.sha256 != read_corpus([tmp_path / "a.jsonl"], "f", VOCAB).sha256


def letters(text: str) -> list[int]:
    return [1 + ord(letter) % 40 for letter in text]


def test_text_is_divided_and_all_of_it_is_learnt(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog")  # 43 letters
    data = read_corpus([], "f", VOCAB, [tmp_path / "a.txt"], letters)
    assert len(data) == data.texts == 1
    packed = Packed(data, rows=1, length=16)
    found = texts(next(iter(Packed(data, rows=4, length=16).all_batches())))
    assert sorted(map(len, found)) == [11, 16, 16]
    whole = letters("the quick brown fox jumps over the lazy dog")
    assert sorted(found) == sorted(tuple(whole[at : at + 16]) for at in (0, 16, 32))
    batch = packed.batch(0)
    assert not batch["answer"][0, 0]
    assert batch["answer"][0, 1:].sum() == (batch["documents"] > 0).sum() - 1


def test_answers_are_what_is_tested_where_there_are_any(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text number {n}"}) for n in range(60)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    write(tmp_path / "a.jsonl")
    only = read_corpus([], "f", VOCAB, [tmp_path / "t.jsonl"], letters)
    both = read_corpus([tmp_path / "a.jsonl"], "f", VOCAB, [tmp_path / "t.jsonl"], letters)
    assert (len(both), both.texts) == (64, 60)
    training, held_out = both.split(0.3)
    assert not held_out.texts
    assert len(held_out) >= 1
    assert training.texts < 60  # what would be held out alone is not learnt with answers
    held = {document.key for document in only.split(0.3)[1].documents}
    assert held
    assert not held & {document.key for document in training.documents}
    with pytest.raises(InputError, match="give it as --data"):
        read_corpus([], "f", VOCAB, [tmp_path / "a.jsonl"], letters)
    with pytest.raises(InputError, match="above 9"):
        read_corpus([], "f", 10, [tmp_path / "t.jsonl"], letters)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "other")
    with pytest.raises(InputError, match="holds answers of m"):
        read_corpus([tmp_path / "a.jsonl"], "f", VOCAB)
    write(tmp_path / "b.jsonl", answer=[VOCAB])
    with pytest.raises(InputError, match="has a token above 49"):
        read_corpus([tmp_path / "b.jsonl"], "f", VOCAB)
    write(tmp_path / "c.jsonl", answer=[])
    with pytest.raises(InputError, match="no answer or text to train on"):
        read_corpus([tmp_path / "c.jsonl"], "f", VOCAB)
    with pytest.raises(InputError, match="cannot be read"):
        read_corpus([tmp_path / "d.jsonl"], "f", VOCAB)
    (tmp_path / "e.jsonl").write_text(json.dumps({"a": 1}) + "\n")
    with pytest.raises(InputError, match="line 1"):
        read_corpus([tmp_path / "e.jsonl"], "f", VOCAB)
    with pytest.raises(OptionError, match="too small"):
        Packed(corpus(), rows=0)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=20), min_size=1), st.integers(0, 5))
def test_tokens_per_step_are_those_of_decoding(answers: list[list[bool]], length: int) -> None:
    hits = np.array([hit for answer in answers for hit in answer])
    documents = np.concatenate([[n] * len(answer) for n, answer in enumerate(answers)])
    steps = tokens = 0
    for answer in answers:  # the first token comes with the prefill
        left = answer[1:]
        while left:
            drafted = left[:length]
            right = next((n for n, hit in enumerate(drafted) if not hit), len(drafted))
            said = min(right + 1, len(left))
            steps, tokens, left = steps + 1, tokens + said, left[said:]
    expected = tokens / steps if steps else 1.0
    assert chain_tokens_per_step(hits, documents, length) == pytest.approx(expected)
