"""A SentencePiece vocabulary as the content of a tokenizer.json."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quickdraft.export.checkpoints.gguf_pretokenizers import sentencepiece_decoder
from quickdraft.export.checkpoints.sentencepiece_file import (
    BPE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Piece,
    SentencePiece,
)

ADDED = 7
"""One more kind of piece: a token that is looked for before a text is cut."""
_SPACE = "▁"
_UNKNOWN_COSTS = 10.0
"""How much less likely SentencePiece holds what it does not know than any ordinary piece."""


def tokenizer_json(
    model: SentencePiece,
    vocabulary: Sequence[Piece],
    *,
    before: Sequence[int] = (),
    after: Sequence[int] = (),
) -> bytes:
    """A tokenizer that cuts text as `model` does.

    vocabulary: the pieces by id: those of the model, in any order, and what stands beside them.
    before, after: ids that an encoder's text stands between.
    """
    unknown = next(i for i, piece in enumerate(vocabulary) if piece.kind == UNKNOWN)
    vocabulary = _settled(vocabulary, model.model)
    core = _bpe if model.model == BPE else _unigram
    rules = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, piece) for i, piece in enumerate(vocabulary) if _special(piece)],
        "normalizer": _normaliser(model),
        "pre_tokenizer": _pre_tokenizer(model, vocabulary),
        "post_processor": _post_processor(vocabulary, before, after),
        "decoder": sentencepiece_decoder(model.dummy_prefix),
        "model": core(vocabulary, unknown, model.byte_fallback),
    }
    return json.dumps(rules, ensure_ascii=False).encode()


def _settled(vocabulary: Sequence[Piece], model: int) -> list[Piece]:
    """User-defined pieces as ordinary ones that win over others, which is what they are in unigram
    models, or as added tokens where that cannot be said."""
    scores = [piece.score for piece in vocabulary if piece.kind == NORMAL]
    found = []
    for piece in vocabulary:
        if piece.kind == USER_DEFINED:
            score = len(piece.text) * max(scores) - 0.1
            ordinary = model != BPE and score >= min(scores)
            piece = Piece(piece.text, score, NORMAL if ordinary else ADDED)
        found.append(piece)
    return found


def _special(piece: Piece) -> bool:
    return piece.kind in (CONTROL, UNKNOWN, ADDED)


def _added(number: int, piece: Piece) -> dict[str, Any]:
    return {
        "id": number,
        "content": piece.text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": piece.kind != ADDED,
    }


def _unigram(vocabulary: Sequence[Piece], unknown: int, byte_fallback: bool) -> dict[str, Any]:
    # What is unknown is measured against the least likely piece, so those that SentencePiece does
    # not look for must not be less likely still.
    least = min(piece.score for piece in vocabulary if piece.kind == NORMAL)
    return {
        "type": "Unigram",
        "unk_id": unknown,
        "vocab": [(p.text, p.score if p.kind == NORMAL else least) for p in vocabulary],
        "byte_fallback": byte_fallback,
    }


def _bpe(vocabulary: Sequence[Piece], unknown: int, byte_fallback: bool) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": vocabulary[unknown].text,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": byte_fallback,
        "ignore_merges": False,
        "vocab": {piece.text: i for i, piece in enumerate(vocabulary)},
        "merges": [[left, right] for _, left, right in sorted(_merges(vocabulary))],
    }


def _merges(vocabulary: Sequence[Piece]) -> Iterator[tuple[tuple[float, int, int], str, str]]:
    """Every way to join two ordinary pieces to a third, with its rank."""
    ordinary = {piece.text: i for i, piece in enumerate(vocabulary) if piece.kind == NORMAL}
    for text, number in ordinary.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ordinary and right in ordinary:
                yield (-vocabulary[number].score, number, -cut), left, right


def _normaliser(model: SentencePiece) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        rules = base64.b64encode(model.charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": rules})
    if model.collapse:
        steps += [_replace(r" +\z", ""), _replace(" {2,}", " ")]
        if not model.dummy_prefix:
            steps.append(_replace(r"\A +", ""))
    elif model.dummy_prefix:  # before spaces that are there already
        steps.append({"type": "Prepend", "prepend": _SPACE})
    return {"type": "Sequence", "normalizers": steps}


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _pre_tokenizer(model: SentencePiece, vocabulary: Sequence[Piece]) -> dict[str, Any]:
    """Spaces become visible marks, which begin words unless a piece holds one further on."""
    ordinary = (piece.text for piece in vocabulary if piece.kind == NORMAL)
    words = not any(_SPACE in text[1:] for text in ordinary)
    prefix = "first" if model.dummy_prefix and model.collapse else "never"
    marks = {
        "type": "Metaspace",
        "replacement": _SPACE,
        "prepend_scheme": prefix,
        "split": words,
    }
    guard = _guard(vocabulary) if model.model != BPE else None
    if guard is None:
        return marks
    split = {"type": "Split", "pattern": {"Regex": guard}, "invert": False}
    behaviour = {"behavior": "MergedWithPrevious"}
    return {"type": "Sequence", "pretokenizers": [marks, {**split, **behaviour}]}


def _guard(vocabulary: Sequence[Piece]) -> str | None:
    """Where to cut a text that spells a piece which SentencePiece never finds in texts, and the
    library would: between two of the ordinary pieces that it is spelt with."""
    ordinary = {piece.text: piece.score for piece in vocabulary if piece.kind == NORMAL}
    rests: dict[str, list[str]] = {}
    for piece in vocabulary:
        if piece.kind not in (NORMAL, ADDED) and len(piece.text) > 1:
            cut = _first_cut(piece.text, ordinary)
            rests.setdefault(piece.text[:cut], []).append(re.escape(piece.text[cut:]))
    found = [f"{re.escape(first)}(?={'|'.join(each)})" for first, each in rests.items()]
    return "|".join(found) or None


def _first_cut(text: str, scores: Mapping[str, float]) -> int:
    """Where the first of the likeliest pieces of a text ends; characters in a row that are unknown
    are one piece. Before the end, whatever comes out."""
    unknown = min(scores.values()) - _UNKNOWN_COSTS
    best: list[tuple[float, int]] = [(0.0, 0)]  # by end: the score, and where its last piece begins
    for end in range(1, len(text) + 1):
        ways = [
            (best[start][0] + scores.get(text[start:end], unknown), start)
            for start in range(end)
            if text[start:end] in scores or end == start + 1
        ]
        best.append(max(ways))
    cuts = [len(text)]
    while cuts[-1]:
        cuts.append(best[cuts[-1]][1])
    cuts.reverse()
    for start, cut, end in zip(cuts, cuts[1:], cuts[2:], strict=False):
        if text[start:cut] in scores or text[cut:end] in scores:
            return cut
    return len(text) - 1


def _post_processor(
    vocabulary: Sequence[Piece], before: Sequence[int], after: Sequence[int]
) -> dict[str, Any] | None:
    if not before and not after:
        return None

    def named(ids: Sequence[int]) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": vocabulary[i].text, "type_id": 0}} for i in ids]

    a, b = ({"Sequence": {"id": part, "type_id": 0}} for part in "AB")
    known = {
        vocabulary[i].text: {"id": vocabulary[i].text, "ids": [i], "tokens": [vocabulary[i].text]}
        for i in (*before, *after)
    }
    return {
        "type": "TemplateProcessing",
        "single": [*named(before), a, *named(after)],
        "pair": [*named(before), a, b, *named(after)],
        "special_tokens": known,
    }
