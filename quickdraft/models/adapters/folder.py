"""What all adapters read: JSON files, the tokenizer, hashes; and the manifest they make of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from quickdraft import filenames, strict_json
from quickdraft.bundle import Bundle
from quickdraft.errors import AdapterError, CheckpointError
from quickdraft.export.checkpoints.hf_tokenizer import read_tokenizer_files
from quickdraft.hashes import HashMemory
from quickdraft.manifest import FileEntry, Manifest, SourceEntry, TokenizerEntry, Variant
from quickdraft.types import ModelSpec, Progress

MAX_JSON_BYTES = 64 << 20
MAX_JSON_DEPTH = 64

_TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


class ExportFolder:
    """A folder of another tool. tool: its name, for messages."""

    def __init__(self, path: Path, tool: str) -> None:
        self.path = path
        self.tool = tool

    def json(self, name: str) -> Mapping[str, Any]:
        """The object in a file, empty where there is no such file.

        Raises:
            AdapterError: it is something else.
        """
        path = self.path / name
        if not path.is_file():
            return {}
        try:
            text = path.read_bytes()
            value = strict_json.loads(text, max_bytes=MAX_JSON_BYTES, max_depth=MAX_JSON_DEPTH)
            if not isinstance(value, dict):
                raise strict_json.JsonProblem("is not an object")
        except strict_json.JsonProblem as problem:
            raise AdapterError(f"{path} {problem}") from None
        except OSError as error:
            raise AdapterError(f"{path} cannot be read: {error.strerror or error}") from error
        return value

    def require(self, name: object, why: str) -> str:
        """The name of a file that must be there.

        Raises:
            AdapterError: it is missing, or the name leads out of the folder.
        """
        if not isinstance(name, str) or filenames.name_problem(name):
            raise AdapterError(f"{self.path}: {str(name)[:120]!r} is not a name of a file ({why})")
        if not (self.path / name).is_file():
            raise AdapterError(f"{self.path} lacks {name}, {why}; export or fetch it again")
        return name

    def refuse(self, what: str, instead: str = "export its checkpoint with quickdraft") -> None:
        """Say that a sound export is of a kind that no adapter opens.

        Raises:
            AdapterError: always.
        """
        raise AdapterError(
            f"{self.path} is an export of {self.tool}, but {what}, which no adapter opens; "
            f"{instead}"
        )

    def tokenizer(
        self, config: Mapping[str, Any], generation: Mapping[str, Any], hint: str = ""
    ) -> TokenizerEntry:
        """The tokenizer and chat template of the folder.

        Raises:
            AdapterError: there is no tokenizer.json. TokenizerError: it cannot be used.
        """
        if not (self.path / "tokenizer.json").is_file():
            raise AdapterError(
                f"{self.path} has no tokenizer.json{hint}; put the tokenizer.json of the "
                "checkpoint there, and its tokenizer_config.json"
            )
        try:
            files = read_tokenizer_files(self.path, self.json, config, generation)
        except CheckpointError as error:
            raise AdapterError(str(error)) from error
        template = None
        if files.chat_template is not None:
            template = next(name for name in _TEMPLATES if self._has_template(name))
        return TokenizerEntry(
            file="tokenizer.json",
            chat_template=template,
            bos_token_id=files.bos_token_id,
            eos_token_ids=files.eos_token_ids,
            add_bos=files.add_bos,
            special_tokens=files.special_tokens,
        )

    def _has_template(self, name: str) -> bool:
        if name.endswith(".jinja"):
            return (self.path / name).is_file()
        return self.json(name).get("chat_template") is not None

    def bundle(
        self,
        spec: ModelSpec,
        variant: Variant,
        tokenizer: TokenizerEntry,
        generation: Mapping[str, Any],
        progress: Progress | None,
    ) -> Bundle:
        """The bundle: every file that is used, with its hash.

        Raises:
            AdapterError: a file cannot be read.
        """
        names = [*variant.files, tokenizer.file]
        if tokenizer.chat_template is not None:
            names.append(tokenizer.chat_template)
        files = self._hashed(dict.fromkeys(names), progress)
        told = "\n".join(sorted(files[name].sha256 for name in variant.files))
        source = SourceEntry(
            self.tool, self.path.resolve().name, hashlib.sha256(told.encode()).hexdigest()
        )
        manifest = Manifest(
            spec, {"target": (variant,)}, tokenizer, files, source, generation, {self.tool: "?"}
        )
        return Bundle(self.path, manifest)

    def _hashed(self, names: Iterable[str], progress: Progress | None) -> dict[str, FileEntry]:
        sizes = {name: (self.path / name).stat().st_size for name in names}
        done, total = 0, sum(sizes.values())

        def count(size: int) -> None:
            nonlocal done
            done += size
            if progress is not None:
                progress("verify", done, total)

        found = {}
        with HashMemory() as memory:
            for name, size in sizes.items():
                try:
                    digest = memory.hash_file(self.path / name, on_bytes=count)
                except OSError as error:
                    reason = error.strerror or error
                    raise AdapterError(f"{self.path / name} cannot be read: {reason}") from error
                found[name] = FileEntry(size, digest)
        return found


def whole(config: Mapping[str, Any], where: str, *keys: str, least: int = 1) -> int:
    """The number under the first of `keys` that a config has.

    Raises:
        AdapterError: it has none, or no whole number of at least `least`.
    """
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise AdapterError(f"{where}: {key!r} is {value!r}; it must be a whole number")
        return value
    raise AdapterError(f"{where} lacks {keys[0]!r}, which an adapter needs")
