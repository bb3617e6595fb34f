"""How families number their SentencePiece pieces, for folders without tokenizer.json."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from quickdraft.errors import CheckpointError, UnsupportedModel
from quickdraft.export.checkpoints.base import SourceTokenizer
from quickdraft.export.checkpoints.sentencepiece_file import (
    CONTROL,
    MAX_PIECES,
    NORMAL,
    UNKNOWN,
    Piece,
    read_sentencepiece,
)
from quickdraft.export.checkpoints.sentencepiece_tokenizer import ADDED, tokenizer_json

_LANGUAGE = re.compile(">>.+<<")
_LANGUAGES = re.findall(
    r"\w+",
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR "
    "lt_LT lv_LV my_MM ne_NP nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN",
)
_MORE_LANGUAGES = re.findall(
    r"\w+",
    "af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL "
    "ps_AF pt_XX sv_SE sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI",
)


@dataclass(frozen=True)
class Folder:
    """A checkpoint folder. settings: of tokenizer_config.json. config: of config.json."""

    path: Path
    read_json: Callable[[str], Mapping[str, Any]]
    settings: Mapping[str, Any]
    config: Mapping[str, Any]

    def fail(self, problem: str) -> NoReturn:
        """Refuse the folder.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(f"{self.path}: {problem}")

    def text(self, key: str, default: str) -> str:
        """A special token of the settings, written as text or as an object."""
        value = self.settings.get(key, default)
        value = value.get("content") if isinstance(value, Mapping) else value
        if not isinstance(value, str) or not value:
            self.fail(f"tokenizer_config.json: {key!r} is {value!r}; it must be a text")
        return value


@dataclass(frozen=True)
class Rebuilt:
    """A tokenizer.json made of SentencePiece models. special: named special tokens. source: what
    cuts the texts that an encoder reads, None if the same does."""

    tokenizer_json: bytes
    special: Mapping[str, str] = field(default_factory=dict)
    source: SourceTokenizer | None = None


def rebuild_tokenizer(folder: Folder) -> Rebuilt | None:
    """The tokenizer of the SentencePiece files in a folder; None if it has none of those that its
    family has.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit the others.
        UnsupportedModel: a kind of SentencePiece model that is not implemented.
    """
    family = _FAMILIES.get(str(folder.config.get("model_type")))
    if family is None or not (folder.path / family[0]).is_file():
        return None
    return family[1](folder)


def _t5(folder: Folder) -> Rebuilt:
    """Pieces as they are, then the sentinels, the last first; sources end with the end."""
    model = read_sentencepiece(folder.path / "spiece.model")
    pieces = list(model.pieces)
    named = {
        f"{name}_token": folder.text(f"{name}_token", default)
        for name, default in (("eos", "</s>"), ("unk", "<unk>"), ("pad", "<pad>"))
    }
    if "added_tokens_decoder" not in folder.settings:
        count = folder.settings.get("extra_ids", 100)
        if type(count) is not int or not 0 <= count <= 1000:
            folder.fail(f"tokenizer_config.json: 'extra_ids' is {count!r}; it must be 0 to 1000")
        pieces += _control(f"<extra_id_{i}>" for i in reversed(range(count)))
    pieces = _with_added(folder, pieces)
    end = _find(folder, pieces, named["eos_token"])
    return Rebuilt(tokenizer_json(model, pieces, after=[end]), named)


def _mbart(folder: Folder) -> Rebuilt:
    """Four tokens of fairseq, the pieces from the fourth on, languages, a mask. The language of a
    source comes last, or first where there are fifty of them."""
    model = read_sentencepiece(folder.path / "sentencepiece.bpe.model")
    if [piece.text for piece in model.pieces[:3]] != ["<unk>", "<s>", "</s>"]:
        folder.fail("sentencepiece.bpe.model does not begin with <unk>, <s> and </s>")
    name = folder.settings.get("tokenizer_class") or folder.config.get("tokenizer_class")
    fifty = str(name).startswith("MBart50")
    languages = [*_LANGUAGES, *(_MORE_LANGUAGES if fifty else ())]
    first = _control(["<s>", "<pad>", "</s>"])
    pieces = [*first, Piece("<unk>", 0.0, UNKNOWN), *model.pieces[3:]]
    pieces = _with_added(folder, [*pieces, *_control([*languages, "<mask>"])])
    language = folder.settings.get("src_lang") or "en_XX"
    if language not in languages:
        folder.fail(f"tokenizer_config.json: 'src_lang' is {language!r}; there are {languages}")
    around = [_find(folder, pieces, "</s>"), _find(folder, pieces, language)]
    before = [around.pop()] if fifty else []
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return Rebuilt(tokenizer_json(model, pieces, before=before, after=around), special)


