"""Hugging Face folders: what is collected, what is refused, and that no code is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny.checkpoint import BOS, EOS, SPECIAL, tiny_checkpoint, tiny_tokenizer_json

from quickdraft.errors import CheckpointError, TokenizerError
from quickdraft.export.architectures.base import find_family
from quickdraft.export.checkpoints.hf import read_huggingface
from quickdraft.export.emitters.numpy import Recorder

END = 3


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound checkpoint in one file."""
    checkpoint = tiny_checkpoint("llama")
    write_json(tmp_path / "config.json", {**checkpoint.config, "eos_token_id": EOS})
    arrays = {name: weight.dense() for name, weight in checkpoint.weights.items()}
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_bytes(tiny_tokenizer_json())
    return tmp_path


def shard(folder: Path) -> dict[str, str]:
    """Cut the weights in two files; returns the weight map."""
    arrays = {name: w.dense() for name, w in tiny_checkpoint("llama").weights.items()}
    names = sorted(arrays)
    parts = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: arrays[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    where = {name: file for file, part in parts.items() for name in part}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})
    return where


def test_a_folder_is_read_and_builds(folder: Path) -> None:
    checkpoint = read_huggingface(folder)
    original = tiny_checkpoint("llama")
    assert set(checkpoint.weights) == set(original.weights)
    for name in original.weights:
        assert np.array_equal(checkpoint.weights[name].dense(), original.weights[name].dense())
    family = find_family(checkpoint.config)
    family.build(Recorder(), family.read(checkpoint.config), checkpoint.weights)
    assert checkpoint.source.kind == "huggingface"
    assert checkpoint.source.name == folder.name


def test_shards_are_joined(folder: Path) -> None:
    whole = tiny_checkpoint("llama")
    shard(folder)
    joined = read_huggingface(folder)
    assert set(joined.weights) == set(whole.weights)
    for name in whole.weights:
        assert np.array_equal(joined.weights[name].dense(), whole.weights[name].dense())


def test_the_fingerprint_is_of_the_weights(folder: Path) -> None:
    first = read_huggingface(folder).source.fingerprint
    write_json(folder / "generation_config.json", {"temperature": 0.5})
    assert read_huggingface(folder).source.fingerprint == first
    save_file({"x": np.ones(3, np.float32)}, folder / "model.safetensors")
    assert read_huggingface(folder).source.fingerprint != first
    assert len(first) == 64


def test_nothing_is_imported(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    write_json(folder / "config.json", config)
    (folder / "evil.py").write_text("raise SystemExit('imported')")
    assert read_huggingface(folder).config["model_type"] == "llama"


# Special tokens, chat templates, generation


@pytest.mark.parametrize(
    ("number", "content"),
    [(320, ""), (320, SPECIAL[EOS]), (7, "<taken>"), (999, "<gap>"), (-1, "<negative>")],
)
def test_added_tokens_are_used_as_they_are_or_refused(
    number: int, content: str, folder: Path
) -> None:
    rules = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    rules["added_tokens"].append({**rules["added_tokens"][-1], "id": number, "content": content})
    write_json(folder / "tokenizer.json", rules)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        read_huggingface(folder)


def test_special_tokens_and_defaults(folder: Path) -> None:
    write_json(folder / "special_tokens_map.json", {"unk_token": "<s>", "bos_token": "</s>"})
    write_json(
        folder / "tokenizer_config.json",
        {
            "bos_token": SPECIAL[BOS],
            "eos_token": {"content": SPECIAL[END]},
            "add_bos_token": True,
            "chat_template": "{{ messages }}",
            "additional_special_tokens": ["x"],
        },
    )
    tokenizer = read_huggingface(folder).tokenizer
    assert tokenizer.bos_token_id == BOS
    assert tokenizer.eos_token_ids == (EOS, END)
    assert tokenizer.add_bos
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.special_tokens == {
        "unk_token": "<s>",
        "bos_token": SPECIAL[BOS],
        "eos_token": SPECIAL[END],
    }


def test_generation_config_has_the_last_word_on_stopping(folder: Path) -> None:
    write_json(folder / "generation_config.json", {"eos_token_id": [END], "top_p": 0.9})
    checkpoint = read_huggingface(folder)
    assert checkpoint.tokenizer.eos_token_ids == (END,)
    assert checkpoint.generation["top_p"] == 0.9


def test_a_tokenizer_without_bos_adds_none(folder: Path) -> None:
    write_json(folder / "tokenizer_config.json", {"bos_token": None, "add_bos_token": True})
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "bos_token_id": BOS})
    tokenizer = read_huggingface(folder).tokenizer
    assert (tokenizer.bos_token_id, tokenizer.add_bos) == (None, False)


