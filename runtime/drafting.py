"""The drafters of a loaded model: which ones, opened once, shared by its conversations."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quickdraft.device_profiles.curve import Curve
from quickdraft.drafters.acceptance import AcceptanceTable
from quickdraft.drafters.base import DrafterContext, DrafterSource, DraftModel, HeadModel
from quickdraft.drafters.controller import Controller
from quickdraft.errors import OptionError
from quickdraft.hashes import cache_root
from quickdraft.manifest import Manifest
from quickdraft.registry import DRAFTERS, lookup
from quickdraft.runtime.backends.base import Backend
from quickdraft.runtime.backends.opening import parts
from quickdraft.runtime.draft_model import BundleOpener, open_draft_model
from quickdraft.runtime.heads import BackendHead
from quickdraft.runtime.text import Tokenizer

AUTO = ("prompt_lookup", "ngram_store", "recycling", "trigram")
"""The drafters without a model: together they cost a few percent of a step."""
_OF_SOURCES = {"prompt_lookup": "source_lookup"}
"""What `auto` has in their place for an encoder-decoder model."""

_AUTO = "auto"

NO_STORE = "QUICKDRAFT_NO_STORE"


@dataclass(frozen=True)
class DraftingSetup:
    """What somebody wants drafted how.

    drafter: `none`, or names of the registry between commas; `auto` stands for those without a
    model and those that come with the target, in its bundle. options: by name of the drafter, by
    name of the option. store: whether drafters may keep what they learn for later runs (never with
    QUICKDRAFT_NO_STORE=1), or the folder for it, where it is not the user's. open_bundle: finds
    the bundles of draft models. open_head: loads a part of the target's bundle (see
    DrafterContext).

    Raises:
        OptionError: a name is unknown or comes twice, or an option is for a drafter not asked for.
    """

    drafter: str = "auto"
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    store: bool | Path = True
    open_bundle: BundleOpener | None = None
    open_head: Callable[[str], BackendHead] | None = None

    def __post_init__(self) -> None:
        names = self.names
        for name in names:
            lookup("drafter", DRAFTERS, name)
            if names.count(name) > 1:
                raise OptionError(f"drafter is {self.drafter!r}, which names {name!r} twice")
        for name in self.options:
            lookup("drafter", DRAFTERS, name)
        if _AUTO not in self._asked:
            self._check_options(names)

    @property
    def names(self) -> tuple[str, ...]:
        """The drafters, in order, without those that only a bundle adds to `auto`."""
        names: list[str] = []
        for name in self._asked:
            names += AUTO if name == _AUTO else (name,)
        return tuple(names)

    def names_in(
        self, manifest: Manifest, backend: str, parts_open: bool = False
    ) -> tuple[str, ...]:
        """The drafters for the target of a bundle on a backend: `auto` begins with the drafts that
        are in it under the names of their kinds, without those that are named beside `auto`.
        parts_open: whether parts will be opened even though there is no `open_head` yet.

        Raises:
            OptionError: an option is for a drafter that is not among them.
        """
        names = self.names
        if _AUTO in self._asked and manifest.model.source is not None:
            named = self._asked
            better = [name if name in named else _OF_SOURCES.get(name, name) for name in names]
            names = tuple(dict.fromkeys(better))
        if _AUTO in self._asked and (parts_open or self.open_head is not None):
            there = {variant.name for variant in parts(manifest, backend, "drafter")}
            own = [kind for kind in DRAFTERS if there & {kind, f"{kind}-1"} and kind not in names]
            names = (*own, *names)
        self._check_options(names)
        return names

    @property
    def _asked(self) -> tuple[str, ...]:
        if self.drafter == "none":
            return ()
        return tuple(name.strip() for name in self.drafter.split(","))

    def _check_options(self, names: Sequence[str]) -> None:
        for name in self.options:
            if name not in names:
                raise OptionError(
                    f"there is an option of the drafter {name!r}, and drafter is {self.drafter!r}; "
                    f"add {name} to it, or leave the option out"
                )


class Drafting:
    """Opened drafters, and what is learnt about them, for one target.

    lock: held while anything that conversations share is used.
    """

    def __init__(
        self, sources: Sequence[DrafterSource], backend: Backend, curve: Curve | None = None
    ) -> None:
        """curve: what a step of the target costs; None where nothing is planned."""
        self.sources = tuple(sources)
        self.names = tuple(source.name for source in sources)
        self.spec = backend.spec
        self.curve = curve
        self.chains_only = backend.trees != "exact"
        self.top = max((source.top for source in sources), default=0)
        self.hidden = tuple(sorted({layer for source in sources for layer in source.hidden}))
        table = AcceptanceTable([source.grades for source in sources])
        self.controller = Controller(curve, self.sources, table)
        self.lock = threading.Lock()
        self._closing = ExitStack()
        for source in sources:
            self._closing.callback(source.close)

    @classmethod
    def open(
        cls,
        setup: DraftingSetup,
        backend: Backend,
        manifest: Manifest,
        tokenizer: Tokenizer,
        curve: Curve | None = None,
    ) -> Drafting:
        """Open the drafters of a setup for a loaded target.

        Raises:
            OptionError: an option of a drafter is unknown or has a bad value.
            InputError: a draft model or head cannot be used for this target.
        """
        key = bundle_key(manifest)
        with ExitStack() as stack:

            def open_model(name: str, backend: str) -> DraftModel:
                model = open_draft_model(name, backend, setup.open_bundle, manifest, tokenizer)
                stack.callback(model.close)
                return model

            def open_head(name: str) -> HeadModel:
                assert setup.open_head is not None  # offered only then  # noqa: S101
                head = setup.open_head(name)
                stack.callback(head.close)
                return head

            context = DrafterContext(
                vocab_size=backend.spec.vocab_size,
                context_length=backend.spec.context_length,
                key=key,
                store=store_folder(key, setup.store),
                open_model=open_model,
                open_head=None if setup.open_head is None else open_head,
                auxiliaries=tuple(v.name for v in parts(manifest, backend.name, "auxiliary")),
            )
            sources = []
            for name in setup.names_in(manifest, backend.name):
                opener = lookup("drafter", DRAFTERS, name)
                source = opener(context, setup.options.get(name, {}))
                stack.callback(source.close)
                sources.append(source)
            made = cls(sources, backend, curve)
            made._closing = stack.pop_all()
        return made

    @property
    def nbytes(self) -> int:
        """Memory that drafters hold for all conversations together."""
        return sum(source.nbytes() for source in self.sources)

    def __enter__(self) -> Drafting:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Save what drafters keep, and release them. Calling twice is harmless."""
        with self.lock:
            self._closing.close()


def bundle_key(manifest: Manifest) -> str:
    """Tells a bundle from any other: a hash of the hashes of its files."""
    entries = sorted(f"{name} {entry.sha256}" for name, entry in manifest.files.items())
    told = "\n".join([manifest.source.fingerprint, *entries])
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def store_folder(key: str, store: bool | Path = True) -> Path | None:
    """Where drafters keep what they learn about a bundle; None if they may not. store: see
    DraftingSetup."""
    if not store or os.environ.get(NO_STORE, "") not in ("", "0"):
        return None
    return store if isinstance(store, Path) else cache_root() / "drafting" / key
