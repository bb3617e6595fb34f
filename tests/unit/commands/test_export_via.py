"""`quickdraft export --via optimum`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny.checkpoint import tiny_tokenizer_json

from quickdraft.cli import cli
from quickdraft.errors import CheckpointError, MissingExtra, OptionError
from quickdraft.models.adapters import via_optimum
from quickdraft.models.adapters.via_optimum import export_via_optimum


def checkpoint(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_bytes(tiny_tokenizer_json())
    return folder


def test_what_cannot_be_exported_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = checkpoint(tmp_path / "model"), tmp_path / "out"
    with pytest.raises(OptionError, match="is a file"):
        export_via_optimum(folder / "config.json", out)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        export_via_optimum(tmp_path, out)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"quickdraft\[optimum\]"):
        export_via_optimum(folder, out)
    monkeypatch.setattr(via_optimum, "require_optimum", lambda: None)
    with pytest.raises(CheckpointError, match="optimum cannot export"):
        export_via_optimum(folder, out)
    assert not out.exists()


def test_it_goes_with_no_option_of_our_own_export(tmp_path: Path) -> None:
    arguments = ["export", str(checkpoint(tmp_path / "model")), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, [*arguments, "--via", "optimum", "--weights", "int4"])
    assert isinstance(result.exception, OptionError) or "leave out" in result.output


@pytest.mark.torch
@pytest.mark.skipif(
    importlib.util.find_spec("optimum") is None, reason="quickdraft[optimum] is not installed"
)
def test_a_checkpoint_of_another_family(tmp_path: Path) -> None:
    import numpy as np
    import torch
    from transformers import CodeGenConfig, CodeGenForCausalLM

    from quickdraft.drafters.tree import Tree
    from quickdraft.models.resolve import resolve
    from quickdraft.runtime.backends.opening import open_backend

    torch.manual_seed(0)
    config = CodeGenConfig(
        vocab_size=330, n_positions=64, n_ctx=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4
    )
    model = CodeGenForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_bytes(tiny_tokenizer_json())
    export_via_optimum(tmp_path / "model", tmp_path / "out")
    bundle = resolve(str(tmp_path / "out"))
    backend = open_backend(bundle.folder, bundle.manifest, "auto", None).backend
    tokens = np.arange(3, 40)
    with torch.no_grad():
        expected = model(torch.tensor(tokens[None])).logits[0].numpy()
    cache, found = backend.new_cache(), []
    for part in np.split(tokens, [9, 10, 14]):
        found.append(backend.step(Tree.chain(part), cache).logits)
        cache.commit(range(len(part)))
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=0, atol=1e-3)
