"""Ways to begin an answer: the exact prefill, every predictor of a bundle, its auxiliary models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.bundle import Bundle
from quickdraft.drafters.tree import Tree
from quickdraft.manifest import Variant
from quickdraft.runtime.backends.opening import open_part, parts, variant_for
from quickdraft.runtime.drafting import DraftingSetup
from quickdraft.runtime.model import Model, Result, Session

EXACT = "exact"
PLAIN = {
    "temperature": 0.0,
    "repetition_penalty": 1.0,
    "num_draft_tokens": 0,
}
"""Greedy answers, decoded plainly."""


@dataclass(frozen=True)
class Way:
    """name: as results have it. kind: `exact`, `predicted`, `hybrid` or `auxiliary`. model: the one
    that answers, an auxiliary model itself where it is alone. prefill: its option. details: what
    training says of the predictor or the auxiliary model. operations: of the prompt, see `Cost`.
    """

    name: str
    kind: str
    model: Model
    prefill: str
    cost: Cost
    details: Mapping[str, Any] = field(default_factory=dict)

    def answer(self, ids: Sequence[int], session: Session | None = None, **options: Any) -> Result:
        """The greedy answer to token ids."""
        chosen = {**PLAIN, "prefill": self.prefill, **options}
        return self.model.generate(ids, session=session, **chosen)

    def forced(self, prompt: Sequence[int], text: Sequence[int]) -> NDArray[np.float32]:
        """Logits that chose every token of a text, had they been chosen freely, after a prompt
        that was read this way: float32 [len(text), vocabulary]."""
        session = self.model.session()
        self.answer(prompt, session, max_new_tokens=1, ignore_eos=True)
        cache = session.cache
        cache.truncate(len(prompt) - 1)
        step = Tree.chain([prompt[-1], *text[:-1]])
        return np.array(self.model.backend.step(step, cache).logits)


@dataclass(frozen=True)
class Graph:
    """What one row of a graph costs, in multiplications. rows: of matrices but the output head;
    head: of that. attended: per row that is attended to."""

    rows: int
    head: int
    attended: int


@dataclass(frozen=True)
class Cost:
    """Multiplications of a prompt.

    model: of the one that answers. predictor: None where nothing is predicted; the model then
    computes `first` tokens at the beginning of a prompt and `last` ones at its end.
    """

    model: Graph
    predictor: Graph | None = None
    first: int = 0
    last: int = 1

    def of_prompt(self, tokens: int) -> int:
        """For the first token after a prompt."""
        if self.predictor is None:
            return _rows(self.model, 0, tokens) + self.model.head
        begin = min(self.first, tokens)
        end = max(begin, tokens - self.last)
        exact = _rows(self.model, 0, begin) + _rows(self.model, end, tokens) + self.model.head
        return exact + _rows(self.predictor, 0, end)


def _rows(graph: Graph, begin: int, end: int) -> int:
    """Rows from number `begin` to `end`, each of which attends to itself and all before it."""
    attended = (end * (end + 1) - begin * (begin + 1)) // 2
    return (end - begin) * graph.rows + attended * graph.attended


def graph_cost(bundle: Bundle, variant: Variant) -> Graph:
    """Read off the graph, whose nodes for nothing count for nothing."""
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass
    from profile_step import product_of

    spec = bundle.manifest.model if variant.spec is None else variant.spec
    rows = head = 0
    loaded = onnx_ir.load(bundle.folder / variant.model)
    for node in RemoveUnusedNodesPass()(loaded).model.graph:
        constants = [v.const_value for v in node.inputs if v is not None and v.const_value]
        outputs, inputs = product_of(node, constants)
        if outputs == spec.vocab_size:
            head += outputs * inputs
        else:
            rows += outputs * inputs
    return Graph(rows, head, 2 * spec.head_dim * sum(spec.num_heads))


@dataclass(frozen=True)
class Opening:
    """How ways are opened. wanted: patterns of their names; all if there is none. hybrid: tokens
    at the end of a prompt that a hybrid computes exactly."""

    threads: int
    kv_cache: str | None = None
    wanted: tuple[str, ...] = ()
    hybrid: tuple[int, ...] = ()

    def wants(self, name: str) -> bool:
        """Whether a way is measured; the exact one always is."""
        return not self.wanted or any(fnmatch(name, pattern) for pattern in self.wanted)


def open_ways(bundle: Bundle, opening: Opening, stack: ExitStack) -> list[Way]:
    """The exact way first. Models are closed with the stack."""
    manifest = bundle.manifest
    model = Model.open(
        bundle.folder,
        manifest=manifest,
        drafting=DraftingSetup("none"),
        threads=opening.threads,
        kv_cache=opening.kv_cache,
    )
    stack.callback(model.close)
    engine = model.backend.name
    target = graph_cost(bundle, variant_for(manifest, engine))
    ways = [Way(EXACT, EXACT, model, EXACT, Cost(target))]
    for variant in parts(manifest, engine, "predictor"):
        graph, details = graph_cost(bundle, variant), variant.details
        kinds = {"predicted": 1} | {f"hybrid:{count}": count for count in opening.hybrid}
        for kind, last in kinds.items():
            name = f"{kind} {variant.name.removeprefix('predictor-')}"
            if opening.wants(name):
                prefill = f"{kind}@{variant.name}"
                cost = Cost(target, graph, details.get("exact_first", 0), last)
                ways.append(Way(name, kind.partition(":")[0], model, prefill, cost, details))
    for variant in parts(manifest, engine, "auxiliary"):
        name = f"auxiliary {variant.name.removeprefix('auxiliary-')}"
        if opening.wants(name):
            alone = _open_alone(bundle, variant, model, opening)
            stack.callback(alone.close)
            cost = Cost(graph_cost(bundle, variant))
            ways.append(Way(name, "auxiliary", alone, EXACT, cost, variant.details))
    return ways


def _open_alone(bundle: Bundle, variant: Variant, target: Model, opening: Opening) -> Model:
    """An auxiliary model as a model of its own, with the tokenizer of its target."""
    backend = open_part(
        bundle.folder,
        bundle.manifest,
        target.backend.name,
        "auxiliary",
        variant.name,
        opening.threads,
        opening.kv_cache,
    )
    return Model(backend, bundle.manifest, target.tokenizer, target.chat_template)
