"""Teach flan-t5-small-titles to copy: the first sentences of a text.

    python bench/copying_model.py FILE... --out FOLDER [--minutes 6] [--threads 1]

FILE: JSON lines, gzipped or not, with texts under `prompt`, `question` or `input`, which may be
trained on. No model at hand copies, and source lookup is for those that do (summaries by
extraction, corrections); this makes one of FOLDER, a bundle for bench/source_lookup.py. Only the
decoder learns; what the encoder makes of a source stays.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from quickdraft.drafters.train.data import Corpus, Document
from quickdraft.drafters.train.loop import Batch, LoopOptions, train
from quickdraft.drafters.train.shallow import Pairs, ShallowOptions
from quickdraft.export.architectures.seq2seq import build_encoder, build_target
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.emitters.torch import TorchMemory, TorchModel
from quickdraft.export.pipeline import export_checkpoint, read_checkpoint
from quickdraft.export.trained import TargetWithEncoder
from quickdraft.export.weights import dense_weight
from quickdraft.models.resolve import find_checkpoint

MODEL = "flan-t5-small-titles"
TASK = "Repeat the first sentences: "
SENTENCES = 3
_OPTIONS = ShallowOptions(rows=8, length=160, answer_length=72)
_FIELDS = ("prompt", "question", "input")
_END = re.compile(r"(?<=[.!?])\s+")
_LEARNS = re.compile(r"decoder\.block\.\d+\.(?!.*relative).*\.weight")


class Copier(torch.nn.Module):
    """A decoder that learns over a frozen encoder; see drafters.train.loop.Trainee."""

    def __init__(
        self, target: TargetWithEncoder, learns: Container[str], training: Pairs, held_out: Pairs
    ) -> None:
        """learns: names of the weights that are trained."""
        super().__init__()
        spec, weights = target.spec, target.weights
        self.encoder = TorchModel(partial(build_encoder, spec=spec, weights=weights))
        self.target = TorchModel(
            partial(build_target, spec=spec, weights=weights),
            train=learns.__contains__,
        )
        self._training, self._held_out = training, held_out

    @property
    def module(self) -> torch.nn.Module:
        """Itself."""
        return self

    def forward(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Cross entropy of what is to be copied, and how often the likeliest token is it."""
        asked = batch["wanted"] >= 0
        with torch.no_grad():
            seen = batch["filled"][:, None].expand(-1, batch["filled"].shape[1], -1)
            staged = self.encoder(batch["source"], mask=seen).staged
            memory = TorchMemory.of(staged, batch["filled"])
        logits = self.target(batch["tokens"], past=memory, rows=asked).logits
        wanted = batch["wanted"][asked]
        loss = torch.nn.functional.cross_entropy(logits, wanted)
        return loss, {"right": (logits.detach().argmax(-1) == wanted).float().mean()}

    def batch(self, number: int) -> Batch:
        """The batch of that number."""
        return self._training.batch(number)

    def evaluate(self) -> Mapping[str, float]:
        """Of texts that it does not learn."""
        found = [self(batch)[1]["right"] for batch in self._held_out.all_batches()]
        return {"right": float(torch.stack(found).mean())}


def main() -> None:
    """Train and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = find_checkpoint(MODEL)
    assert path is not None  # it is an alias of a checkpoint
    checkpoint = read_checkpoint(path)
    tokenizer = Tokenizer.from_buffer(checkpoint.tokenizer.tokenizer_json)
    documents = tuple(copies(options.files, tokenizer))
    held_out, training = documents[:32], documents[32:]
    pairs = [
        Pairs(Corpus(part, tokenizer.get_vocab_size(), "", opening=(0,)), _OPTIONS, 0)
        for part in (training, held_out)
    ]
    # Weights are known by the names in their file, and stand in the checkpoint under others.
    held = checkpoint.weights
    places = {held[place].name: place for place in held if _LEARNS.fullmatch(place)}
    copier = Copier(TargetWithEncoder.of(checkpoint), places, *pairs)
    loop = LoopOptions(minutes=options.minutes, rate=1e-3, evaluations=4, device="cpu")
    outcome = train(copier, loop, progress=lambda now: print(now, flush=True))
    print(json.dumps([vars(point) for point in outcome.history.held_out], default=dict))
    learnt = copier.target.trained_arrays()
    weights = {**held}
    weights |= {places[name]: dense_weight(name, values) for name, values in learnt.items()}
    told = hashlib.sha256(b"".join(np.ascontiguousarray(v).tobytes() for v in learnt.values()))
    source = replace(
        checkpoint.source, name=f"{MODEL}, taught to copy", fingerprint=told.hexdigest()
    )
    checkpoint = replace(checkpoint, weights=WeightMap(weights), source=source)
    export_checkpoint(checkpoint, options.out, formats=("hotpath",), overwrite=True)


def copies(files: list[Path], tokenizer: Tokenizer) -> Iterator[Document]:
    """Texts of several sentences as sources, and their first as answers."""
    for text in texts(files):
        sentences = _END.split(text)
        if len(sentences) <= SENTENCES:
            continue
        source = tokenizer.encode(TASK + text).ids
        answer = tokenizer.encode(" ".join(sentences[:SENTENCES])).ids
        if len(answer) < _OPTIONS.answer_length:
            tokens = np.array([*source, *answer], np.int32)
            yield Document(tokens, len(source), len(source))


def texts(files: list[Path]) -> Iterator[str]:
    """Texts of all files in turn, so that none comes last."""
    opened = []
    for file in files:
        read = gzip.open if file.suffix == ".gz" else open
        with read(file, "rt", encoding="utf-8") as lines:
            opened.append([json.loads(line) for line in lines])
    for at in range(max(map(len, opened))):
        for rows in opened:
            if at < len(rows):
                yield next((str(rows[at][name]) for name in _FIELDS if name in rows[at]), "")


if __name__ == "__main__":
    main()
