"""SentencePiece models as tokenizers: how text is cut, how pieces are numbered, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny.bundles import tiny_manifest
from tiny.sentencepiece_files import (
    BEGINS,
    ENGLISH,
    charsmap,
    data,
    number,
    ordinary,
    piece_bytes,
    real,
    spm_bytes,
    varint,
    write_marian,
    write_marian_tokenizer,
)
from tokenizers import Tokenizer

import quickdraft
from quickdraft.bundle import open_bundle
from quickdraft.errors import BundleError, CheckpointError, TokenizerError, UnsupportedModel
from quickdraft.export.checkpoints import sentencepiece_file
from quickdraft.export.checkpoints.hf import read_json_file
from quickdraft.export.checkpoints.hf_tokenizer import read_tokenizer_files
from quickdraft.export.checkpoints.sentencepiece_file import (
    BYTE,
    USER_DEFINED,
    Piece,
    read_sentencepiece,
)
from quickdraft.export.checkpoints.sentencepiece_tokenizer import tokenizer_json
from quickdraft.export.pipeline import export_model
from quickdraft.manifest import SourceTokenizerEntry, parse_manifest
from quickdraft.runtime.text import SourceReader

WORDS = [*BEGINS, *ordinary(ENGLISH)]
BPE = number(3, 2)
BYTES = [Piece(f"<0x{byte:02X}>", 0, BYTE) for byte in range(256)]


def cut(content: bytes, text: str, folder: Path) -> list[str]:
    """The pieces of a text that spells nothing special."""
    path = folder / "x.spm"
    path.write_bytes(content)
    model = read_sentencepiece(path)
    tokenizer = Tokenizer.from_buffer(tokenizer_json(model, model.pieces))
    tokenizer.encode_special_tokens = True
    return list(tokenizer.encode(text, add_special_tokens=False).tokens)


RULES = charsmap({"\t": " ", "Ⅷ": "in", "ﬅ": "th", "é": "e", "█": ""})
CUTS: dict[str, tuple[bytes, str, list[str]]] = {
    "likeliest": (spm_bytes(WORDS), "the rain", ["▁the", "▁rain"]),
    "spaces": (spm_bytes(WORDS), "  the   rain ", ["▁the", "▁rain"]),
    "nothing": (spm_bytes(WORDS), "   ", []),
    "unknown is one": (spm_bytes(WORDS), "in 中文e", ["▁in", "▁", "中文", "e"]),
    "control pieces are text": (spm_bytes(WORDS), "h</s>", ["▁", "h", "</", "s", ">"]),
    "byte pieces are text": (
        spm_bytes([*WORDS, *BYTES], number(35, 1)),
        "<0x41>",
        ["▁", *(f"<0x{byte:02X}>" for byte in b"<0x41"), ">"],
    ),
    "bytes": (spm_bytes([*WORDS, *BYTES], number(35, 1)), "é", ["▁", "<0xC3>", "<0xA9>"]),
    "merges": (spm_bytes([*WORDS, *ordinary(["▁r", "▁ra", "ai"])], BPE), "rain",
               ["▁ra", "i", "n"]),
    "rules": (spm_bytes(WORDS, normaliser=data(2, RULES)), "ﬅé\tⅧ█n", ["▁the", "▁in", "n"]),
    "no prefix": (spm_bytes(WORDS, normaliser=number(3, 0)), " the rain", ["t", "h", "e", "▁rain"]),
    "spaces are kept": (spm_bytes(WORDS, normaliser=number(4, 0)), " the  rain",
                        ["▁", "▁the", "▁", "▁rain"]),
    "pieces over words": (spm_bytes([*WORDS, *ordinary(["▁the▁rain"])]), "the rain",
                          ["▁the▁rain"]),
    "user-defined": (
        spm_bytes([*WORDS, Piece("ai", 0, USER_DEFINED)]), "in ai", ["▁in", "▁", "ai"],
    ),
    "unlikely user-defined": (
        spm_bytes([*WORDS, Piece("<" + "-" * 99, 0, USER_DEFINED), Piece("x", -0.2, 1)]),
        "in<" + "-" * 99, ["▁in", "<" + "-" * 99],
    ),
    "user-defined of merges": (
        spm_bytes([*WORDS, Piece("rai", 0, USER_DEFINED)], BPE), "rain", ["rai", "n"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CUTS)
def test_text_is_cut_as_the_model_says(name: str, tmp_path: Path) -> None:
    content, text, wanted = CUTS[name]
    assert cut(content, text, tmp_path) == wanted


def test_rules_of_no_model_are_followed(tmp_path: Path) -> None:
    """The test above would pass without any rules if the pieces of its text were the same."""
    assert cut(spm_bytes(WORDS), "ﬅé\tⅧ█n", tmp_path) != CUTS["rules"][2]


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "has no pieces"),
    "text": (b"<html>not found</html>", "cut off or damaged"),
    "cut off": (spm_bytes(WORDS)[:-3], "cut off or damaged"),
    "length beyond the end": (varint(1 << 3 | 2) + varint(1 << 60), "cut off or damaged"),
    "endless number": (b"\x80" * 40, "cut off or damaged"),
    "field 0": (data(0, b"x"), "cut off or damaged"),
    "group": (varint(1 << 3 | 3), "a field of type 3"),
    "piece is a number": (number(1, 5), "cut off or damaged"),
    "piece without text": (data(1, real(2, 1.0)), "piece 0 has no text of 1 to 512 bytes"),
    "long piece": (data(1, data(1, b"x" * 513)), "piece 0 has no text of 1 to 512 bytes"),
    "not UTF-8": (data(1, data(1, b"\xff")), "piece 0 is not UTF-8"),
    "NaN": (data(1, data(1, b"x") + real(2, float("nan"))), "the score of piece 0"),
    "score is bytes": (data(1, data(1, b"x") + data(2, b"1")), "the score of piece 0"),
    "kind 9": (data(1, data(1, b"x") + number(3, 9)), "piece 0 is of kind 9"),
    "twice": (spm_bytes([*WORDS, WORDS[4]]), "'▁' is there twice, as 4 and 17"),
    "nothing is unknown": (spm_bytes(WORDS[1:]), "0 pieces stand for what is unknown"),
    "only control": (spm_bytes(BEGINS), "has no ordinary piece"),
    "some bytes": (spm_bytes([*WORDS, *BYTES[:9]], number(35, 1)), "9 pieces are bytes; 256 must"),
    "bytes for nothing": (spm_bytes([*WORDS, *BYTES]), "256 pieces are bytes; 0 must"),
    "rules cut off": (spm_bytes(WORDS, normaliser=data(2, RULES[:900])), "the length they state"),
    "rules of 3 bytes": (spm_bytes(WORDS, normaliser=data(2, b"abc")), "the length they state"),
    "rules are a number": (spm_bytes(WORDS, normaliser=number(2, 3)), "are no bytes"),
    "model is bytes": (spm_bytes(WORDS, data(3, b"2")), "model_type is no integer"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_models_are_refused(name: str, tmp_path: Path) -> None:
    content, problem = BAD[name]
    path = tmp_path / "bad.spm"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=problem) as caught:
        read_sentencepiece(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("trainer", "normaliser", "what"),
    [
        (number(3, 3), b"", "of words"),
        (number(3, 4), b"", "of characters"),
        (number(3, 7), b"", "of kind 7"),
        (number(24, 1), b"", "spaces at the ends of words"),
        (b"", number(5, 0), "keep spaces as they are"),
    ],
)
def test_other_models_are_refused(
    trainer: bytes, normaliser: bytes, what: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.spm"
    path.write_bytes(spm_bytes(WORDS, trainer, normaliser))
    with pytest.raises(UnsupportedModel, match=what):
        read_sentencepiece(path)


@pytest.mark.parametrize("limit", ["MAX_BYTES", "MAX_PIECES", "MAX_FIELDS", "MAX_CHARSMAP"])
def test_limits(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.spm"
    path.write_bytes(spm_bytes(WORDS, normaliser=data(2, RULES)))
    read_sentencepiece(path)
    monkeypatch.setattr(sentencepiece_file, limit, 16)
    with pytest.raises(CheckpointError, match=r"16"):
        read_sentencepiece(path)


def test_every_cut_and_flipped_byte_is_read_or_refused(tmp_path: Path) -> None:
    whole = spm_bytes(WORDS[:6], BPE, data(2, charsmap({"a": "b"})))[:700]
    path = tmp_path / "x.spm"
    for at in range(len(whole)):
        for bad in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xA5]) + whole[at + 1 :]):
            path.write_bytes(bad)
            try:
                read_sentencepiece(path)
            except CheckpointError:
                continue


def files(folder: Path, **config: Any) -> Any:
    """What is read of the tokenizer of a folder."""

    def read_json(name: str) -> Any:
        return read_json_file(folder / name)

    return read_tokenizer_files(folder, read_json, config, {})


def ids_of(made: Any, text: str) -> list[int]:
    """With the tokens around it."""
    tokenizer = Tokenizer.from_buffer(made.tokenizer_json)
    tokenizer.encode_special_tokens = True
    return list(tokenizer.encode(text).ids)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_t5_has_sentinels_behind_its_pieces(kind: str, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(spm_bytes([*WORDS, Piece("<pad>", 0, 3)]))
    write_json(tmp_path / "tokenizer_config.json", {"extra_ids": 3})
    made = files(tmp_path, model_type=kind, eos_token_id=2)
    assert ids_of(made, "the rain") == [3, 5, 2]
    tokenizer = Tokenizer.from_buffer(made.tokenizer_json)
    assert tokenizer.token_to_id("<extra_id_0>") == len(WORDS) + 3
    assert tokenizer.token_to_id("<extra_id_2>") == len(WORDS) + 1
    assert made.eos_token_ids == (2,)
    assert made.special_tokens["pad_token"] == "<pad>"
    listed = {str(len(WORDS) + 1): {"content": "<new>", "special": True}}
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": listed})
    made = files(tmp_path, model_type=kind, eos_token_id=2)
    assert Tokenizer.from_buffer(made.tokenizer_json).get_vocab_size() == len(WORDS) + 2
    write_json(tmp_path / "added_tokens.json", {"<far>": 99})
    with pytest.raises(CheckpointError, match=r"'<far>' has the id 99, which is not free"):
        files(tmp_path, model_type=kind)


def test_mbart_moves_pieces_and_names_the_language(tmp_path: Path) -> None:
    (tmp_path / "sentencepiece.bpe.model").write_bytes(spm_bytes(WORDS))
    made = files(tmp_path, model_type="mbart", eos_token_id=2)
    english = len(WORDS) + 1 + 3
    assert ids_of(made, "the rain") == [4, 6, 2, english]
    assert Tokenizer.from_buffer(made.tokenizer_json).id_to_token(english) == "en_XX"
    assert (made.bos_token_id, made.add_bos) == (0, False)
    settings = {"tokenizer_class": "MBart50Tokenizer", "src_lang": "gl_ES"}
    write_json(tmp_path / "tokenizer_config.json", settings)
    made = files(tmp_path, model_type="mbart", eos_token_id=2)
    assert ids_of(made, "the rain") == [len(WORDS) + 1 + 50, 4, 6, 2]
    write_json(tmp_path / "tokenizer_config.json", {"src_lang": "gl_ES"})
    with pytest.raises(CheckpointError, match="'src_lang' is 'gl_ES'"):
        files(tmp_path, model_type="mbart")


def test_marian_is_exported_as_published(tmp_path: Path) -> None:
    ids = write_marian(tmp_path / "checkpoint")
    manifest = export_model(tmp_path / "checkpoint", tmp_path / "bundle", formats=("reference",))
    assert manifest.tokenizer.source is not None
    assert manifest.tokenizer.eos_token_ids == (ids["</s>"],)
    with quickdraft.load(tmp_path / "bundle", drafter="none") as model:
        source = model.tokenizer.encode_source(">>deu<< in the rain")
        wanted = [">>deu<<", "▁in", "<unk>", "▁rain", "</s>"]  # vocab.json lacks "▁the"
        assert source == [ids[text] for text in wanted]
        assert model.tokenizer.encode_source(" ") == []
        # A piece of the source alone is never cut out of an answer, and still has a text.
        answer = model.tokenizer.encode("der Regen in")
        assert answer == [ids[text] for text in ("▁der", "▁Regen", "▁in")]
        assert model.detokenize([*answer, ids["▁rain"], ids["</s>"]]) == "der Regen in rain"
        text = model.generate("the rain", max_new_tokens=4, temperature=0)
        assert (
            text.token_ids
            == model.generate(
                [ids[each] for each in ("<unk>", "▁rain", "</s>")], max_new_tokens=4, temperature=0
            ).token_ids
        )


def test_a_bundle_with_a_bad_map_is_refused(tmp_path: Path) -> None:
    write_marian(tmp_path / "checkpoint")
    export_model(tmp_path / "checkpoint", tmp_path / "bundle", formats=("reference",))
    manifest = open_bundle(tmp_path / "bundle").manifest
    entry = manifest.tokenizer.source
    assert entry is not None
    for change, problem in (
        (lambda data: data[:-4], "need"),
        (lambda data: data[:-4] + (99).to_bytes(4, "little"), "names tokens from 1 to 99"),
        (lambda data: data[:-4] + b"\xff" * 4, "names tokens from -1"),
    ):
        path = tmp_path / "bundle" / "other.tokens"
        path.write_bytes(change((tmp_path / "bundle" / entry.token_map).read_bytes()))
        other = SourceTokenizerEntry(entry.file, "other.tokens")
        with pytest.raises(TokenizerError, match=problem):
            SourceReader.from_entry(tmp_path / "bundle", other, manifest.model.vocab_size)
    missing = replace(manifest.tokenizer, source=SourceTokenizerEntry(entry.file, "nowhere"))
    with pytest.raises(BundleError, match=r"tokenizer.source.token_map names 'nowhere'"):
        parse_manifest(replace(manifest, tokenizer=missing).to_json().encode(), "m")


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no target": (lambda f: (f / "target.spm").unlink(), "source.spm but no target.spm"),
    "no vocabulary": (lambda f: (f / "vocab.json").unlink(), "source.spm but no vocab.json"),
    "holes": (lambda f: write_json(f / "vocab.json", {"a": 0, "b": 2}), "are not 0 to 1"),
    "texts": (lambda f: write_json(f / "vocab.json", {"a": "0"}), "are not 0 to 0"),
    "empty text": (lambda f: write_json(f / "vocab.json", {"": 0}), "must hold 1 to"),
    "no end": (lambda f: write_json(f / "vocab.json", {"<unk>": 0, "<pad>": 1}), "no '</s>'"),
    "two vocabularies": (
        lambda f: write_json(f / "tokenizer_config.json", {"separate_vocabs": True}),
        "must be one",
    ),
    "end is a number": (
        lambda f: write_json(f / "tokenizer_config.json", {"eos_token": 3}),
        "'eos_token' is 3",
    ),
    "damaged": (lambda f: (f / "source.spm").write_bytes(b"\x0a"), "source.spm is no sound"),
}


@pytest.mark.parametrize("name", HARMS)
def test_bad_marian_folders_are_refused(name: str, tmp_path: Path) -> None:
    harm, problem = HARMS[name]
    write_marian_tokenizer(tmp_path)
    files(tmp_path, model_type="marian")
    harm(tmp_path)
    with pytest.raises(CheckpointError, match=problem):
        files(tmp_path, model_type="marian")


def test_the_writer_of_these_tests_is_one(tmp_path: Path) -> None:
    path = tmp_path / "x.spm"
    path.write_bytes(b"".join(map(piece_bytes, WORDS)))
    model = read_sentencepiece(path)
    assert [piece.text for piece in model.pieces] == [piece.text for piece in WORDS]
    assert (model.dummy_prefix, model.collapse, model.charsmap) == (True, True, b"")


def test_only_encoders_have_a_tokenizer_of_their_own() -> None:
    whole = tiny_manifest()
    entry = SourceTokenizerEntry(whole.tokenizer.file, whole.tokenizer.file)
    changed = replace(whole, tokenizer=replace(whole.tokenizer, source=entry))
    with pytest.raises(BundleError, match=r"tokenizer.source is for what an encoder reads"):
        parse_manifest(changed.to_json().encode(), "m")
