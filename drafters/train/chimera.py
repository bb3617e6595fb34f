"""Training of the head that drafts from three tokens (quickdraft.export.heads.chimera).

How, says drafters.train.along: the steps after the first read the tokens of the text and the state
of the target that the first one read (Zeng et al., Chimera, arXiv 2402.15758).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

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
from quickdraft.export.heads.chimera import (
    EMBEDDING,
    KIND,
    ChimeraSettings,
    chimera_part,
    initial_weights,
)
from quickdraft.export.heads.parts import MOST_HEADS, as_weights


@dataclass(frozen=True)
class ChimeraOptions(AlongOptions):
    """heads: tokens that are said in training, one after another. Others as in AlongOptions."""

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **AlongOptions.LIMITS,
        "heads": (1, MOST_HEADS),
    }
    heads: int = 4

    @property
    def steps(self) -> int:
        """See AlongOptions."""
        return self.heads


def prepare_chimera(request: Request) -> DraftTraining:
    """A head for a target; see drafters.train.kinds.Prepare.

    Raises:
        OptionError: an option is unknown or has a bad value.
    """
    options = checked(ChimeraOptions, KIND, request.options)
    settings = ChimeraSettings(**options.shape(request))
    tokens = request.training.commonest(settings.vocab_size)
    states = options.states(request, (0,))
    initial = initial_weights(request.target, settings, tokens, request.seed)
    part = chimera_part(request.target, settings, as_weights(initial))
    module = ChimeraModule(request, [part], initial, states, options, settings.name)
    return DraftTraining(
        along_trainee(module, request, options),
        asdict(options),
        asdict(settings),
        module.tensors,
        f"Chimera head, {options.heads} steps, {states.dtype}",
        along_loop,
    )


class ChimeraModule(AlongModule):
    """A step after the first reads one token more, and the target's state of the first."""

    def say(self, run: Run, told: Mapping[int, Tensor]) -> Iterator[Said]:
        """See AlongModule."""
        embedding, state = (told[layer] for layer in self._layers)
        before = torch.nn.functional.pad(embedding[:, :-1], (0, 0, 1, 0))
        before = before * (run.positions > 0)[..., None]  # nothing comes before a document
        output = self.head(
            run.shifted(run.all_tokens, 1),
            positions=run.positions,
            mask=run.mask,
            features=torch.cat([state, embedding, before], -1),
            rows=run.rows,
            hidden_states=(EMBEDDING,),
        )
        past, state = output.present, run.taken(state)
        last, newest = run.taken(embedding), run.taken(output.hidden_states[EMBEDDING])
        yield Said(output.logits)
        for step in range(1, self._options.steps):
            output = self.head(
                run.tokens[step],
                positions=run.taken(run.positions) + step,
                mask=run.later_mask(step),
                features=torch.cat([state, newest, last], -1),
                past=past,
                hidden_states=(EMBEDDING,),
            )
            past = past.join(output.present)
            last, newest = newest, output.hidden_states[EMBEDDING]
            yield Said(output.logits)