def test_what_tokenizer_json_adds_counts_if_nothing_else_is_said(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "bos_token_id": BOS})
    assert not read_huggingface(folder).tokenizer.add_bos
    rules = json.loads((folder / "tokenizer.json").read_text())
    rules["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
    }
    write_json(folder / "tokenizer.json", rules)
    assert read_huggingface(folder).tokenizer.add_bos


def test_chat_templates_by_rank(folder: Path) -> None:
    listed = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    write_json(folder / "tokenizer_config.json", {"chat_template": listed})
    assert read_huggingface(folder).tokenizer.chat_template == "d"
    write_json(folder / "chat_template.json", {"chat_template": "j"})
    assert read_huggingface(folder).tokenizer.chat_template == "j"
    (folder / "chat_template.jinja").write_text("file: é", encoding="utf-8")
    assert read_huggingface(folder).tokenizer.chat_template == "file: é"


# Refusals


def test_advice_about_pickles_fits_the_model(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="AutoModelForCausalLM"):
        read_huggingface(folder)
    write_json(folder / "config.json", {"model_type": "marian", "is_encoder_decoder": True})
    with pytest.raises(CheckpointError, match="AutoModelForSeq2SeqLM"):
        read_huggingface(folder)


def index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    names: dict[str, Any] = dict(shard(folder))
    change(names)
    write_json(folder / "model.safetensors.index.json", {"weight_map": names})


def break_folder(folder: Path, how: str) -> None:
    """Damage a sound checkpoint in the way called `how`."""
    weights, tokenizer = folder / "model.safetensors", folder / "tokenizer.json"
    settings = folder / "tokenizer_config.json"
    first = "model.norm.weight"
    harms: dict[str, Callable[[], object]] = {
        "empty folder": lambda: [path.unlink() for path in folder.iterdir()],
        "config is not JSON": lambda: (folder / "config.json").write_text("{"),
        "config is a list": lambda: write_json(folder / "config.json", []),
        "config is deep": lambda: (folder / "config.json").write_text('{"a":' + "[" * 99999),
        "config has a key twice": lambda: (folder / "config.json").write_text('{"a":1,"a":2}'),
        "config is not UTF-8": lambda: (folder / "config.json").write_bytes(b"\xff\xfe{}"),
        "no weights": weights.unlink,
        "pickle only": lambda: weights.rename(folder / "pytorch_model.bin"),
        "old pickle": lambda: weights.rename(folder / "consolidated.00.pth"),
        "missing shard": lambda: (
            index(folder, dict),
            (folder / "model-2-of-2.safetensors").unlink(),
        ),
        "shard above": lambda: index(
            folder, lambda names: names.update({first: "../x.safetensors"})
        ),
        "shard absolute": lambda: index(folder, lambda n: n.update({first: "/etc/x.safetensors"})),
        "shard on another drive": lambda: index(
            folder, lambda n: n.update({first: "C:\\x.safetensors"})
        ),
        "shard of another kind": lambda: index(folder, lambda n: n.update({first: "config.json"})),
        "shard is a number": lambda: index(folder, lambda n: n.update({first: 3})),
        "shard is an object": lambda: index(folder, lambda n: n.update({first: {}})),
        "tensor elsewhere": lambda: index(folder, lambda n: n.update({"nothing": n[first]})),
        "empty index": lambda: index(folder, lambda n: n.clear()),
        "no tokenizer": tokenizer.unlink,
        "sentencepiece only": lambda: tokenizer.rename(folder / "tokenizer.model"),
        "vocabulary only": lambda: tokenizer.rename(folder / "vocab.json"),
        "tokenizer is not JSON": lambda: tokenizer.write_text("{"),
        "tokenizer is empty": lambda: tokenizer.write_text("{}"),
        "no default template": lambda: write_json(
            settings, {"chat_template": [{"name": "rag", "template": ""}]}
        ),
        "template is a number": lambda: write_json(settings, {"chat_template": 3}),
        "template is not UTF-8": lambda: (folder / "chat_template.jinja").write_bytes(b"\xff"),
        "eos is text": lambda: write_json(
            folder / "generation_config.json", {"eos_token_id": "</s>"}
        ),
        "eos is negative": lambda: write_json(
            folder / "generation_config.json", {"eos_token_id": [-1]}
        ),
    }
    harms[how]()


