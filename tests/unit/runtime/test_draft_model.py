"""A bundle as the draft model of another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny.models import write_tiny_model
from tiny.toy_backend import ToyBackend, hashed, toy_spec
from tiny.toy_model import byte_tokenizer, toy_manifest

from quickdraft.bundle import open_bundle
from quickdraft.drafters.tree import Tree
from quickdraft.errors import DeviceError, InputError, ModelNotFound, OptionError
from quickdraft.manifest import Manifest
from quickdraft.runtime.draft_model import BackendDraftModel, open_draft_model
from quickdraft.runtime.drafting import bundle_key
from quickdraft.runtime.text import Tokenizer


@pytest.mark.parametrize("own", [12, 16, 20])
def test_logits_have_the_vocabulary_of_the_target(own: int) -> None:
    """The matrices of a family's models are padded to different sizes."""
    logits = hashed(own)
    model = BackendDraftModel(ToyBackend(logits, toy_spec(own, 64)), 16)
    cache = model.new_cache()
    found = model.logits(Tree.chain([1, 2, 3]), cache, [0, 2])
    assert found.shape == (2, 16)
    common = min(own, 16)
    assert (found[1, :common] == logits((1, 2, 3))[:common]).all()
    assert (found[:, common:] == -np.inf).all()
    assert (model.vocab_size, model.context_length) == (common, 64)
    assert cache.staged == 3


def target(folder: Path) -> tuple[Manifest, Tokenizer]:
    manifest = write_tiny_model(folder, formats=("reference",))
    vocab_size = manifest.model.vocab_size
    return manifest, Tokenizer.from_entry(folder, manifest.tokenizer, vocab_size)


def test_a_bundle_drafts_for_another(tmp_path: Path) -> None:
    manifest, tokenizer = target(tmp_path / "target")
    other = write_tiny_model(tmp_path / "draft", formats=("reference",), num_hidden_layers=1)

    def find(name: str, backend: str) -> tuple[Path, Manifest]:
        assert (name, backend) == ("smaller", "reference")
        return tmp_path / "draft", open_bundle(tmp_path / "draft").manifest

    model = open_draft_model("smaller", "reference", find, manifest, tokenizer)
    found = model.logits(Tree.chain([5, 6]), model.new_cache(), [1])
    assert found.shape == (1, manifest.model.vocab_size)
    assert bundle_key(manifest) != bundle_key(other)
    model.close()


def test_a_draft_model_on_a_device_of_its_own(tmp_path: Path) -> None:
    """The name leads to the bundle with its device, and to the backend."""
    manifest, tokenizer = target(tmp_path / "target")
    write_tiny_model(tmp_path / "draft", formats=("onnx",), num_hidden_layers=1)

    def find(name: str, backend: str) -> tuple[Path, Manifest]:
        assert backend.startswith("onnxruntime:")
        return tmp_path / "draft", open_bundle(tmp_path / "draft").manifest

    model = open_draft_model("smaller", "onnxruntime:CPU", find, manifest, tokenizer)
    found = model.logits(Tree.chain([5, 6]), model.new_cache(), [1])
    assert found.shape == (1, manifest.model.vocab_size)
    model.close()
    with pytest.raises(DeviceError, match="no device 'Gadget'"):
        open_draft_model("smaller", "onnxruntime:Gadget", find, manifest, tokenizer)
    with pytest.raises(OptionError, match="unknown backend 'onnxrt'"):
        open_draft_model("smaller", "onnxrt:CPU", find, manifest, tokenizer)


def test_a_model_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    manifest, tokenizer = target(tmp_path / "target")
    folder = tmp_path / "other"
    folder.mkdir()
    text = (tmp_path / "target" / "tokenizer.json").read_text(encoding="utf-8")
    swapped = text.replace('"a":', '"\0":', 1).replace('"b":', '"a":', 1).replace('"\0":', '"b":')
    assert swapped != text
    (folder / "tokenizer.json").write_text(swapped, encoding="utf-8")
    with pytest.raises(InputError, match=r"other cannot draft for .*tokenizer has \d+ for '[ab]'"):
        open_draft_model("other", "auto", lambda *_: (folder, manifest), manifest, tokenizer)


def test_tokenizers_of_other_sizes_are_told_apart() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.difference(byte_tokenizer()) is None
    bigger = byte_tokenizer(300)
    bigger._special.add_tokens(["more"])
    assert "has 261 tokens, not 260" in (tokenizer.difference(bigger) or "")


def test_a_name_that_leads_nowhere_is_passed_on(tmp_path: Path) -> None:
    manifest, tokenizer = toy_manifest(), byte_tokenizer()

    def find(name: str, backend: str) -> tuple[Path, Manifest]:
        raise ModelNotFound(f"there is no model {name!r}")

    with pytest.raises(ModelNotFound, match="'nowhere'"):
        open_draft_model("nowhere", "auto", find, manifest, tokenizer)
    with pytest.raises(OptionError, match=r"open the target with quickdraft\.load"):
        open_draft_model("nowhere", "auto", None, manifest, tokenizer)
