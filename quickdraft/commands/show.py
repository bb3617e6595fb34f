"""`quickdraft show`: the facts of a model, as its manifest states them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from quickdraft import strict_json
from quickdraft.bundle import is_bundle, read_manifest
from quickdraft.commands.options import common_options
from quickdraft.commands.output import facts, human_count, human_size, print_json
from quickdraft.errors import BundleError, ModelNotFound
from quickdraft.manifest import Manifest, Variant
from quickdraft.models import store
from quickdraft.models.adapters import adapt, recognise
from quickdraft.models.aliases import ALIASES, Alias
from quickdraft.types import ModelSpec


@click.command()
@click.argument("model")
@common_options
def show(model: str, as_json: bool) -> None:
    """Print the facts of a model.

    MODEL is a bundle folder, a folder that another tool exported, a model of the cache, or an
    alias. Nothing is fetched, and of a bundle no file but the manifest is read.
    """
    manifests = _manifests(_bundles(model))
    alias = ALIASES.get(model)
    if as_json:
        print_json(
            {
                "model": model,
                "alias": None if alias is None else _alias_facts(alias),
                "bundles": [
                    {"folder": str(folder), "size": _size(m), "manifest": strict_json.encode(m)}
                    for folder, m in manifests.items()
                ],
            }
        )
        return
    pages = [facts({"bundle": folder, **_facts(m)}) for folder, m in manifests.items()]
    if not pages and alias is not None:
        words = {**_alias_facts(alias), "size": human_size(alias.size)}
        pages = [facts({**words, "bundle": f"none yet; make it with: quickdraft pull {model}"})]
    click.echo("\n\n".join(pages))


def _manifests(folders: list[Path]) -> dict[Path, Manifest]:
    """The manifests that can be read; of several bundles, one of another version hides none.

    Raises:
        BundleError: none can be read.
    """
    manifests: dict[Path, Manifest] = {}
    errors: list[BundleError] = []
    for folder in folders:
        try:
            manifests[folder] = _manifest(folder)
        except BundleError as error:
            errors.append(error)
    if errors and not manifests:
        raise errors[0]
    for problem in errors:
        click.echo(f"warning: {problem}", err=True)
    return manifests


def _manifest(folder: Path) -> Manifest:
    """That of a bundle, or what it would be for a folder of another tool."""
    if is_bundle(folder) or recognise(folder) is None:
        return read_manifest(folder)
    return adapt(folder).manifest


def _bundles(model: str) -> list[Path]:
    """Folders of a model: bundles, or another tool's; none for an alias that was never used.

    Raises:
        ModelNotFound: the name leads to no bundle.
    """
    try:
        if is_bundle(Path(model)) or recognise(Path(model)) is not None:
            return [Path(model)]
    except (OSError, ValueError):  # too long for a path, or a NUL in it
        pass
    try:
        return [entry.path for entry in store.find(model) if entry.kind == "bundle"]
    except ModelNotFound as error:
        if model in ALIASES:
            return []
        raise ModelNotFound(
            f"{model!r} is neither a bundle folder, nor another tool's export, nor an alias "
            f"({', '.join(ALIASES)}), and {error}"
        ) from None


def _alias_facts(alias: Alias) -> dict[str, Any]:
    return {
        "alias": alias.name,
        "description": alias.description,
        "licence": alias.licence,
        "checkpoint": alias.file,
        "size": alias.size,
        "sha256": alias.sha256,
    }


def _facts(manifest: Manifest) -> dict[str, object]:
    """What people want to know of a bundle, in words."""
    spec, source, tokenizer = manifest.model, manifest.source, manifest.tokenizer
    heads = f"{spec.num_heads[0]} heads over {spec.num_kv_heads[0]} KV heads of {spec.head_dim}"
    windows = [w for w in spec.distinct_windows if w is not None]
    words: dict[str, object] = {
        "architecture": spec.family,
        "parameters": human_count(spec.num_parameters) if spec.num_parameters else "not stated",
        "context": f"{spec.context_length} tokens",
        "layers": f"{spec.num_layers} of width {spec.hidden_size}, {heads}",
        "vocabulary": f"{spec.vocab_size} tokens",
    }
    if windows:
        words["windows"] = ", ".join(f"{w} tokens" for w in windows)
    for role, variants in manifest.roles.items():
        for number, variant in enumerate(variants, start=1):
            words[f"{role} {number}"] = _variant(variant)
            if variant.spec is not None:
                words[f"{role} {number}"] = _part(variant, variant.spec)
    words["chat template"] = "yes" if tokenizer.chat_template else "no"
    words["stop tokens"] = ", ".join(map(str, tokenizer.eos_token_ids)) or "none"
    if manifest.generation:
        words |= _generation(manifest.generation)
    words["licence"] = source.licence or "not stated"
    revision = f" at {source.revision}" if source.revision else ""
    words["source"] = f"{source.kind}, {source.name}{revision}, sha256 {source.fingerprint[:12]}..."
    words["written by"] = ", ".join(f"{k} {v}" for k, v in manifest.written_by.items())
    words["size"] = human_size(_size(manifest))
    for name, entry in manifest.files.items():
        words[f"  {name}"] = human_size(entry.size)
    return words


def _generation(generation: Mapping[str, Any]) -> dict[str, object]:
    """Settings of generation, and which of them do not hold as they stand."""
    from quickdraft.runtime.model_defaults import not_followed, to_be_asked_for

    found: dict[str, object] = {"generation": _pairs(generation)}
    if missing := not_followed(generation):
        found["not supported"] = _pairs(missing)
    if beams := to_be_asked_for(generation):
        found["only on request"] = _pairs(beams)
    return found


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _variant(variant: Variant) -> str:
    layers = ", ".join(map(str, variant.step.hidden_states))
    hidden = f", hidden states after layers {layers}" if layers else ""
    cache = "f16, f32 or int8" if variant.cache.kind == "blocks" else "f32"
    return (
        f"{variant.target_format}, {variant.flavour}, {variant.weight_format} weights, "
        f"{variant.guarantee}, {cache} cache{hidden}"
    )


def _part(variant: Variant, spec: ModelSpec) -> str:
    """A part beside the target, with what training says of it as far as it takes a few words."""
    known = {k: v for k, v in variant.details.items() if isinstance(v, (str, int, float))}
    details = "".join(f", {name} {value}" for name, value in known.items())
    return (
        f"{variant.name}: {variant.target_format}, {variant.flavour}, {variant.weight_format} "
        f"weights, {spec.num_layers} layers of width {spec.hidden_size}{details}"
    )


def _size(manifest: Manifest) -> int:
    return sum(entry.size for entry in manifest.files.values())
