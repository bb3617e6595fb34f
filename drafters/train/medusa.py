"""Training of Medusa's heads (quickdraft.export.heads.medusa); how, says drafters.train.ahead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

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
from quickdraft.export.heads.medusa import KIND, initial_weights, medusa_part
from quickdraft.export.heads.parts import as_weights


def prepare_medusa(request: Request) -> DraftTraining:
    """Heads for a target; see drafters.train.kinds.Prepare.

    Raises:
        OptionError: an option is unknown or has a bad value.
    """
    options = checked(AheadOptions, KIND, request.options)
    settings = options.settings(KIND, request)
    tokens = request.training.commonest(settings.vocab_size)
    module = MedusaModule(request, settings, options, tokens)
    tensors = initial_weights(request.target, settings, tokens, request.seed)
    module.add([medusa_part(request.target, settings, as_weights(tensors))], tensors)
    return DraftTraining(
        ahead_trainee(module, request, options),
        asdict(options),
        asdict(settings),
        module.tensors,
        f"Medusa-1, {settings.heads} heads, the target's distribution learnt",
        ahead_loop,
    )


class MedusaModule(AheadModule):
    """All heads are one graph, which reads nothing but the stream."""

    def say(self, rows: Rows) -> Iterator[Tensor]:
        """See AheadModule."""
        (model,) = self._models
        logits = model(features=rows.state[None]).logits[0]
        yield from logits.unflatten(0, (self._settings.heads, len(rows.state)))
