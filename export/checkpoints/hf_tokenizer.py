"""The tokenizer of a Hugging Face folder: tokenizer.json and the files that comment on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from quickdraft.errors import CheckpointError, TokenizerError
from quickdraft.export.checkpoints.base import TokenizerFiles
from quickdraft.export.checkpoints.sentencepiece_families import (
    Folder,
    Rebuilt,
    rebuild_tokenizer,
)

ReadJson = Callable[[str], Mapping[str, Any]]
"""The object in a file of the folder, empty where there is no such file."""

MAX_TOKENIZER_BYTES = 200_000_000

_CONVERT = (
    "convert it once with: AutoTokenizer.from_pretrained(folder).save_pretrained(folder), "
    "from the package transformers"
)


def read_tokenizer_files(
    folder: Path, read_json: ReadJson, config: Mapping[str, Any], generation: Mapping[str, Any]
) -> TokenizerFiles:
    """Collect what tokenising and chat templates need.

    Raises:
        CheckpointError: there is no tokenizer.json, nor SentencePiece files that one can be made
            of, or a file beside it is malformed.
        TokenizerError: tokenizer.json cannot be used.
    """
    settings = read_json("tokenizer_config.json")
    made = _read_tokenizer_json(Folder(folder, read_json, settings, config))
    text = made.tokenizer_json
    tokenizer = _parse(folder, text)
    _check_added(folder, read_json("tokenizer.json"), tokenizer)
    named = _special_tokens({**read_json("special_tokens_map.json"), **settings})
    special = {**made.special, **named}
    bos = _bos(tokenizer, settings, special, config)
    return TokenizerFiles(
        tokenizer_json=text,
        chat_template=_chat_template(folder, read_json, settings),
        bos_token_id=bos,
        eos_token_ids=_eos(tokenizer, special, config, generation),
        add_bos=bos is not None and _adds_bos(tokenizer, settings, bos),
        special_tokens=special,
        source=made.source,
    )


def _read_tokenizer_json(checkpoint: Folder) -> Rebuilt:
    """tokenizer.json, or what stands in for it in the SentencePiece files of some families."""
    folder = checkpoint.path
    path = folder / "tokenizer.json"
    if path.is_file():
        size = path.stat().st_size
        if size > MAX_TOKENIZER_BYTES:
            raise TokenizerError(f"{path} is {size} bytes long; the limit is {MAX_TOKENIZER_BYTES}")
        return Rebuilt(path.read_bytes())
    rebuilt = rebuild_tokenizer(checkpoint)
    if rebuilt is not None:
        return rebuilt
    for other in ("tokenizer.model", "vocab.json", "spiece.model"):
        if (folder / other).is_file():
            raise CheckpointError(
                f"{folder} has {other} but no tokenizer.json, the one form that is read; {_CONVERT}"
            )
    raise CheckpointError(
        f"{folder} has no tokenizer.json; fetch it with the rest of the checkpoint"
    )


def _parse(folder: Path, text: bytes) -> Tokenizer:
    try:
        return Tokenizer.from_buffer(text)
    except BaseException as error:
        # The library raises plain Exception, and its panics are not even that.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TokenizerError(f"{folder / 'tokenizer.json'} cannot be used: {error}") from error
        raise


def _check_added(folder: Path, rules: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Refuse added tokens that the library would drop or number anew without a word."""
    added = rules.get("added_tokens") or []
    for token in added:
        text, number = token["content"], token["id"]
        found = tokenizer.token_to_id(text)
        if not text or found != number:
            raise TokenizerError(
                f"{folder / 'tokenizer.json'}: the added token {text[:80]!r} has the id {number} "
                f"and would be used as {found}; the file is damaged or was edited by hand"
            )


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Named special tokens (`bos_token`, ...), written as text or as an object with `content`."""
    found = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            value = value.get("content")
        if name.endswith("_token") and isinstance(value, str):
            found[name] = value
    return found


def _bos(
    tokenizer: Tokenizer,
    settings: Mapping[str, Any],
    special: Mapping[str, str],
    config: Mapping[str, Any],
) -> int | None:
    """The tokenizer's own word counts; a config also names ids that are never used."""
    if "bos_token" in special:
        return _token_id(tokenizer, special["bos_token"])
    ids = [] if "bos_token" in settings else _ids(config, "bos_token_id", "config.json")
    return ids[0] if ids else None


def _eos(
    tokenizer: Tokenizer,
    special: Mapping[str, str],
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
) -> tuple[int, ...]:
    """Those of generation_config.json; without it, those of the config and the tokenizer."""
    ids = _ids(generation, "eos_token_id", "generation_config.json")
    if not ids:
        ids = _ids(config, "eos_token_id", "config.json")
        named = _token_id(tokenizer, special.get("eos_token"))
        ids += [named] if named is not None else []
    return tuple(dict.fromkeys(ids))


def _token_id(tokenizer: Tokenizer, text: str | None) -> int | None:
    found: int | None = None if text is None else tokenizer.token_to_id(text)
    return found


def _ids(source: Mapping[str, Any], key: str, where: str) -> list[int]:
    value = source.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(each) is not int or each < 0 for each in ids):
        raise CheckpointError(f"{where}: {key!r} is {value!r}; it must be a token id, or several")
    return list(ids)


def _adds_bos(tokenizer: Tokenizer, settings: Mapping[str, Any], bos: int) -> bool:
    """`add_bos_token` where it is said, else what tokenizer.json does with a text."""
    said = settings.get("add_bos_token")
    if isinstance(said, bool):
        return said
    return bool(tokenizer.encode("a").ids[:1] == [bos])


def _chat_template(folder: Path, read_json: ReadJson, settings: Mapping[str, Any]) -> str | None:
    """Newer checkpoints keep it in a file of its own, which wins."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path} is not UTF-8 (byte {error.start})") from error
    template = read_json("chat_template.json").get("chat_template", settings.get("chat_template"))
    if isinstance(template, list):
        template = _default_template(template)
    if template is not None and not isinstance(template, str):
        raise CheckpointError("tokenizer_config.json: 'chat_template' is neither text nor a list")
    return template


def _default_template(templates: list[Any]) -> Any:
    named = {t.get("name"): t.get("template") for t in templates if isinstance(t, Mapping)}
    if "default" not in named:
        raise CheckpointError(
            f"tokenizer_config.json: of the chat templates {sorted(map(str, named))} none is "
            "called 'default'"
        )
    return named["default"]
