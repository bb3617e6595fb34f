"""A Model over the toy backend with a byte-level tokenizer: text in, text out, no files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tiny.toy_backend import LogitsOf, ToyBackend, hashed, toy_spec
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from quickdraft.manifest import Manifest, SourceEntry, TokenizerEntry
from quickdraft.runtime.chat import ChatTemplate
from quickdraft.runtime.drafting import Drafting, DraftingSetup
from quickdraft.runtime.model import Model
from quickdraft.runtime.text import Tokenizer

SPECIALS = ("<|end|>", "<|im_start|>", "<|im_end|>", "<s>")
EOS, IM_START, IM_END, BOS = range(256, 260)
VOCAB = 260

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer_json() -> str:
    """A tokenizer of 256 bytes, in order, and the special tokens."""
    letters = {c: i for i, c in enumerate(_byte_letters())}
    library = Library(models.BPE(vocab=letters, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    return library.to_str()


def _byte_letters() -> list[str]:
    """The letter that stands for each byte, GPT-2's table."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in visible]
    table = {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [table[b] for b in range(256)]


def byte_tokenizer(vocab_size: int = VOCAB, **options: Any) -> Tokenizer:
    options.setdefault("eos_token_ids", (EOS, IM_END))
    return Tokenizer(byte_tokenizer_json().encode(), vocab_size, **options)


def toy_manifest(context_length: int = 256, **generation: Any) -> Manifest:
    return Manifest(
        model=toy_spec(VOCAB, context_length),
        roles={"target": ()},
        tokenizer=TokenizerEntry("tokenizer.json", None, BOS, (EOS, IM_END), False),
        files={},
        source=SourceEntry("gguf", "toy", "0" * 64),
        generation=generation,
        written_by={},
    )


def toy_model(
    logits_of: LogitsOf | None = None,
    *,
    context_length: int = 256,
    drafter: str = "auto",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    template: str | None = CHATML,
    **generation: Any,
) -> Model:
    manifest = toy_manifest(context_length, **generation)
    backend = ToyBackend(logits_of or hashed(VOCAB), manifest.model)
    chat = ChatTemplate(template) if template is not None else None
    tokenizer = byte_tokenizer()
    drafting = Drafting.open(
        DraftingSetup(drafter, options or {}, store=False), backend, manifest, tokenizer
    )
    return Model(backend, manifest, tokenizer, chat, drafting=drafting)


def bytes_of(text: str) -> list[int]:
    """Token ids of a text under the byte tokenizer."""
    return list(text.encode())
