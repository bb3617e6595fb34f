"""How text is cut and normalised before BPE, by the word in `tokenizer.ggml.pre`.

The patterns are data of the published tokenizers (their tokenizer.json files).
"""

from __future__ import annotations

from typing import Any

from quickdraft.errors import CheckpointError, UnsupportedModel

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_WITH_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER_END = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER_END = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"

_ONE_DIGIT = f"{_CONTRACTIONS}|{_WORD}|\\p{{N}}|{_REST}"
_THREE_DIGITS = f"{_CONTRACTIONS}|{_WORD}|\\p{{N}}{{1,3}}|{_REST}"
_TEKKEN = f"{_LOWER_END}|{_UPPER_END}|\\p{{N}}|{_REST_WITH_SLASH}"
_GPT_4O = (
    f"{_LOWER_END}{_CONTRACTIONS}?|{_UPPER_END}{_CONTRACTIONS}?|\\p{{N}}{{1,3}}|{_REST_WITH_SLASH}"
)

_SPLIT_BY_PATTERN = {
    "qwen2": _ONE_DIGIT,
    "deepseek-r1-qwen": _ONE_DIGIT,
    "stablelm2": _ONE_DIGIT,
    "llama-bpe": _THREE_DIGITS,
    "llama3": _THREE_DIGITS,
    "llama-v3": _THREE_DIGITS,
    "dbrx": _THREE_DIGITS,
    "smaug-bpe": _THREE_DIGITS,
    "tekken": _TEKKEN,
    "gpt-4o": _GPT_4O,
}
_GPT_2_RULE = frozenset({"gpt-2", "olmo", "phi-2", "mpt"})
_DIGITS_THEN_GPT_2_RULE = frozenset({"smollm", "starcoder", "refact"})

IGNORE_MERGES = frozenset({"llama-bpe", "llama3", "llama-v3", "tekken"})
"""A piece that is a token is taken whole; these models also start texts with the bos token."""

COMPOSES_FIRST = frozenset({"qwen2", "deepseek-r1-qwen", "stablelm2", "olmo"})
"""Unicode NFC comes first, so decoding gives the composed form of a text."""

_DEFAULT_WORDS = {"qwen2": "qwen2", "qwen3": "qwen2", "gptneox": "olmo"}
"""What files from before the word existed mean, by architecture; all others mean GPT-2's rule."""


def pre_tokenizer_word(word: object, architecture: str, file: str) -> str:
    """The word that says how text is cut, checked.

    Raises:
        CheckpointError: the word is not text, or a Llama 3 file was converted before it existed.
        UnsupportedModel: a word that is not implemented.
    """
    if word is None or word == "default":
        if architecture == "llama":
            raise CheckpointError(
                f"{file}: tokenizer.ggml.pre is missing, so text cannot be cut as the model "
                "learned it; use a file converted after April 2024"
            )
        return _DEFAULT_WORDS.get(architecture, "gpt-2")
    if not isinstance(word, str):
        raise CheckpointError(f"{file}: tokenizer.ggml.pre is not text")
    known = _SPLIT_BY_PATTERN.keys() | _GPT_2_RULE | _DIGITS_THEN_GPT_2_RULE
    if word not in known:
        raise UnsupportedModel(
            f"{file}: tokenizer.ggml.pre is {word[:80]!r}; supported are {', '.join(sorted(known))}"
        )
    return word


def byte_level_rule(word: str, prefix: bool) -> dict[str, Any]:
    """The `pre_tokenizer` of a tokenizer.json. prefix: texts start with an added space."""
    if word in _SPLIT_BY_PATTERN:
        pattern = {"Regex": _SPLIT_BY_PATTERN[word]}
        split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        return _sequence("pretokenizers", split, _byte_level(prefix, use_regex=False))
    if word in _DIGITS_THEN_GPT_2_RULE:
        digits = {"type": "Digits", "individual_digits": True}
        return _sequence("pretokenizers", digits, _byte_level(prefix, use_regex=True))
    return _byte_level(prefix, use_regex=True)


def sentencepiece_normaliser(prefix: bool) -> dict[str, Any]:
    """Spaces become visible marks. prefix: texts start with one."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    if not prefix:
        return replace
    return _sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, replace)


def sentencepiece_decoder(prefix: bool) -> dict[str, Any]:
    """The way back: marks to spaces, byte tokens to bytes, and the prefix off again."""
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return _sequence("decoders", *steps)


def _byte_level(prefix: bool, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": prefix,
        "trim_offsets": False,
        "use_regex": use_regex,
    }


def _sequence(name: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", name: list(steps)}
