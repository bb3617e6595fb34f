"""Training of Hydra's heads (quickdraft.export.heads.hydra); how, says drafters.train.ahead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import torch
from torch import Tensor

from quickdraft.drafters.options import checked
from quickdraft.drafters.train.ahead import (
    AheadModule,
    AheadOptions,
    Rows,
    ahead_loop,
    ahead_trainee,
)
from quickdraft.drafters.train.kinds import DraftTraining, Request
from quickdraft.export.heads.hydra import EMBEDDING, KIND, hydra_parts, initial_weights
from quickdraft.export.heads.parts import as_weights


def prepare_hydra(request: Request) -> DraftTraining:
    """Heads for a target; see drafters.train.kinds.Prepare.

    Raises:
        OptionError: an option is unknown or has a bad value.
    """
    options = checked(AheadOptions, KIND, request.options)
    settings = options.settings(KIND, request)
    tokens = request.training.commonest(settings.vocab_size)
    module = HydraModule(request, settings, options, tokens)
    tensors = initial_weights(request.target, settings, tokens, request.seed)
    module.add(hydra_parts(request.target, settings, as_weights(tensors)), tensors)
    return DraftTraining(
        ahead_trainee(module, request, options),
        asdict(options),
        asdict(settings),
        module.tensors,
        f"Hydra, {settings.heads} heads of one block, the target's distribution learnt",
        ahead_loop,
    )


class HydraModule(AheadModule):
    """Every head is a graph, which hands the embedding of its token on to those after it."""

    def say(self, rows: Rows) -> Iterator[Tensor]:
        """See AheadModule. The tokens are those of the text, not what the heads before said."""
        known = rows.state[None]
        for model, tokens in zip(self._models, rows.tokens, strict=False):
            output = model(tokens[None], features=known, hidden_states=(EMBEDDING,))
            yield output.logits[0]
            known = torch.cat([known, output.hidden_states[EMBEDDING]], -1)
