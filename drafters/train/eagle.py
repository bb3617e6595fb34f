"""Training of the head that drafts from hidden states (quickdraft.export.heads.eagle).

How, says drafters.train.along. FSPAD (Gui et al., arXiv 2408.15562) is `sampling_width`, and
`two_outputs` with `align`: the state that is read in place of the target's is held against it and
is not what tokens are made of, so that the two do not fight over one vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quickdraft.drafters.options import checked
from quickdraft.drafters.train.along import (
    AlongModule,
    AlongOptions,
    Run,
    Said,
    along_loop,
    along_trainee,
    packed_training,
)
from quickdraft.drafters.train.kinds import DraftTraining, Request
from quickdraft.drafters.train.loop import Batch
from quickdraft.drafters.train.target_states import TargetStates
from quickdraft.errors import OptionError
from quickdraft.export.emitters.torch import Past
from quickdraft.export.heads.eagle import KIND, EagleSettings, eagle_part, initial_weights
from quickdraft.export.heads.parts import as_weights
from quickdraft.export.trained import read_trained


@dataclass(frozen=True)
class StreamOptions(AlongOptions):
    """hidden_states: streams of the target it reads, numbers of layers between commas; `auto` are
    one in the middle, one late and the last. align: weight of the distance of its states from the
    target's. Others as in AlongOptions."""

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = {**AlongOptions.LIMITS, "align": (0.0, 100.0)}
    hidden_states: str = "auto"
    align: float = 0.0

    @property
    def alignment(self) -> float:
        """See AlongOptions."""
        return self.align


@dataclass(frozen=True)
class EagleOptions(StreamOptions):
    """sampling_width: of FSPAD's feature sampling, 0 for none. two_outputs: whether its state is an
    output of its own, as in FSPAD. test_steps: steps of training that read its own states. start: a
    trained head of the same shape to go on from. Others as in StreamOptions."""

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **StreamOptions.LIMITS,
        "sampling_width": (0, 1 << 16),
        "test_steps": (0, 6),
    }
    sampling_width: int = 0
    two_outputs: bool = False
    test_steps: int = 2
    start: str = ""

    @property
    def steps(self) -> int:
        """See AlongOptions."""
        return self.test_steps + 1


def prepare_eagle(request: Request) -> DraftTraining:
    """A head for a target; see drafters.train.kinds.Prepare.

    Raises:
        OptionError: an option is unknown or has a bad value.
    """
    options = checked(EagleOptions, "eagle", request.options)
    target = request.target
    settings = EagleSettings(
        hidden_states=streams_asked(options.hidden_states, len(target.spec.layers), KIND),
        **options.shape(request),
        sampling_width=options.sampling_width,
        two_outputs=options.two_outputs,
    )
    states = options.states(request, settings.hidden_states)
    training = packed_training(request, options)
    if options.start:
        initial = _weights_of(Path(options.start), settings)
    else:
        tokens = request.training.commonest(settings.vocab_size)
        spread = spread_of(states, settings.hidden_states, training.batch(0))
        initial = initial_weights(target, settings, tokens, request.seed, spread)
    part = eagle_part(target, settings, as_weights(initial))
    module = EagleModule(request, [part], initial, states, options, settings.name)
    return DraftTraining(
        along_trainee(module, request, options, training),
        asdict(options),
        {**asdict(settings), "hidden_states": list(settings.hidden_states)},
        module.tensors,
        f"EAGLE-3 head, {options.steps} steps of training-time test, {states.dtype}",
        along_loop,
    )


def spread_of(states: TargetStates, layers: Sequence[int], batch: Batch) -> NDArray[np.float32]:
    """How far each value of a normed stream lies from 0: float32 [streams, hidden]."""
    found = states({name: values.to(states.device) for name, values in batch.items()})
    text = batch["documents"].to(states.device) > 0
    each = []
    for layer in layers:
        stream = found[layer][text].float()
        normed = nn.functional.layer_norm(stream, stream.shape[-1:])
        each.append(normed.pow(2).mean(0).sqrt().cpu().numpy())
    return np.stack(each)


def _weights_of(file: Path, settings: EagleSettings) -> dict[str, NDArray[Any]]:
    """What a trained head learnt, and the tokens it drafts.

    Raises:
        OptionError: it is no head of these settings.
    """
    trained = read_trained(file)
    held = {"two_outputs": False, **trained.settings, "name": settings.name}
    if trained.kind != KIND or held != {
        **asdict(settings),
        "hidden_states": [*settings.hidden_states],
    }:
        raise OptionError(
            f"start of drafter eagle is {file.name}, which is no head of the same shape; give the "
            "options that it was trained with, or leave start out"
        )
    weights = {name: weight.dense() for name, weight in trained.weights.items()}
    return {**weights, "tokens": weights["tokens"].astype(np.int32)}


class EagleModule(AlongModule):
    """A step after the first reads the state of the one before it."""

    def say(self, run: Run, told: Mapping[int, Tensor]) -> Iterator[Said]:
        """See AlongModule."""
        features = self.features(told)
        output = self.head(
            run.shifted(run.all_tokens, 1),
            positions=run.positions,
            mask=run.mask,
            features=features,
            rows=run.rows,
            hidden_states=(1,),
        )
        past: Past = output.present
        state = run.taken(output.hidden_states[1])
        yield Said(output.logits, state)
        for step in range(1, self._options.steps):
            blank = state.new_zeros(*state.shape[:2], features.shape[-1] - self._hidden)
            output = self.head(
                run.tokens[step],
                positions=run.taken(run.positions) + step,
                mask=run.later_mask(step),
                features=torch.cat([blank, state], -1),
                past=past,
                hidden_states=(1,),
            )
            past, state = past.join(output.present), output.hidden_states[1]
            yield Said(output.logits, state)

    def features(self, told: Mapping[int, Tensor]) -> Tensor:
        """[b, s, width]: the streams that the head reads, and no states of its own."""
        read = [told[layer] for layer in self._layers]
        return torch.cat([*read, torch.zeros_like(read[0])], -1)


def streams_asked(given: str, layers: int, kind: str) -> tuple[int, ...]:
    """Numbers of layers passed, ascending.

    Raises:
        OptionError: they are others than the target has, none, or too many.
    """
    if given == "auto":
        return tuple(sorted({max(layers // 2, 1), max(layers * 5 // 6, 1), layers}))
    try:
        chosen = sorted({int(part) for part in given.split(",")})
    except ValueError:
        chosen = []
    if not 1 <= len(chosen) <= 4 or chosen[0] < 0 or chosen[-1] > layers:
        raise OptionError(
            f"hidden_states of drafter {kind} is {given!r}; give one to four numbers from 0 to "
            f"{layers} between commas, or auto"
        )
    return tuple(chosen)
