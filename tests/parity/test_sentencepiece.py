"""Our reading of SentencePiece models against the package itself, and against transformers' slow
tokenizers of the families that have them."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from quickdraft.export.checkpoints.hf import read_json_file
from quickdraft.export.checkpoints.hf_tokenizer import read_tokenizer_files
from quickdraft.export.checkpoints.sentencepiece_file import read_sentencepiece
from quickdraft.export.checkpoints.sentencepiece_tokenizer import tokenizer_json
from quickdraft.runtime.text import SourceReader

sentencepiece = pytest.importorskip("sentencepiece")

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

# What differs on purpose is left out: the library composes no jamo, and cuts around the spelling of
# control pieces where one of several equally good ways is taken.
ALPHABET = [
    *(
        "a",
        "b",
        "the ",
        "of",
        " ",
        "  ",
        "é",
        "ﬁ",
        "Ⅷ",
        "e\u0301",
        "中",
        "文",
        "\t",
        "\n",
        "<0x41>",
    ),
    *("</s>", "<unk>", "☃", "😀", "Ａ", "İ", "가", "½", "...", "\xa0", "ing", "1914", "-"),
]
MODELS: dict[str, dict[str, Any]] = {
    "unigram": {},
    "unigram-bytes": {"byte_fallback": True},
    "unigram-folded": {"normalization_rule_name": "nmt_nfkc_cf", "add_dummy_prefix": False},
    "unigram-as-it-is": {"normalization_rule_name": "identity"},
    "unigram-all-spaces": {"remove_extra_whitespaces": False},
    "unigram-user": {"user_defined_symbols": ["ing", "<sep>"]},
    "bpe": {"model_type": "bpe"},
    "bpe-bytes": {"model_type": "bpe", "byte_fallback": True},
    "bpe-all-spaces": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
}


def sentences(seed: int, count: int) -> list[str]:
    """Text that looks a little like language."""
    rng = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprstvw" for b in ("a", "e", "i", "o", "u", "ing", "er")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(400)]
    words += ["the", "of", "and", "1914", "é", "中文", "a", "b"]
    weights = [1 / (i + 1) for i in range(len(words))]
    return [" ".join(rng.choices(words, weights, k=rng.randint(3, 12))) for _ in range(count)]


def texts() -> list[str]:
    """What is tokenised: sentences, and heaps of what is awkward."""
    rng = random.Random(1)
    odd = ["".join(rng.choices(ALPHABET, k=rng.randint(0, 20))) for _ in range(1000)]
    return [*odd, *sentences(2, 500)]


def train(size: int = 300, **options: Any) -> bytes:
    """A model of the package's own making."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(0, 2000)),
        model_writer=out,
        vocab_size=size,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return out.getvalue()


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_those_of_the_package(name: str, tmp_path: Path) -> None:
    size = 600 if "bytes" in name else 300
    content = train(size, **MODELS[name])
    (tmp_path / "x.spm").write_bytes(content)
    model = read_sentencepiece(tmp_path / "x.spm")
    ours = Tokenizer.from_buffer(tokenizer_json(model, model.pieces))
    ours.encode_special_tokens = True
    theirs = sentencepiece.SentencePieceProcessor(model_proto=content)
    wrong, unknown = [], theirs.unk_id()
    for text in texts():
        wanted, got = theirs.encode(text), ours.encode(text, add_special_tokens=False).ids
        if got != wanted:
            wrong.append((text, theirs.id_to_piece(wanted), [ours.id_to_token(i) for i in got]))
        elif unknown not in wanted:
            assert ours.decode(wanted) == theirs.decode(wanted)
    # Sums of scores that differ by less than a float32 holds may be decided the other way.
    assert len(wrong) <= 2, wrong[:5]


def read(folder: Path, **config: Any) -> Any:
    """What we make of a folder."""

    def read_json(name: str) -> Any:
        return read_json_file(folder / name)

    return read_tokenizer_files(folder, read_json, config, {})


def ids(content: bytes, text: str) -> list[int]:
    """With the tokens around it."""
    tokenizer = Tokenizer.from_buffer(content)
    tokenizer.encode_special_tokens = True
    return SourceReader(tokenizer).encode(text)


PLAIN = [text for text in texts() if text.strip() and "<" not in text][:400]


def test_t5_is_as_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = tmp_path / "spiece.model"
    path.write_bytes(train(pad_id=0, eos_id=1, unk_id=2, bos_id=-1))
    theirs = transformers.T5Tokenizer(str(path), legacy=False)
    for saved in (False, True):
        if saved:  # with all added tokens listed in tokenizer_config.json
            theirs.save_pretrained(tmp_path)
        made = read(tmp_path, model_type="t5", eos_token_id=1)
        whole = Tokenizer.from_buffer(made.tokenizer_json).get_vocab(with_added_tokens=True)
        assert whole == theirs.get_vocab()
        for text in PLAIN:
            assert ids(made.tokenizer_json, text) == theirs(text).input_ids, text


@pytest.mark.parametrize("name", ["MBartTokenizer", "MBart50Tokenizer"])
def test_mbart_is_as_in_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = tmp_path / "sentencepiece.bpe.model"
    path.write_bytes(train())
    theirs = getattr(transformers, name)(str(path), src_lang="de_DE")
    settings = {"src_lang": "de_DE", "tokenizer_class": name}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    for saved in (False, True):
        if saved:
            theirs.save_pretrained(tmp_path)
        made = read(tmp_path, model_type="mbart", eos_token_id=2)
        for text in PLAIN:
            assert ids(made.tokenizer_json, text) == theirs(text).input_ids, text


def test_marian_is_as_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "source.spm").write_bytes(train())
    (tmp_path / "target.spm").write_bytes(train(200, normalization_rule_name="identity"))
    pieces = [
        sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / name))
        for name in ("source.spm", "target.spm")
    ]
    texts_ = [model.id_to_piece(i) for model in pieces for i in range(3, model.vocab_size())]
    rng = random.Random(5)
    rng.shuffle(texts_)
    listed = dict.fromkeys(["</s>", "<unk>", ">>deu<<", *texts_[: int(0.9 * len(texts_))], "<pad>"])
    vocabulary = {text: i for i, text in enumerate(listed)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    theirs = transformers.MarianTokenizer(
        *(str(tmp_path / name) for name in ("source.spm", "target.spm", "vocab.json"))
    )
    made = read(tmp_path, model_type="marian", eos_token_id=0)
    library = Tokenizer.from_buffer(made.source.tokenizer_json)
    library.encode_special_tokens = True
    reader = SourceReader(library, made.source.token_ids)
    met: set[int] = set()
    for text in PLAIN:
        for whole in (text, f">>deu<< {text}"):
            wanted = theirs(whole).input_ids
            assert reader.encode(whole) == wanted, whole
            met.update(wanted)
    assert vocabulary["<unk>"] in met
    answers = Tokenizer.from_buffer(made.tokenizer_json)
    for _ in range(200):
        answer = rng.sample(range(3, len(vocabulary) - 1), 12)
        wanted = theirs.decode(answer, clean_up_tokenization_spaces=False)
        assert answers.decode(answer).strip() == wanted
