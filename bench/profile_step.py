"""Where does the time of a step go, op by op, against the limits of memory and arithmetic?

    python bench/profile_step.py MODEL [--rows 8] [--context 256] [--threads 2] [--int8-tops 1.9]

ONNX Runtime times every node of the last steps of a series; nodes of one op and one shape of
weights are added up. `memory` is what reading their weights takes at the bandwidth measured here,
`math` what their products take at --int8-tops (1e12 int8 operations a second, all threads; the
default is that of the machine this project was measured on). `of bound` is the time over the larger
of the two: 1.0 cannot be beaten. Profiling costs a few microseconds a node.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime as ort

from quickdraft.commands.output import table
from quickdraft.device_profiles.bandwidth import read_bandwidth
from quickdraft.drafters.tree import Tree
from quickdraft.models.formats import default_formats
from quickdraft.models.resolve import resolve
from quickdraft.runtime.backends.opening import open_backend, variant_for
from quickdraft.runtime.benchmark import random_tokens

LOOKUPS = frozenset({"Gather", "GatherBlockQuantized", "Embed"})


@dataclass
class Group:
    """Nodes of one op over weights of one shape, in one step. operations: per row."""

    nodes: int = 0
    microseconds: float = 0.0
    weight_bytes: int = 0
    operations: int = 0


def profiled_sessions(folder: Path) -> list[Any]:
    """From now on every session writes a profile to the folder, and appears in the list."""
    sessions: list[Any] = []
    make_options, make_session = ort.SessionOptions, ort.InferenceSession

    def options() -> Any:
        made = make_options()
        made.enable_profiling = True
        made.profile_file_prefix = str(folder / "profile")
        return made

    def session(*arguments: Any, **rest: Any) -> Any:
        sessions.append(make_session(*arguments, **rest))
        return sessions[-1]

    ort.SessionOptions, ort.InferenceSession = options, session
    return sessions


def node_facts(model: Path) -> dict[str, tuple[str, int, int]]:
    """Label, bytes of weights and operations per row of every node, by name."""
    facts = {}
    for node in onnx_ir.load(model).graph:
        weights = [v.const_value for v in node.inputs if v is not None and v.const_value]
        outputs, inputs = product_of(node, weights)
        shape = f" {outputs}x{inputs}" if outputs else ""
        size = 0 if node.op_type in LOOKUPS else sum(w.nbytes for w in weights)
        facts[node.name] = node.op_type + shape, size, 2 * outputs * inputs
    return facts


def product_of(node: Any, weights: list[Any]) -> tuple[int, int]:
    """Outputs and inputs of a matrix product with constant weights; zeros for other nodes."""
    attributes = {name.lower(): attribute for name, attribute in node.attributes.items()}
    if node.op_type in {"MatMul", "FusedMatMul"} and weights and len(weights[0].shape) == 2:
        inputs, outputs = map(int, weights[0].shape)
        turned = "transb" in attributes and attributes["transb"].as_int()
        return (inputs, outputs) if turned else (outputs, inputs)
    if node.op_type in LOOKUPS or not {"n", "k"} <= attributes.keys():
        return 0, 0
    gated = "gated" in attributes and attributes["gated"].as_int()
    return attributes["n"].as_int() * (2 if gated else 1), attributes["k"].as_int()


def grouped(profile: Path, facts: dict[str, tuple[str, int, int]], steps: int) -> dict[str, Group]:
    """Sums over the nodes of the last `steps` runs, per step."""
    events = json.loads(profile.read_text(encoding="utf-8"))
    runs = [e for e in events if e["cat"] == "Session" and e["name"] == "model_run"][-steps:]
    begin = runs[0]["ts"]
    groups: dict[str, Group] = defaultdict(Group)
    for event in events:
        if (
            event["cat"] == "Node"
            and event["name"].endswith("_kernel_time")
            and event["ts"] >= begin
        ):
            name = event["name"].removesuffix("_kernel_time")
            label, size, operations = facts.get(name, (event["args"]["op_name"], 0, 0))
            group = groups[label]
            group.nodes += 1
            group.microseconds += event["dur"] / steps
            group.weight_bytes += size
            group.operations += operations
    for group in groups.values():
        group.nodes //= steps
        group.weight_bytes //= steps
        group.operations //= steps
    total = sum(run["dur"] for run in runs) / steps
    spent = sum(group.microseconds for group in groups.values())
    groups["between nodes"] = Group(0, total - spent)
    return groups


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--weights")
    parser.add_argument("--int8-tops", type=float, default=1.9)
    options = parser.parse_args()
    bundle = resolve(
        options.model, weights=options.weights, formats=default_formats(options.backend)
    )
    with tempfile.TemporaryDirectory() as folder:
        sessions = profiled_sessions(Path(folder))
        threads = options.threads
        backend = open_backend(bundle.folder, bundle.manifest, options.backend, threads).backend
        cache = backend.new_cache()
        tokens = random_tokens(backend.spec.vocab_size, options.context + options.rows)
        for start in range(0, options.context, 512):
            part = tokens[start : min(start + 512, options.context)]
            backend.step(Tree.chain(part), cache, np.array([len(part) - 1]), full_logits=False)
            cache.commit(range(len(part)))
        for _ in range(options.steps + 5):
            backend.step(Tree.chain(tokens[options.context :]), cache, full_logits=False)
        profile = Path(sessions[-1].end_profiling())
        model = bundle.folder / variant_for(bundle.manifest, backend.name).model
        groups = grouped(profile, node_facts(model), options.steps)
    print_table(groups, options.rows, read_bandwidth(threads), options.int8_tops)


def print_table(groups: dict[str, Group], rows: int, bandwidth: float, tops: float) -> None:
    """One line per group, the longest first."""
    total = sum(group.microseconds for group in groups.values())
    lines = [["op", "nodes", "ms", "share", "MB", "memory ms", "math ms", "of bound"]]
    for label, group in sorted(groups.items(), key=lambda item: -item[1].microseconds):
        memory = group.weight_bytes / bandwidth / 1e6
        math = rows * group.operations / tops / 1e9
        bound = max(memory, math)
        lines.append(
            [
                label,
                str(group.nodes or ""),
                f"{group.microseconds / 1e3:.3f}",
                f"{group.microseconds / total:.1%}",
                f"{group.weight_bytes / 1e6:.1f}",
                f"{memory:.3f}",
                f"{math:.3f}",
                f"{group.microseconds / 1e3 / bound:.2f}" if bound > 1e-3 else "",
            ]
        )
    print(table(lines, frozenset(range(1, 8))))
    print(f"\n{total / 1e3:.2f} ms a step of {rows} rows; {bandwidth:.1f} GB/s, {tops} TOP/s")


if __name__ == "__main__":
    main()
