"""The state of a training run in one file: safetensors, replaced as a whole.

`weight.NAME`, and of AdamW `mean.NAME` and `square.NAME`, for every trained parameter; step, time
and history stand in the header as JSON. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from quickdraft.drafters.train.history import History
from quickdraft.errors import CheckpointError, OptionError
from quickdraft.hashes import storage_error, write_atomically

METADATA = "quickdraft-training"
VERSION = 1


@dataclass
class Progress:
    """How far a run is. steps: done. seconds: spent, over all of its runs."""

    steps: int
    seconds: float
    history: History


def save_checkpoint(
    file: Path,
    identity: Mapping[str, Any],
    progress: Progress,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Replace the file by the state of now.

    identity: plain JSON values; a run with others must not go on from here.

    Raises:
        StorageError: it cannot be written; the old state is still there.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"weight.{name}"] = parameter.detach()
        state = optimizer.state.get(parameter)
        if state:
            tensors[f"mean.{name}"] = state["exp_avg"]
            tensors[f"square.{name}"] = state["exp_avg_sq"]
    head = {
        "version": VERSION,
        "identity": identity,
        "steps": progress.steps,
        "seconds": progress.seconds,
        "history": progress.history.to_dict(),
    }
    whole = {name: values.cpu().contiguous() for name, values in tensors.items()}
    try:
        write_atomically(file, save(whole, {METADATA: json.dumps(head)}))
    except OSError as error:
        raise storage_error(error, str(file)) from error


def load_checkpoint(
    file: Path,
    identity: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> Progress:
    """Put parameters and optimizer into the state of a file.

    Raises:
        OptionError: the run that wrote it was another one.
        CheckpointError: it is damaged.
    """
    try:
        with safe_open(file, "pt") as opened:
            head = json.loads((opened.metadata() or {}).get(METADATA, "null"))
            if not isinstance(head, dict) or head.get("version") != VERSION:
                raise CheckpointError(f"{file} is no state of a training run of this version")
            _check_identity(file, head["identity"], json.loads(json.dumps(identity)))
            for name, parameter in parameters.items():
                with torch.no_grad():
                    parameter.copy_(opened.get_tensor(f"weight.{name}"))
                if head["steps"]:
                    optimizer.state[parameter] = {
                        "step": torch.tensor(float(head["steps"])),
                        "exp_avg": opened.get_tensor(f"mean.{name}").to(parameter.device),
                        "exp_avg_sq": opened.get_tensor(f"square.{name}").to(parameter.device),
                    }
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}; delete it to begin anew") from error
    return Progress(head["steps"], head["seconds"], History.from_dict(head["history"]))


def _check_identity(file: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in sorted({*held, *wanted}):
        if held.get(name) != wanted.get(name):
            raise OptionError(
                f"{file} is the state of a run with another {name}: {held.get(name)!r}, and now it "
                f"is {wanted.get(name)!r}; use what it was begun with, or delete it to begin anew"
            )