REFUSED: dict[str, tuple[type[Exception], str]] = {
    "empty folder": (CheckpointError, "has no config.json"),
    "config is not JSON": (CheckpointError, "config.json is not JSON"),
    "config is a list": (CheckpointError, "config.json is not an object"),
    "config is deep": (CheckpointError, "config.json is nested deeper than 64"),
    "config has a key twice": (CheckpointError, "has the key 'a' twice"),
    "config is not UTF-8": (CheckpointError, "config.json is not UTF-8"),
    "no weights": (CheckpointError, "neither model.safetensors nor model.safetensors.index.json"),
    "pickle only": (CheckpointError, "pytorch_model.bin), which can run any program"),
    "old pickle": (CheckpointError, "consolidated.00.pth), which can run any program"),
    "missing shard": (CheckpointError, "lacks model-2-of-2.safetensors, which"),
    "shard above": (CheckpointError, "'../x.safetensors', which is not a safetensors file of"),
    "shard absolute": (CheckpointError, "'/etc/x.safetensors', which is not"),
    "shard on another drive": (CheckpointError, "which is not a safetensors file of this folder"),
    "shard of another kind": (CheckpointError, "'config.json', which is not"),
    "shard is a number": (CheckpointError, "'3', which is not"),
    "shard is an object": (CheckpointError, "'{}', which is not"),
    "tensor elsewhere": (CheckpointError, "says 'nothing' is in model-"),
    "empty index": (CheckpointError, "has no 'weight_map'"),
    "no tokenizer": (CheckpointError, "has no tokenizer.json"),
    "sentencepiece only": (CheckpointError, "has tokenizer.model but no tokenizer.json"),
    "vocabulary only": (CheckpointError, "save_pretrained"),
    "tokenizer is not JSON": (TokenizerError, "tokenizer.json cannot be used"),
    "tokenizer is empty": (TokenizerError, "tokenizer.json cannot be used"),
    "no default template": (CheckpointError, "['rag'] none is called 'default'"),
    "template is a number": (CheckpointError, "'chat_template' is neither text nor a list"),
    "template is not UTF-8": (CheckpointError, "chat_template.jinja is not UTF-8"),
    "eos is text": (CheckpointError, "'eos_token_id' is '</s>'; it must be a token id"),
    "eos is negative": (CheckpointError, "'eos_token_id' is [-1]"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_refusals(folder: Path, how: str) -> None:
    break_folder(folder, how)
    kind, says = REFUSED[how]
    with pytest.raises(kind) as caught:
        read_huggingface(folder)
    assert says in str(caught.value)
    assert str(folder) in str(caught.value) or ".json" in str(caught.value)
