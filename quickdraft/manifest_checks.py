"""What a manifest may say about its roles: every name that a step needs, and no others."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import TYPE_CHECKING

from quickdraft import strict_json
from quickdraft.errors import BundleError
from quickdraft.step_layout import ADAPTED, check_layout
from quickdraft.types import ModelSpec

if TYPE_CHECKING:
    from quickdraft.manifest import Manifest, Role, Variant

PART_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Names of parts stand in options and messages."""


def check_roles(manifest: Manifest) -> None:
    """Everything that is named must be listed, so that everything that is read is hashed.

    Raises:
        BundleError: something is not, or a variant says something impossible.
    """
    if not manifest.roles.get("target"):
        raise BundleError("roles has no variant for 'target', so there is no model to run")
    used = [("tokenizer.file", manifest.tokenizer.file)]
    if manifest.tokenizer.chat_template is not None:
        used.append(("tokenizer.chat_template", manifest.tokenizer.chat_template))
    own = manifest.tokenizer.source
    if own is not None:
        if manifest.model.source is None:
            raise BundleError("tokenizer.source is for what an encoder reads, and there is none")
        used += [("tokenizer.source.file", own.file), ("tokenizer.source.token_map", own.token_map)]
    for role, variants in manifest.roles.items():
        for number, variant in enumerate(variants):
            where = f"roles[{role!r}][{number}]"
            used += [(f"{where}.files", name) for name in variant.files]
            if variant.token_map is not None:
                used.append((f"{where}.token_map", variant.token_map))
            _check_variant(variant, where)
            if role == "target":
                _check_target(manifest.model, variant, where)
            else:
                _check_part(role, variant, where)
        _check_part_names(variants, role)
    for where, name in used:
        if name not in manifest.files:
            raise BundleError(f"{where} names {name[:120]!r}, which files does not list")
    _check_token_maps(manifest)
    _check_memories(manifest)


_OF_PARTS = ("name", "spec", "target_cache", "features", "token_map")


def _check_target(spec: ModelSpec, variant: Variant, where: str) -> None:
    """What a step of the target needs that only the facts of the model tell."""
    for name in _OF_PARTS:
        if getattr(variant, name):
            raise BundleError(f"{where} has {name!r}, which is for parts beside the target")
    _check_step(variant, spec, where, is_predictor=False)
    missing = set(spec.windows) - set(variant.step.biases)
    if variant.cache.kind not in ("blocks", *ADAPTED) and missing:
        raise BundleError(
            f"{where}.step.biases has no input for the attention window "
            f"{missing.pop() or strict_json.NONE_KEY}"
        )


def _check_part(role: Role, variant: Variant, where: str) -> None:
    """What a part beside the target must say, and what only a predictor may."""
    if variant.spec is None:
        raise BundleError(f"{where} lacks a spec, which every part beside the target has")
    check_windows(variant.spec, f"{where}.spec")
    if not PART_NAME.fullmatch(variant.name):
        raise BundleError(
            f"{where}.name is {variant.name[:120]!r}; it must be 1 to 100 letters, digits, dots, "
            "dashes or underscores, a letter or digit first"
        )
    if role == "encoder":
        _check_encoder(variant, where)
        return
    is_predictor = role == "predictor"
    if is_predictor != (variant.target_cache is not None):
        verb = "lacks" if is_predictor else "has"
        raise BundleError(f"{where} {verb} a target_cache, the cache that a predictor writes")
    if is_predictor and variant.token_map is not None:
        raise BundleError(f"{where} has a token_map, and a predictor puts out no tokens")
    if variant.target_cache is not None:
        check_layout(variant.target_cache, f"{where}.target_cache")
        if variant.target_cache.kind != variant.cache.kind:
            raise BundleError(
                f"{where} has a cache of {variant.cache.kind!r} and writes one of "
                f"{variant.target_cache.kind!r}; they must be of one kind"
            )
    _check_step(variant, variant.spec, where, is_predictor=is_predictor)


def _check_encoder(variant: Variant, where: str) -> None:
    """An encoder reads a source and puts out a memory, nothing else."""
    if variant.memory is None:
        raise BundleError(f"{where} lacks a memory, which an encoder puts out")
    if variant.token_map is not None or variant.target_cache is not None:
        raise BundleError(f"{where} has a token_map or target_cache, which no encoder has")
    step, reads = variant.step, ("features" if variant.features else "tokens")
    blocks, static = variant.memory.kind == "blocks", variant.flavour == "static"
    allowed = {"positions", "hidden_states", reads, *(["source"] if blocks or static else [])}
    for field_ in fields(step):
        if field_.name not in allowed and getattr(step, field_.name):
            raise BundleError(f"{where}.step has {field_.name!r}, which this encoder cannot have")
    for name in sorted(allowed - {"hidden_states", *(["source"] if static else [])}):
        if not getattr(step, name):
            raise BundleError(f"{where}.step lacks {name!r}, which this encoder reads")


