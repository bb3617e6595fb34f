"""Which graphs a checkpoint becomes: the target, its encoder, and trained parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from quickdraft import registry
from quickdraft.errors import CheckpointError, OptionError
from quickdraft.export.architectures.base import find_any
from quickdraft.export.architectures.decoder import build_decoder
from quickdraft.export.architectures.seq2seq import Seq2SeqFamily, build_encoder, build_target
from quickdraft.export.checkpoints.base import Checkpoint
from quickdraft.export.emitters.base import Part
from quickdraft.export.trained import (
    Attach,
    AttachWithEncoder,
    Target,
    TargetWithEncoder,
    check_target,
    read_trained,
)
from quickdraft.manifest import PART_NAME
from quickdraft.types import ModelSpec

_OF_ANSWERS = (
    *("decoder_start_token_id", "bos_token_id", "pad_token_id", "forced_bos_token_id"),
    *("forced_decoder_ids", "suppress_tokens", "begin_suppress_tokens"),
)
_BEFORE_ITS_TIME = (
    *("forced_eos_token_id", "bad_words_ids", "min_length", "max_length", "length_penalty"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "early_stopping", "num_beams"),
)
"""Settings of answers in a config.json that has no generation_config.json beside it."""


def parts_of(
    checkpoint: Checkpoint, hidden_states: Sequence[int], trained: Sequence[Path]
) -> tuple[Part, ...]:
    """The parts of a bundle, the target first; arguments as of `pipeline.export_checkpoint`.

    Raises:
        CheckpointError, UnsupportedModel, OptionError: see there.
    """
    family = find_any(checkpoint.config)
    if isinstance(family, Seq2SeqFamily):
        return _seq2seq_parts(family, checkpoint, hidden_states, trained)
    target = Target.of(checkpoint)
    spec = _counted(target.spec.model_spec(), checkpoint)
    _check_hidden_states(hidden_states, spec)
    target.hidden_states.update(hidden_states)
    others = [part for path in trained for part in _attach(path, checkpoint, target)]
    parts = (_target_part(target, spec), *others)
    _check_names(parts)
    return parts


def _target_part(target: Target, spec: ModelSpec) -> Part:
    return Part(
        role="target",
        name="model",
        build=lambda ops: build_decoder(ops, target.spec, target.weights),
        spec=spec,
        hidden_states=tuple(sorted(target.hidden_states)),
    )


def _seq2seq_parts(
    family: Seq2SeqFamily,
    checkpoint: Checkpoint,
    hidden_states: Sequence[int],
    trained: Sequence[Path],
) -> tuple[Part, ...]:
    spec = family.read(checkpoint.config)
    weights = family.collect(spec, checkpoint.weights)
    facts = _counted(spec.model_spec(), checkpoint)
    _check_hidden_states(hidden_states, facts)
    target = Part(
        role="target",
        name="model",
        build=partial(build_target, spec=spec, weights=weights),
        spec=facts,
        hidden_states=tuple(sorted(set(hidden_states))),
    )
    encoder = Part(
        role="encoder",
        name="encoder",
        build=partial(build_encoder, spec=spec, weights=weights),
        spec=spec.encoder_spec(),
        features=spec.source.width,
        target=facts,
    )
    whole = TargetWithEncoder(spec, weights, facts)
    others = [part for path in trained for part in _attach(path, checkpoint, whole)]
    parts = (target, encoder, *others)
    _check_names(parts)
    return parts


def generation_of(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Defaults of generation. What answers of an encoder-decoder model begin with stood in
    config.json before there was a generation_config.json."""
    generation, family = checkpoint.generation, find_any(checkpoint.config)
    if not isinstance(family, Seq2SeqFamily):
        return dict(generation)
    config = {**family.defaults, **checkpoint.config}
    keys = _OF_ANSWERS if generation else (*_OF_ANSWERS, *_BEFORE_ITS_TIME)
    older = {key: config[key] for key in keys if config.get(key) is not None}
    return {**older, **generation}


def _counted(spec: ModelSpec, checkpoint: Checkpoint) -> ModelSpec:
    """With the number of parameters that are used."""
    used = [checkpoint.weights[name].shape for name in sorted(checkpoint.weights.used)]
    return replace(spec, num_parameters=sum(math.prod(shape) for shape in used))


def _check_hidden_states(layers: Sequence[int], spec: ModelSpec) -> None:
    for layer in layers:
        if not 0 <= layer <= spec.num_layers:
            raise OptionError(
                f"--hidden-states {layer}: the model has {spec.num_layers} layers, so the streams "
                f"are 0 to {spec.num_layers}"
            )


def _attach(
    path: Path, checkpoint: Checkpoint, target: Target | TargetWithEncoder
) -> Sequence[Part]:
    """The graphs that a file of a trained part adds."""
    trained = read_trained(path)
    check_target(trained, checkpoint, path.name)
    if isinstance(target, TargetWithEncoder):
        kind = "kind of trained part of encoder-decoder models"
        with_encoder: AttachWithEncoder = registry.lookup(
            kind, registry.TRAINED_WITH_ENCODER, trained.kind
        )
        return with_encoder(trained, target)
    attach: Attach = registry.lookup("kind of trained part", registry.TRAINED, trained.kind)
    return attach(trained, target)


def _check_names(parts: Sequence[Part]) -> None:
    """Names of parts are names of files, and stand in options.

    Raises:
        CheckpointError: two parts have one name, or one has a name that cannot be used.
    """
    seen = set()
    for part in parts:
        if not PART_NAME.fullmatch(part.name):
            raise CheckpointError(f"a trained part cannot be called {part.name[:120]!r}")
        if part.name.casefold() in seen:
            raise CheckpointError(
                f"two parts of the bundle would be called {part.name!r}; leave out one of the "
                "trained files, or train one again under another name"
            )
        seen.add(part.name.casefold())
