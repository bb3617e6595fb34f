"""The two real models against the `gguf` package and transformers."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import time
import unicodedata
from typing import Any

import numpy as np
import pytest
from models_fixture import gguf_path
from tiny.gguf_models import byte_alphabet
from tiny.lines import data_lines, tricky_lines
from tokenizers import Tokenizer, pre_tokenizers

from quickdraft.export.checkpoints.gguf import read_gguf
from quickdraft.export.checkpoints.gguf_blocks import weights
from quickdraft.export.checkpoints.gguf_header import open_file, parse_header

ALIASES = ("smollm2-135m", "qwen2.5-coder-1.5b")
pytestmark = [pytest.mark.models, pytest.mark.timeout(600)]


def _ours(alias: str) -> Tokenizer:
    return Tokenizer.from_buffer(read_gguf(gguf_path(alias)).tokenizer.tokenizer_json)


def _theirs(alias: str) -> Any:
    from transformers import AutoTokenizer

    path = gguf_path(alias)
    return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


def _published(alias: str) -> Any:
    """transformers' tokenizer with what its GGUF reader leaves out put back.

    SmolLM2 was trained with digits cut off one by one before all else; transformers 4.57 gives
    every GGUF of this kind plain byte-level cutting. It also turns the 21 bytes that the
    vocabulary lacks into <|endoftext|>, where the published tokenizer drops them.
    """
    tokenizer = _theirs(alias)
    if alias == "smollm2-135m":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return [*data_lines(2_000), *tricky_lines()]


@functools.cache
def _vocabulary(alias: str) -> frozenset[str]:
    return frozenset(_ours(alias).get_vocab())


def _encodable(alias: str, line: str) -> bool:
    """Whether every byte of the line is a token; 21 bytes are missing in SmolLM2."""
    vocabulary = _vocabulary(alias)
    return all(_ALPHABET[byte] in vocabulary for byte in line.encode())


_ALPHABET = byte_alphabet()
_QWEN_ONLY_OURS = re.compile(r"<\|(?!im_start|im_end|endoftext)|</?tool_call>")


@pytest.mark.torch
@pytest.mark.parametrize("alias", ALIASES)
def test_token_ids_equal_transformers(alias: str, lines: list[str]) -> None:
    ours, theirs = _ours(alias), _published(alias)
    compared = [line for line in lines if _encodable(alias, line)]
    assert len(compared) > 0.95 * len(lines)
    different = [
        line
        for line in compared
        # transformers' GGUF reader knows only 3 of Qwen's 22 special tokens.
        if not (alias.startswith("qwen") and _QWEN_ONLY_OURS.search(line))
        and ours.encode(line, add_special_tokens=False).ids
        != theirs(line, add_special_tokens=False)["input_ids"]
    ]
    assert not different, f"{len(different)} of {len(compared)} lines, first {different[0]!r}"


@pytest.mark.torch
def test_transformers_as_it_is_differs_only_before_digits(lines: list[str]) -> None:
    ours, theirs = _ours("smollm2-135m"), _theirs("smollm2-135m")
    for line in lines:
        letters = (c for c in line if not c.isascii())
        if any(unicodedata.category(c).startswith("N") for c in letters):
            continue  # circled digits, fractions, Roman numerals
        if _encodable("smollm2-135m", line) and not re.search(r"\s\s\d", line):
            ids = ours.encode(line, add_special_tokens=False).ids
            assert ids == theirs(line, add_special_tokens=False)["input_ids"], line


@pytest.mark.parametrize("alias", ALIASES)
def test_decoding_gives_the_text_back(alias: str, lines: list[str]) -> None:
    tokenizer = _ours(alias)
    for line in lines:
        if _encodable(alias, line):
            back = tokenizer.decode(
                tokenizer.encode(line, add_special_tokens=False).ids, skip_special_tokens=False
            )
            # Qwen's published tokenizer composes characters (Unicode NFC) first.
            want = unicodedata.normalize("NFC", line) if alias.startswith("qwen") else line
            assert back == want


@pytest.mark.torch
@pytest.mark.parametrize("alias", ALIASES)
def test_every_format_equals_the_gguf_package(alias: str) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    path = gguf_path(alias)
    data = open_file(path)
    ours = weights(data, parse_header(data, path.name))
    theirs = {item.name: item for item in GGUFReader(path).tensors}
    assert set(ours) == set(theirs)
    for name, weight in ours.items():
        # All tensors of the small model; the first layers of the large one have every format.
        if alias == "smollm2-135m" or re.match(r"blk\.[0-2]\.|output_norm", name):
            want = dequantize(theirs[name].data, theirs[name].tensor_type)
            assert np.array_equal(weight.dense().view(np.uint32), want.view(np.uint32)), name


@pytest.mark.torch
def test_state_dict_and_config_equal_transformers() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    path = gguf_path("smollm2-135m")
    model = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    )
    checkpoint = read_gguf(path)
    state = model.state_dict()
    assert set(state) == {*checkpoint.weights, "lm_head.weight"}
    for name in checkpoint.weights:
        assert np.array_equal(checkpoint.weights[name].dense(), state[name].numpy()), name
    theirs = model.config.to_dict()
    for key in set(checkpoint.config) - {"architectures"}:
        value = checkpoint.config[key]
        want = pytest.approx(theirs[key], rel=1e-6) if isinstance(value, float) else theirs[key]
        assert value == want, key


@pytest.mark.parametrize(
    ("alias", "stops"), [("smollm2-135m", (2, 0)), ("qwen2.5-coder-1.5b", (151645, 151643))]
)
def test_stops_and_specials(alias: str, stops: tuple[int, ...]) -> None:
    files = read_gguf(gguf_path(alias)).tokenizer
    assert files.eos_token_ids == stops
    assert not files.add_bos
    assert files.chat_template is not None
    assert "<|im_start|>" in files.chat_template
    added = json.loads(files.tokenizer_json)["added_tokens"]
    assert len(added) == {"smollm2-135m": 17, "qwen2.5-coder-1.5b": 22}[alias]


@pytest.mark.parametrize(
    ("alias", "megabytes"), [("smollm2-135m", 200), ("qwen2.5-coder-1.5b", 350)]
)
def test_reading_is_quick_small_and_needs_no_torch(alias: str, megabytes: int) -> None:
    path = gguf_path(alias)
    start = time.process_time()
    parse_header(open_file(path), path.name)
    assert time.process_time() - start < 1
    code = (
        "import sys; from pathlib import Path\n"
        "from quickdraft.export.checkpoints.gguf import read_gguf\n"
        "read_gguf(Path(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules and 'gguf' not in sys.modules\n"
        # Not getrusage: what it counts includes this process, from before the exec.
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < megabytes * 1024
