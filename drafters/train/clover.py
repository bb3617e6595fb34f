"""Training of block and cell that draft from hidden states (quickdraft.export.heads.clover).

How, says drafters.train.along: as many steps of the cell are trained as are drafted, each from the
state of the one before it and the token of the text (Xiao et al., Clover, arXiv 2405.00263). With
`align` its states are held against the target's, as Clover-2 does (arXiv 2408.00264).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from quickdraft.drafters.options import checked
from quickdraft.drafters.train.along import (
    AlongModule,
    AlongOptions,
    Run,
    Said,
    along_loop,
    along_trainee,
)
from quickdraft.drafters.train.kinds import DraftTraining, Request
from quickdraft.export.heads.clover import (
    KIND,
    STATE,
    CloverSettings,
    clover_parts,
    initial_weights,
)
from quickdraft.export.heads.parts import MOST_HEADS, as_weights


@dataclass(frozen=True)
class CloverOptions(AlongOptions):
    """heads: steps of the cell that are trained. align: weight of the distance of its states from
    the target's. Others as in AlongOptions."""

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **AlongOptions.LIMITS,
        "heads": (1, MOST_HEADS),
        "align": (0.0, 100.0),
    }
    heads: int = 4
    align: float = 0.0

    @property
    def steps(self) -> int:
        """See AlongOptions."""
        return self.heads

    @property
    def alignment(self) -> float:
        """See AlongOptions."""
        return self.align


def prepare_clover(request: Request) -> DraftTraining:
    """Heads for a target; see drafters.train.kinds.Prepare.

    Raises:
        OptionError: an option is unknown or has a bad value.
    """
    options = checked(CloverOptions, KIND, request.options)
    settings = CloverSettings(**options.shape(request))
    tokens = request.training.commonest(settings.vocab_size)
    states = options.states(request, ())
    initial = initial_weights(request.target, settings, tokens, request.seed)
    parts = clover_parts(request.target, settings, as_weights(initial))
    module = CloverModule(request, parts, initial, states, options, settings.name)
    return DraftTraining(
        along_trainee(module, request, options),
        asdict(options),
        asdict(settings),
        module.tensors,
        f"Clover, block and cell, {options.heads} steps, {states.dtype}",
        along_loop,
    )


class CloverModule(AlongModule):
    """A block over the text, then the cell, step after step."""

    def say(self, run: Run, told: Mapping[int, torch.Tensor]) -> Iterator[Said]:
        """See AlongModule."""
        block, cell = self.models
        output = block(
            run.shifted(run.all_tokens, 1),
            positions=run.positions,
            mask=run.mask,
            features=told[self._states.last],
            rows=torch.zeros(0, dtype=torch.int64, device=run.device),
            hidden_states=(STATE,),
        )
        state, past = run.taken(output.hidden_states[STATE]), None
        for step in range(self._options.steps):
            output = cell(
                run.tokens[step],
                positions=torch.full_like(run.rows, step),
                mask=torch.cat([run.own_blocks(1)] * (step + 1), -1),
                features=state,
                past=past,
                hidden_states=(STATE,),
            )
            past = output.present if past is None else past.join(output.present)
            state = output.hidden_states[STATE]
            yield Said(output.logits, state)
