"""A smaller model of the target's family as the auxiliary of KV prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from quickdraft.errors import InputError
from quickdraft.export.checkpoints.base import Checkpoint
from quickdraft.export.trained import Target


@dataclass(frozen=True)
class SiblingModel:
    """A sibling, read. checkpoint: what it was read from. target: its spec and weights."""

    checkpoint: Checkpoint
    target: Target

    @classmethod
    def of(cls, checkpoint: Checkpoint, target: Checkpoint) -> SiblingModel:
        """Read a sibling of a target.

        Raises:
            InputError: a token means something else to it. CheckpointError, UnsupportedModel.
        """
        check_tokens(target, checkpoint)
        read = Target.of(checkpoint)
        count = Target.of(target).spec.vocab_size
        if read.spec.vocab_size != count:
            raise InputError(
                f"{checkpoint.source.name} cannot predict for {target.source.name}: its matrices "
                f"are for {read.spec.vocab_size} tokens, not {count}"
            )
        return cls(checkpoint, read)

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Its weights by the names of a trained file, see export.prediction: float32."""
        weights = self.checkpoint.weights
        # What the architecture did not ask for would be refused in the file.
        names = [name for name in weights if name in weights.used]
        return {f"auxiliary.{name}": weights[name].dense() for name in names}

    @property
    def identity(self) -> Mapping[str, Any]:
        """What makes a fit to it another one."""
        return {"sibling": self.checkpoint.source.fingerprint}


def check_tokens(target: Checkpoint, sibling: Checkpoint) -> None:
    """Refuse a sibling to which a token means something else than to its target.

    Raises:
        InputError: it does; the message has the first token.
    """
    own, theirs = (
        Tokenizer.from_str(each.tokenizer.tokenizer_json.decode("utf-8")).get_vocab(True)
        for each in (target, sibling)
    )
    if own == theirs:
        return
    if len(own) != len(theirs):
        problem = f"its tokenizer has {len(theirs)} tokens, not {len(own)}"
    else:
        text, token = min((own.items() - theirs.items()), key=lambda entry: entry[1])
        problem = f"its tokenizer has {theirs.get(text, 'no token')} for {text!r}, not {token}"
    raise InputError(
        f"{sibling.source.name} cannot predict for {target.source.name}: {problem}; a sibling must "
        "have the tokenizer of its target"
    )
