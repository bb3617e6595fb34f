"""The one in-memory form of a checkpoint: every reader returns it, every architecture reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from quickdraft.errors import CheckpointError
from quickdraft.export.weights import Blocked, Dense, Weight
from quickdraft.manifest import SourceEntry


class WeightMap(Mapping[str, Weight]):
    """Weights by their Hugging Face names, remembering which were asked for, and which loaded.

    on_load: called before a weight is loaded, for progress.
    """

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        self._weights = dict(weights)
        self.used: set[str] = set()
        self.loaded: set[str] = set()
        self.on_load: Callable[[], None] | None = None

    def __getitem__(self, name: str) -> Weight:
        if name not in self._weights:
            raise CheckpointError(f"the checkpoint lacks the tensor {name!r}")
        self.used.add(name)
        weight = self._weights[name]
        return replace(weight, load=lambda: self._load(weight))

    def _load(self, weight: Weight) -> Dense | Blocked:
        self.loaded.add(weight.name)
        if self.on_load is not None:
            self.on_load()
        return weight.load()

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def expect(self, name: str, shape: tuple[int, ...]) -> Weight:
        """The weight `name`, checked to have `shape`."""
        weight = self[name]
        if weight.shape != shape:
            raise CheckpointError(
                f"the tensor {name!r} has shape {list(weight.shape)}; the config asks for "
                f"{list(shape)}"
            )
        return weight


@dataclass(frozen=True)
class SourceTokenizer:
    """What cuts the texts that an encoder reads, where that is not what cuts answers.

    tokenizer_json: as in TokenizerFiles. token_ids: the model's id of each of its own.
    """

    tokenizer_json: bytes
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class TokenizerFiles:
    """tokenizer_json: the bytes of a `tokenizer.json`. Ids are None where the model has none.

    add_bos: whether the text of a plain prompt starts with the bos token. special_tokens: the
    text of named special tokens (`bos_token`, `eos_token`, ...) as chat templates see them. source:
    another tokenizer for what an encoder reads.
    """

    tokenizer_json: bytes
    chat_template: str | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    add_bos: bool
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    source: SourceTokenizer | None = None


@dataclass(frozen=True)
class Checkpoint:
    """config: as in Hugging Face's config.json, whatever the file format was. weights: under
    Hugging Face names and row orders. generation: as in generation_config.json."""

    config: Mapping[str, Any]
    weights: WeightMap
    tokenizer: TokenizerFiles
    generation: Mapping[str, Any]
    source: SourceEntry