def _marian(folder: Folder) -> Rebuilt:
    """Two models over one vocabulary, that of vocab.json; what it lacks is unknown."""
    for name in ("target.spm", "vocab.json"):
        if not (folder.path / name).is_file():
            folder.fail(f"it has source.spm but no {name}; fetch the rest of the checkpoint")
    if folder.settings.get("separate_vocabs"):
        raise UnsupportedModel(f"{folder.path}: vocabularies of source and target must be one")
    ids = _numbered(folder, folder.read_json("vocab.json"))
    special = {
        f"{name}_token": folder.text(f"{name}_token", default)
        for name, default in (("eos", "</s>"), ("unk", "<unk>"), ("pad", "<pad>"))
    }
    for text in special.values():
        if text not in ids:
            folder.fail(f"vocab.json has no {text!r}")
    target = read_sentencepiece(folder.path / "target.spm")
    held = {piece.text: piece for piece in target.pieces}
    # Words of sources are kept, less likely than all others, so that whatever comes is decoded.
    least = min(piece.score for piece in target.pieces if piece.kind == NORMAL) - 10
    known: dict[str, Piece] = {text: Piece(text, least, NORMAL) for text in ids} | held
    for text in ids:
        if _LANGUAGE.fullmatch(text):
            known[text] = Piece(text, 0.0, ADDED)
    known |= {text: Piece(text, 0.0, CONTROL) for text in special.values()}
    known[special["unk_token"]] = Piece(special["unk_token"], 0.0, UNKNOWN)
    pieces = [known[text] for text in sorted(ids, key=ids.__getitem__)]
    made = tokenizer_json(target, pieces, after=[ids[special["eos_token"]]])
    return Rebuilt(made, special, _marian_source(folder, ids, special))


def _marian_source(
    folder: Folder, ids: Mapping[str, int], special: Mapping[str, str]
) -> SourceTokenizer:
    """source.spm, which numbers its pieces in its own way, and tokens that name a language."""
    model = read_sentencepiece(folder.path / "source.spm")
    pieces = [
        replace(piece, kind=CONTROL) if piece.text in special.values() else piece
        for piece in model.pieces
    ]
    pieces[model.unknown] = model.pieces[model.unknown]
    held = {piece.text for piece in pieces}
    if special["eos_token"] not in held:
        pieces += _control([special["eos_token"]])
    languages = (text for text in ids if _LANGUAGE.fullmatch(text) and text not in held)
    pieces += [Piece(text, 0.0, ADDED) for text in languages]
    end = _find(folder, pieces, special["eos_token"])
    unknown = ids[special["unk_token"]]
    return SourceTokenizer(
        tokenizer_json(model, pieces, after=[end]),
        tuple(ids.get(piece.text, unknown) for piece in pieces),
    )


def _numbered(folder: Folder, vocabulary: Mapping[str, Any]) -> dict[str, int]:
    """The ids of vocab.json: every number once, from 0."""
    if not 0 < len(vocabulary) <= MAX_PIECES or not all(vocabulary):
        folder.fail(f"vocab.json must hold 1 to {MAX_PIECES} texts and their ids")
    if any(type(number) is not int for number in vocabulary.values()) or sorted(
        vocabulary.values()
    ) != list(range(len(vocabulary))):
        folder.fail(f"the ids of vocab.json are not 0 to {len(vocabulary) - 1}, each once")
    return dict(vocabulary)


def _control(texts: Any) -> list[Piece]:
    return [Piece(text, 0.0, CONTROL) for text in texts]


def _find(folder: Folder, pieces: Sequence[Piece], text: str) -> int:
    for number, piece in enumerate(pieces):
        if piece.text == text:
            return number
    folder.fail(f"its SentencePiece model has no {text!r}, which ends or begins texts")


def _with_added(folder: Folder, pieces: list[Piece]) -> list[Piece]:
    """With the tokens that tokenizer_config.json and added_tokens.json add, in order of their
    ids."""
    added: dict[int, Piece] = {}
    numbered = folder.settings.get("added_tokens_decoder") or {}
    for number, token in numbered.items() if isinstance(numbered, Mapping) else ():
        if not str(number).isdecimal() or not isinstance(token, Mapping):
            folder.fail("tokenizer_config.json: 'added_tokens_decoder' is not tokens by their ids")
        kind = CONTROL if token.get("special") else ADDED
        added[int(number)] = Piece(str(token.get("content")), 0.0, kind)
    for text, number in folder.read_json("added_tokens.json").items():
        if type(number) is not int:
            folder.fail(f"added_tokens.json: the id of {text!r} is {number!r}")
        added.setdefault(number, Piece(text, 0.0, CONTROL))
    held = {piece.text for piece in pieces}
    for number, piece in sorted(added.items()):
        if number < len(pieces) and pieces[number].text == piece.text:
            continue
        if number != len(pieces) or piece.text in held:
            folder.fail(
                f"the added token {piece.text[:80]!r} has the id {number}, which is not free or "
                f"not the next one after {len(pieces) - 1}"
            )
        pieces = [*pieces, piece]
        held.add(piece.text)
    return pieces


_FAMILIES: Mapping[str, tuple[str, Callable[[Folder], Rebuilt]]] = {
    "t5": ("spiece.model", _t5),
    "mt5": ("spiece.model", _t5),
    "mbart": ("sentencepiece.bpe.model", _mbart),
    "marian": ("source.spm", _marian),
}
"""By model_type: the file that tells, and what makes a tokenizer of it."""
