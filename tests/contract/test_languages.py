"""Languages of models that translate: codes of tokenizers, in Python and on the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny.process import call
from tiny.seq2seq_checkpoint import tiny_t5
from tokenizers import Tokenizer, processors

import quickdraft
from quickdraft.errors import InputError, OptionError
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.runtime.languages import Translation

SHORT = {"max_new_tokens": 4, "ignore_eos": True}
MBART = ("en_XX", "de_DE", "fr_XX")
M2M = ("__en__", "__de__", "__zh__")
NLLB = ("eng_Latn", "deu_Latn", "zho_Hans", "zho_Hant")
MARIAN = (">>fra<<", ">>spa<<", ">>cmn_Hans<<")
END = 1


def with_codes(folder: Path, codes: tuple[str, ...], template: str, **generation: Any) -> Path:
    """A tiny model whose tokenizer has these codes in place of its last tokens."""
    checkpoint = tiny_t5()
    told = json.loads(checkpoint.tokenizer.tokenizer_json)
    vocab, first = told["model"]["vocab"], 320 - len(codes)
    by_id = {token: text for text, token in vocab.items()}
    gone = {by_id[first + place] for place in range(len(codes))}
    for place, code in enumerate(codes):
        del vocab[by_id[first + place]]
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        told["added_tokens"].append(
            {"id": first + place, "content": code, "special": True, **flags}
        )
    told["model"]["merges"] = [
        merge
        for merge in told["model"]["merges"]
        if ("".join(merge) if isinstance(merge, list) else merge.replace(" ", "")) not in gone
    ]
    library = Tokenizer.from_str(json.dumps(told))
    if template:
        named = [("</s>", END)] + [(code, first + place) for place, code in enumerate(codes)]
        used = [(text, token) for text, token in named if text in template]
        library.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    files = replace(checkpoint.tokenizer, tokenizer_json=library.to_str().encode())
    begins = {**checkpoint.generation, **generation}
    made = replace(checkpoint, tokenizer=files, generation=begins)
    export_checkpoint(made, folder, formats=("reference",), weights="fp32")
    return folder


CASES = {
    # codes, template, generation, source and target, source with its language, opening
    "mbart-50": (MBART, "en_XX $A </s>", {}, ("fr", "de_DE"), ("fr_XX", 0), [0, "de_DE"]),
    "mbart-cc25": (MBART, "$A </s> en_XX", {"decoder_start_token_id": 318}, ("fr_XX", "de"),
                   ("fr_XX", -1), ["de_DE"]),
    "m2m": (M2M, "__en__ $A </s>", {"forced_bos_token_id": 9}, ("zh", "de"),
            ("__zh__", 0), [0, "__de__"]),
    "nllb": (NLLB, "eng_Latn $A </s>", {}, ("deu", "zho_Hant"), ("deu_Latn", 0),
             [0, "zho_Hant"]),
    "marian": (MARIAN, "$A </s>", {}, (None, "cmn_hans"), (">>cmn_Hans<<", 0), [0]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_codes_go_where_each_kind_has_them(name: str, tmp_path: Path) -> None:
    codes, template, generation, (source, target), (code, at), opening = CASES[name]
    bundle = with_codes(tmp_path / "bundle", codes, template, **generation)
    token = {text: 320 - len(codes) + place for place, text in enumerate(codes)}
    with quickdraft.load(bundle, drafter="none") as model:
        session = model.session()
        asked = Translation("an old one", source, target)
        result = model.generate(asked, session=session, **SHORT)
        assert result.prompt_token_ids == tuple(
            token[each] if isinstance(each, str) else each for each in opening
        )
        assert session.source is not None
        read = session.source.tokens
        assert read is not None
        assert read[at] == token[code]
        words = model.tokenizer.encode("an old one")
        inside = [each for each in read.tolist() if each not in (END, *token.values())]
        assert inside == words
        assert sum(each in token.values() for each in read.tolist()) == 1
        best = model.search(asked, num_beams=2, **SHORT)
        assert best.prompt_token_ids == result.prompt_token_ids
        plain = model.generate("an old one", opening=result.prompt_token_ids, **SHORT)
        assert plain.token_ids != result.token_ids
    named = [] if source is None else ["--source-language", source]
    line = ("run", bundle, "an old one", "-n", 4, "--ignore-eos", "--drafter", "none", "--json")
    done = call(*line, *named, "--target-language", target)
    assert json.loads(done.stdout)["token_ids"] == list(result.token_ids), done.stderr


def test_what_is_no_language_is_refused(tmp_path: Path) -> None:
    bundle = with_codes(tmp_path / "nllb", NLLB, "eng_Latn $A </s>")
    with quickdraft.load(bundle, drafter="none") as model:
        for target, says in [
            ("xx", "there are: deu_Latn, eng_Latn"),
            ("zho", "zho_Hans or zho_Hant"),
        ]:
            with pytest.raises(OptionError, match=says):
                model.generate(Translation("a", None, target))
        with pytest.raises(OptionError, match="give one of the two"):
            model.generate(Translation("a", None, "deu"), opening=[0])
    done = call("run", bundle, "a", "--drafter", "none", "--target-language", "xx")
    assert (done.returncode, "there are: deu_Latn" in done.stderr) == (2, True)


def test_a_language_needs_a_place(tmp_path: Path) -> None:
    bundle = with_codes(tmp_path / "bare", MBART, "$A </s>")
    with quickdraft.load(bundle, drafter="none") as model:
        with pytest.raises(InputError, match="no language around a text"):
            model.generate(Translation("a", "fr", "de"))
        assert model.generate(Translation("a", None, "de"), **SHORT).prompt_token_ids == (0, 318)
    marian = with_codes(tmp_path / "marian", MARIAN, "$A </s>")
    loaded = quickdraft.load(marian, drafter="none")
    with loaded as model, pytest.raises(OptionError, match="target language only"):
        model.generate(Translation("a", "fra", "spa"))


def test_other_models_have_no_codes(tmp_path: Path) -> None:
    export_checkpoint(tiny_t5(), tmp_path / "t5", formats=("reference",), weights="fp32")
    loaded = quickdraft.load(tmp_path / "t5", drafter="none")
    with loaded as model, pytest.raises(OptionError, match="there are: none"):
        model.generate(Translation("a", None, "de"))
