"""A random SentencePiece vocabulary against transformers' converter for GGUF files."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from tiny.gguf_file import F32, I32, STRING, GgufFile, pair
from tiny.gguf_models import BYTE, CONTROL, NORMAL, UNKNOWN, sentencepiece
from tiny.lines import tricky_lines
from tokenizers import Tokenizer

from quickdraft.export.checkpoints.gguf_header import parse_header
from quickdraft.export.checkpoints.gguf_tokenizer import read_tokenizer

pytestmark = pytest.mark.torch


def _vocabulary(seed: int, ties: bool) -> dict[str, Any]:
    """Bytes, letters, and words cut out of the lines; ties: scores repeat."""
    rng = random.Random(seed)
    text = "▁".join(tricky_lines()[:28]).replace(" ", "▁")
    letters = sorted(set(text))
    words: set[str] = set()
    while len(words) < 1_500:
        start = rng.randrange(len(text) - 6)
        words.add(text[start : start + rng.randint(2, 6)])
    pieces = [*sorted(words), *letters]
    rng.shuffle(pieces)
    head = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens = list(dict.fromkeys([*head, *pieces]))
    ranks = [rng.randint(1, 400) if ties else rank for rank in range(len(tokens) - len(head))]
    scores = [0.0] * len(head) + [-1.0 - rank for rank in ranks]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(tokens) - len(head))]
    return {"tokens": tokens, "scores": scores, "token_type": types}


def _ours(values: dict[str, Any]) -> Tokenizer:
    kinds = {"tokens": STRING, "scores": F32, "token_type": I32}
    changes = {name: (kinds[name], value) for name, value in values.items()}
    head = pair("general.architecture", STRING, "llama")
    data = GgufFile([head, *sentencepiece(**changes)]).to_bytes()
    files = read_tokenizer(parse_header(data, "t").metadata, "t", len(values["tokens"]))
    return Tokenizer.from_buffer(files.tokenizer_json)


@pytest.mark.parametrize("seed", range(3))
def test_merges_equal_those_of_published_tokenizers(seed: int) -> None:
    from transformers.convert_slow_tokenizer import generate_merges

    values = _vocabulary(seed, ties=True)
    ids = {token: index for index, token in enumerate(values["tokens"])}
    want = generate_merges(ids, dict(zip(values["tokens"], values["scores"], strict=True)))
    merges = json.loads(_ours(values).to_str())["model"]["merges"]
    assert [tuple(merge) for merge in merges] == want


@pytest.mark.parametrize("seed", range(3))
def test_ids_equal_the_converter_for_gguf(seed: int) -> None:
    from transformers.integrations.ggml import GGUFLlamaConverter

    values = _vocabulary(seed, ties=False)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 0}
    theirs = GGUFLlamaConverter({**values, **ids, "tokenizer_type": "llama"}).converted()
    ours = _ours(values)
    for line in tricky_lines():
        expected = theirs.encode(line, add_special_tokens=False).ids
        assert ours.encode(line, add_special_tokens=False).ids == expected, line
        if not {1, 2} & set(expected):  # the decoder takes one space away after special tokens
            assert ours.decode(expected, skip_special_tokens=False) == line
