"""`quickdraft.load`: from a name to a model that answers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quickdraft.types import Progress

if TYPE_CHECKING:
    from quickdraft.manifest import Manifest
    from quickdraft.runtime.beside import Beside
    from quickdraft.runtime.devices import Placement
    from quickdraft.runtime.drafting import DraftingSetup
    from quickdraft.runtime.model import Model


def load(
    path_or_name: str | Path,
    *,
    device: str = "auto",
    drafter: str = "auto",
    drafter_options: Mapping[str, Mapping[str, Any]] | None = None,
    store: bool = True,
    backend: str = "auto",
    threads: int | None = None,
    weights: str | None = None,
    kv_cache: str | None = None,
    prefill: str = "exact",
    offline: bool = False,
    progress: Progress | None = None,
) -> Model:
    """Open a model, fetching and exporting it first if it was never used here.

        with quickdraft.load("smollm2-135m") as model:
            print(model.generate("The capital of France is", max_new_tokens=8).text)

    path_or_name: a built-in alias, a bundle or checkpoint folder, a `.gguf` file, or `owner/name`
    (`@revision`, `:file.gguf`) on the Hugging Face hub. device: `auto`, `cpu`, `gpu`, `npu`, a name
    of `quickdraft device list`, or `simulated:` and such a name. drafter: `none`, or names of the
    registry between commas, where `auto` stands for those that need no model. drafter_options: by
    name of the drafter, by name of the option. store: whether drafters may keep what they learn.
    backend: `auto`, or a name of the registry, after which `:` may name a device of its own.
    weights: `auto`, `gguf`, `fp32`, `fp16`, `int8`, `int4`, `int4-g128` or `int4-channel`;
    kv_cache: `f32`, `f16` or `int8`; None leaves both to the device's profile. prefill: of answers
    that do not say, see GenerationConfig; what it needs is loaded at once. offline: use only what
    is there. progress: called with stage, what is done, total or 0.

    Raises:
        InputError: the name, device or an option cannot be used; a subclass says which and why.
        DownloadError, StorageError: it could not be fetched or kept.
        MissingExtra: the backend needs a package that is not installed.
    """
    started = time.perf_counter()
    from quickdraft.models.placed import bundle_on
    from quickdraft.runtime.drafting import DraftingSetup
    from quickdraft.runtime.model import Model

    placement, name = _place(device, backend, kv_cache, prefill), str(path_or_name)
    find = partial(_find, placement, progress, offline)
    drafting = DraftingSetup(drafter, drafter_options or {}, store, find)
    how = weights, kv_cache, progress, offline, _beside(prefill, drafting)
    placement, bundle = bundle_on(placement, name, *how)
    model = Model.open(
        bundle.folder,
        manifest=bundle.manifest,
        backend=placement.backend,
        drafting=drafting,
        threads=threads if threads is not None else placement.threads,
        kv_cache=placement.kv_to_open(bundle.manifest),
        name=name,
        progress=progress,
    )
    model.placement = placement.settled(model.backend).opened(model)
    _use_prefill(model, prefill)
    model.load_ms = 1e3 * (time.perf_counter() - started)  # fetching and exporting count as well
    return model


def _place(device: str, backend: str, kv_cache: str | None, prefill: str) -> Placement:
    """Where the model shall run; bad values are refused before anything is fetched.

    Raises:
        DeviceError: the device is not here. OptionError: another value is bad.
    """
    from quickdraft.kvcache.blocked import check_kv_type
    from quickdraft.runtime.devices import place
    from quickdraft.runtime.prediction import Prefill

    if kv_cache is not None:
        check_kv_type(kv_cache)
    Prefill.parse(prefill)
    return place(device, backend)


def _beside(prefill: str, drafting: DraftingSetup) -> Beside:
    """What runs beside the target, and so needs memory."""
    from quickdraft.runtime.beside import Beside
    from quickdraft.runtime.prediction import Prefill

    return Beside(Prefill.parse(prefill), drafting)


def _use_prefill(model: Model, prefill: str) -> None:
    """Make it the model's, which is closed where that fails."""
    try:
        if prefill != "exact":
            model.use_prefill(prefill)
    except BaseException:
        model.close()
        raise


def _find(
    placement: Placement, progress: Progress | None, offline: bool, name: str, backend: str
) -> tuple[Path, Manifest]:
    """The bundle of a model that drafts; where it has to be made, in the format that its backend
    opens, and in the form of the target's device if that is where it runs."""
    from quickdraft.models.formats import default_formats
    from quickdraft.models.placed import preferred_on
    from quickdraft.models.resolve import resolve

    beside = backend.partition(":")[0] == placement.backend.partition(":")[0]
    formats = default_formats(backend, placement.flavour if beside else None)
    found = resolve(
        name,
        formats=formats,
        preferred=preferred_on(placement, formats) if beside else None,
        progress=progress,
        offline=offline,
    )
    return found.folder, found.manifest
