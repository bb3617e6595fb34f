"""Encoder-decoder models in the runtime: sources, memories, openings, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny.process import call
from tiny.seq2seq_checkpoint import tiny_t5

import quickdraft
from quickdraft.errors import BundleError, InputError, OptionError, UnsupportedModel
from quickdraft.export.emitters.base import EmitRequest, refuse_sources
from quickdraft.export.parts import generation_of, parts_of
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.export.quantize import FORMATS
from quickdraft.export.trained import write_trained
from quickdraft.kvcache.memory import Memories, RowMemory, Source
from quickdraft.manifest import parse_manifest
from quickdraft.runtime.model import CancelToken, Model
from quickdraft.runtime.sources import opening_of

SHORT = {"max_new_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5") / "bundle"
    export_checkpoint(tiny_t5(), folder, formats=("reference",), weights="fp32")
    return folder


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[Model]:
    with quickdraft.load(bundle, drafter="recycling,prompt_lookup") as loaded:
        yield loaded


def test_a_text_is_a_source_and_answers_begin_as_the_model_says(model: Model) -> None:
    text = model.generate("the rain in it", **SHORT)
    assert text.prompt_token_ids == (0,)
    tokens = model.tokenizer.encode_source("the rain in it")
    assert model.generate(tokens, **SHORT).token_ids == text.token_ids
    assert model.generate("another text", **SHORT).token_ids != text.token_ids
    other = model.generate("the rain in it", opening=[0, 7], **SHORT)
    assert other.prompt_token_ids == (0, 7)


def test_drafts_change_nothing(model: Model) -> None:
    session = model.session()
    plain = model.generate("an old one", num_draft_tokens=0, **SHORT)
    first = model.generate("an old one", num_draft_tokens=4, session=session, **SHORT)
    again = model.generate("an old one", num_draft_tokens=4, session=session, **SHORT)
    assert plain.token_ids == first.token_ids == again.token_ids
    assert sum(step.accepted for step in again.steps) > 0


def test_a_source_is_read_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    encode = model.backend.encode  # type: ignore[attr-defined]
    monkeypatch.setattr(
        model.backend, "encode", lambda source, cancel=None: read.append(1) or encode(source)
    )
    for text in ("a first", "a second", "a first"):
        model.generate(text, **SHORT)
    assert len(read) == 2


def test_results_say_what_was_read(model: Model, bundle: Path) -> None:
    first = model.generate("nobody asked this before", **SHORT)
    count = len(model.tokenizer.encode_source("nobody asked this before"))
    assert first.source is not None
    assert (first.source.n, first.source.unit, first.source.cached) == (count, "tokens", False)
    assert 0 < first.source.encode_ms <= first.timings.prompt_ms
    again = model.search("nobody asked this before", num_beams=2, max_new_tokens=3)
    assert again.source is not None
    assert (again.source.encode_ms, again.source.cached) == (0.0, True)
    told = call("run", bundle, "-n", 2, "--json", "--drafter", "none", "--verbose", "some text")
    assert json.loads(told.stdout)["source"]["n"] == len(model.tokenizer.encode_source("some text"))
    assert "tokens, encoded in" in told.stderr


def test_memories_that_do_not_fit_are_forgotten_oldest_first() -> None:
    def encode(source: Source) -> RowMemory:
        rows = np.zeros((len(source), 1, 4), np.float32)
        return RowMemory(((rows, rows.copy()),))

    memories = Memories(limit=2 * 3 * 4 * 4 * 2)
    sources = [Source(tokens=np.full(3, token)) for token in range(3)]
    for source in sources:
        assert not memories.get(source, encode)[1]
    assert memories.nbytes == 192
    assert memories.get(sources[2], encode)[1]
    assert not memories.get(sources[0], encode)[1]


def test_stopping_before_the_source_is_read_is_a_cancelled_answer(model: Model) -> None:
    cancel = CancelToken()
    cancel.cancel()
    result = model.generate("never read", cancel=cancel, **SHORT)
    assert (result.finish_reason, result.token_ids) == ("cancelled", ())


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (Source(tokens=np.zeros(0, np.int64)), "the source has 0 tokens"),
        (Source(tokens=np.full(3, 320)), "outside the vocabulary of 320"),
        (Source(features=np.zeros((4, 80), np.float32)), "reads tokens"),
        (Source(tokens=np.zeros(1 << 15, np.int64)), "reads 1 to 16384"),
    ],
)
def test_sources_without_meaning_are_refused(model: Model, source: Source, says: str) -> None:
    with pytest.raises(InputError, match=says):
        model.generate(source, **SHORT)


def test_openings_follow_the_generation_config() -> None:
    assert opening_of({"decoder_start_token_id": 2}) == [2]
    assert opening_of({"bos_token_id": 3}) == [3]
    assert opening_of({"decoder_start_token_id": 2, "forced_bos_token_id": 9}) == [2, 9]
    forced = {"decoder_start_token_id": 2, "forced_decoder_ids": [[1, 5], [2, None], [3, 7]]}
    assert opening_of(forced) == [2, 5]
    for wrong in ({}, {"decoder_start_token_id": "a"}, {"bos_token_id": True}):
        with pytest.raises(OptionError, match="answers of this model would begin with"):
            opening_of(wrong)


def test_what_config_json_says_of_answers_is_kept() -> None:
    old = replace(tiny_t5(forced_bos_token_id=5), generation={})
    assert generation_of(old)["forced_bos_token_id"] == 5
    assert generation_of(old)["decoder_start_token_id"] == 0


def test_trained_parts_and_other_formats_are_refused(tmp_path: Path) -> None:
    draft = tmp_path / "draft.safetensors"
    facts = {
        "kind": "compact",
        "settings": {},
        "tensors": {"a": np.ones(2, np.float32)},
        "card": {},
    }
    write_trained(draft, target="0" * 64, **facts)
    with pytest.raises(OptionError, match="of encoder-decoder models 'compact'"):
        parts_of(tiny_t5(), (), (draft,))
    request = EmitRequest(tmp_path, FORMATS["fp32"], parts_of(tiny_t5(), (), ()))
    with pytest.raises(UnsupportedModel, match="'elsewhere' cannot hold t5"):
        refuse_sources(request, "elsewhere")


def test_a_target_without_its_encoder_is_no_bundle(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_bytes().replace(b'"encoder": [', b'"drafter": [')
    with pytest.raises(BundleError):
        parse_manifest(text, "manifest.json")
