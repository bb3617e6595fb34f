"""Training of the head that drafts block by block (quickdraft.export.heads.falcon).

How, says drafters.train.along: the steps after the first read whole blocks of the head's own
states. Of Falcon's glancing (Gao et al., arXiv 2412.12639, section 3.2) comes that blocks which
were said wrong are read with the target's states instead at a rate, `glance`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from quickdraft.drafters.options import checked
from quickdraft.drafters.train.along import (
    Run,
    Said,
    along_loop,
    along_trainee,
    packed_training,
)
from quickdraft.drafters.train.eagle import (
    EagleModule,
    StreamOptions,
    spread_of,
    streams_asked,
)
from quickdraft.drafters.train.kinds import DraftTraining, Request
from quickdraft.export.emitters.torch import Past
from quickdraft.export.heads.falcon import KIND, FalconSettings, falcon_part, initial_weights
from quickdraft.export.heads.parts import MOST_HEADS, as_weights


@dataclass(frozen=True)
class FalconOptions(StreamOptions):
    """block: tokens of a step. blocks: steps of training; all but the first read its own states.
    glance: how often a block that was said wrong is read with the target's states. Others as in
    StreamOptions."""

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **StreamOptions.LIMITS,
        "block": (1, MOST_HEADS),
        "blocks": (1, 4),
        "glance": (0.0, 1.0),
    }
    block: int = 2
    blocks: int = 2
    glance: float = 0.2

    @property
    def steps(self) -> int:
        """See AlongOptions."""
        return self.block * self.blocks


def prepare_falcon(request: Request) -> DraftTraining:
    """A head for a target; see drafters.train.kinds.Prepare.

    Raises:
        OptionError: an option is unknown or has a bad value.
    """
    options = checked(FalconOptions, KIND, request.options)
    target = request.target
    settings = FalconSettings(
        hidden_states=streams_asked(options.hidden_states, len(target.spec.layers), KIND),
        **options.shape(request),
        block=options.block,
    )
    states = options.states(request, settings.hidden_states)
    training = packed_training(request, options)
    tokens = request.training.commonest(settings.vocab_size)
    spread = spread_of(states, settings.hidden_states, training.batch(0))
    initial = initial_weights(target, settings, tokens, request.seed, spread)
    part = falcon_part(target, settings, as_weights(initial))
    module = FalconModule(request, [part], initial, states, options, settings.name)
    return DraftTraining(
        along_trainee(module, request, options, training),
        asdict(options),
        {**asdict(settings), "hidden_states": list(settings.hidden_states)},
        module.tensors,
        f"Falcon head, blocks of {options.block}, {options.blocks} of them in training, "
        f"{states.dtype}",
        along_loop,
    )


class FalconModule(EagleModule):
    """A step says a block, and the next one reads all of it."""

    _options: FalconOptions

    def say(self, run: Run, told: Mapping[int, Tensor]) -> Iterator[Said]:
        """See AlongModule."""
        block, features = self._options.block, self.features(told)
        length = features.shape[1]
        output = self.head(
            run.shifted(run.all_tokens, 1),
            positions=run.positions,
            mask=run.mask,
            features=features,
            rows=torch.cat([run.rows + k * length for k in range(block)], 1),
            hidden_states=range(1, block + 1),
        )
        past: Past = output.present
        states = [run.taken(output.hidden_states[k]) for k in range(1, block + 1)]
        logits = output.logits.chunk(block, 1)
        yield from map(Said, logits, states)
        seen = run.mask[run.sequence, run.rows]
        for number in range(1, self._options.blocks):
            first = (number - 1) * block + 1  # tokens of the text that were said before this block
            own = torch.stack(states, 2).flatten(1, 2)  # rows of a block beside each other
            read = self._read(run, told, own, logits, first)
            tokens = torch.stack([run.tokens[first + k] for k in range(block)], 2)
            seen = torch.cat([seen, run.own_blocks(block)], -1) if number > 1 else seen
            mask = torch.cat([seen.repeat_interleave(block, 1), run.within_blocks(block)], -1)
            places = torch.arange(block, device=own.device)
            positions = run.taken(run.positions)[..., None] + first + places
            output = self.head(
                tokens.flatten(1),
                positions=positions.flatten(1),
                mask=mask,
                features=read,
                rows=self._last_rows(run, block),
                past=past,
                hidden_states=range(1, block + 1),
            )
            past = past.join(output.present)
            states = [output.hidden_states[k][:, block - 1 :: block] for k in range(1, block + 1)]
            logits = output.logits.chunk(block, 1)
            yield from map(Said, logits, states)

    def _last_rows(self, run: Run, block: int) -> Tensor:
        """int64 [block * m]: the logits of the last row of every block, one depth after another."""
        count = run.rows.shape[1]
        last = torch.arange(block - 1, count * block, block, device=run.device)
        return torch.cat([last + k * count * block for k in range(block)])

    def _read(
        self,
        run: Run,
        told: Mapping[int, Tensor],
        own: Tensor,
        logits: tuple[Tensor, ...],
        first: int,
    ) -> Tensor:
        """[b, m * block, features]: what the rows of a block read besides their tokens: states of
        the head or, at a glance, of the target. logits: what was said of the block."""
        block = self._options.block
        streams = torch.cat([told[layer] for layer in self._layers], -1)
        blank = streams.new_zeros(*own.shape[:2], streams.shape[-1])
        if not self.training or not self._options.glance:
            return torch.cat([blank, own], -1)
        vocabulary = torch.as_tensor(self._tokens, device=own.device).long()
        wrong = torch.zeros_like(run.counts[0])
        for k, each in enumerate(logits):
            wrong |= vocabulary[each.argmax(-1)] != run.tokens[first + k]
        glanced = wrong & (torch.rand(wrong.shape, device=own.device) < self._options.glance)
        chosen = glanced.repeat_interleave(block, 1)[..., None]
        ahead = torch.stack([run.ahead(first + k - 1) for k in range(block)], 2).flatten(1)
        theirs = streams[run.sequence, ahead]
        return torch.cat([torch.where(chosen, theirs, blank), own * ~chosen], -1)