def _check_memories(manifest: Manifest) -> None:
    """A target attends to memories as the encoder of its own format and flavour puts them out."""
    encoders = {(v.target_format, v.flavour): v for v in manifest.roles.get("encoder", ())}
    for variant in manifest.roles["target"]:
        encoder = encoders.get((variant.target_format, variant.flavour))
        form = f"{variant.target_format} {variant.flavour}"
        if (variant.memory is None) != (manifest.model.source is None):
            raise BundleError(f"the {form} target and model.source disagree on whether it encodes")
        if variant.memory is None:
            continue
        check_layout(variant.memory, f"memory of the {form} target")
        if encoder is None or encoder.memory is None:
            raise BundleError(f"roles has no encoder for the {form} target")
        check_layout(encoder.memory, f"memory of the {form} encoder")
        if encoder.memory.kind != variant.memory.kind:
            raise BundleError(f"the {form} encoder puts out another memory than its target reads")


def _check_part_names(variants: tuple[Variant, ...], role: Role) -> None:
    seen: set[tuple[str, str, str]] = set()
    for variant in variants:
        key = (variant.target_format, variant.flavour, variant.name)
        if role != "target" and key in seen:
            raise BundleError(f"roles[{role!r}] has two parts {variant.name!r} of one flavour")
        seen.add(key)


def _check_token_maps(manifest: Manifest) -> None:
    for role, variants in manifest.roles.items():
        for variant in variants:
            if variant.token_map is None or variant.spec is None:
                continue
            size, rows = manifest.files[variant.token_map].size, variant.spec.vocab_size
            if size != 4 * rows:
                raise BundleError(
                    f"the token map {variant.token_map!r} of the {role} {variant.name!r} is {size} "
                    f"bytes long; a vocabulary of {rows} needs {4 * rows}"
                )


_HEAD = ("full_logits", "top_values", "top_ids", "log_sum", "top")


def _check_step(variant: Variant, spec: ModelSpec, where: str, *, is_predictor: bool) -> None:
    """The names that a step has, and no others: a name that is never bound, or never read, is a
    mistake that would show as wrong answers."""
    step, blocks = variant.step, variant.cache.kind == "blocks"
    slots = variant.cache.kind == "slots"
    kind = f"its cache is {variant.cache.kind!r}"
    if (variant.flavour == "adapted") != (variant.cache.kind in ADAPTED):
        raise BundleError(f"{where} has the flavour {variant.flavour!r}, and {kind}")
    if variant.flavour == "adapted":
        _check_adapted(variant, where)
        return
    wanted = {
        "positions": (True, "only adapted graphs go without"),
        "slots": (slots or variant.cache.kind == "fixed_state", kind),
        "ancestors": (blocks, kind),
        "past": (blocks, kind),
        **dict.fromkeys(_HEAD, (blocks and not is_predictor, kind)),
        "features": (variant.features > 0, f"its features are {variant.features} wide"),
    }
    reads = variant.memory is not None and variant.memory.kind == "blocks"
    if variant.memory is None or variant.flavour != "static":
        wanted["source"] = (reads, "only what reads a memory of 'blocks' has it")
    if step.distances is not None and (variant.memory is None or blocks):
        raise BundleError(
            f"{where}.step has 'distances', which a step over a memory, and slots or rows, reads"
        )
    for name in ("output_rows", "logits"):
        wanted[name] = (not is_predictor, "only a predictor goes without")
    wanted["target_rows"] = (is_predictor and slots, "only a predictor over slots has it")
    wanted["target_past"] = (is_predictor and blocks, "only a predictor over blocks has it")
    for name, (needed, reason) in wanted.items():
        if bool(getattr(step, name)) != needed:
            verb = "lacks" if needed else "has"
            raise BundleError(f"{where}.step {verb} {name!r}, and {reason}")
    if step.top > spec.vocab_size:
        raise BundleError(
            f"{where}.step.top is {step.top}, and the vocabulary has {spec.vocab_size}"
        )


_OF_ADAPTED = ("tokens", "positions", "logits", "mask", "beams", "branch")


def _check_adapted(variant: Variant, where: str) -> None:
    """The names that a step of another exporter's graph has."""
    step = variant.step
    if variant.spec is not None:
        raise BundleError(f"{where} is 'adapted', which only a target is")
    if step.logits is None:
        raise BundleError(f"{where}.step lacks 'logits'")
    for each in fields(step):
        if each.name not in _OF_ADAPTED and getattr(step, each.name):
            raise BundleError(f"{where}.step has {each.name!r}, which no adapted graph has")


def _check_variant(variant: Variant, where: str) -> None:
    if variant.model not in variant.files:
        raise BundleError(f"{where}.model is {variant.model[:120]!r}, which its files lack")
    check_layout(variant.cache, f"{where}.cache")
    _check_widths(variant, where)


def _check_widths(variant: Variant, where: str) -> None:
    static = variant.flavour == "static"
    for name in ("widths", "capacity"):
        if bool(getattr(variant, name)) != static:
            verb = "lacks" if static else "has"
            raise BundleError(f"{where} {verb} {name!r}, which the static flavour alone has")
    for rows, file in variant.widths.items():
        if rows < 1 or file not in variant.files:
            raise BundleError(f"{where}.widths[{rows}] is {file[:120]!r}, which its files lack")
    alignment = getattr(variant.cache, "alignment", 1)  # adapted graphs have no slots to align
    if variant.capacity % alignment:
        raise BundleError(f"{where}.capacity is {variant.capacity}, no multiple of {alignment}")


def check_windows(spec: ModelSpec, where: str) -> None:
    """No window is 0; `where` names the facts of the model in the error."""
    if any(window == 0 for window in spec.windows):
        raise BundleError(f"{where}.windows has a window of 0; it must be at least 1")
