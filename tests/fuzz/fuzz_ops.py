"""Random damage to nodes of the domain `quickdraft`: an error is fine, a dead process is not.

    python tests/fuzz/fuzz_ops.py --runs 100000 --seed 1

Each run changes up to three things of a sound node (attributes, shapes, types, values, what is part
of the model), loads the model and runs it twice. Prints how often that went how far.
"""

from __future__ import annotations

import argparse
import collections
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny.op_models import INPUTS, OneNode, example

INTEGERS = (
    *(-(2**63), -(2**31), -1, 0, 1, 2, 3, 5, 15, 16, 17, 31, 32, 33, 48, 64, 96, 128, 256),
    *(2**20, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1),
)
FLOATS = (float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e-30, 0.5, 3e38)
NAMES = (
    *("f32", "f16", "w4", "w4m", "w4k", "w6k", "w8", "w8m", "w8k", "none", "rms", "layer"),
    *("silu", "gelu", "gelu_tanh", "relu", "", "W4", "\0", "é" * 300),
)
ATTRIBUTES = (
    *("format", "k", "n", "activation", "gated", "norm", "norm_eps", "kind", "eps"),
    *("heads", "width", "offset", "per_head", "factor", "kv_heads", "head_dim", "scale", "top"),
    *("window", "softcap", "q_offset", "k_offset", "v_offset", "kv_heads_before"),
    *("kv_heads_total", "no_such_attribute"),
)
TYPES = (np.float32, np.float64, np.float16, np.uint8, np.int8, np.int32, np.int64, np.bool_)
Random = np.random.Generator


def pick(random: Random, choices: Any) -> Any:
    """One of a sequence; NumPy would turn it into an array first."""
    return choices[int(random.integers(len(choices)))]


def other_attribute(random: Random, node: OneNode) -> OneNode:
    """One attribute has another value, of its kind or not, or is gone."""
    own = sorted(node.attributes) if random.random() < 0.8 else []
    name = pick(random, own or ATTRIBUTES)
    now = node.attributes.get(name)
    values: list[Any] = [pick(random, INTEGERS), pick(random, FLOATS), pick(random, NAMES), None]
    kinds = [int, float, str]
    likely = kinds.index(type(now)) if type(now) in kinds else 0
    value = values[likely] if random.random() < 0.8 else pick(random, [*values, [1, 2], [0.5]])
    return node.but(**{name: value})


def other_shape(random: Random, array: np.ndarray) -> np.ndarray:
    """The same kind of array with other dimensions; small ones."""
    shape = list(array.shape)
    change = int(random.integers(5))
    if change == 0 and shape:
        axis = int(random.integers(len(shape)))
        shape[axis] = max(0, shape[axis] + pick(random, [-16, -1, 1, 2, 16]))
    elif change == 1 and shape:
        shape[int(random.integers(len(shape)))] = pick(random, [0, 1])
    elif change == 2:
        shape.insert(int(random.integers(len(shape) + 1)), pick(random, [0, 1, 2]))
    elif change == 3 and shape:
        shape.pop(int(random.integers(len(shape))))
    else:
        shape.reverse()
    return np.resize(array, shape) if array.size else np.zeros(shape, array.dtype)


def other_values(random: Random, array: np.ndarray) -> np.ndarray:
    """A tenth of the values, or one, are extreme."""
    changed = array.copy()
    chosen = random.random(array.shape) < 0.1
    if array.size and not chosen.any():
        chosen.flat[int(random.integers(array.size))] = True
    count = int(chosen.sum())
    with np.errstate(over="ignore"):
        if array.dtype.kind == "f":
            changed[chosen] = [pick(random, FLOATS) for _ in range(count)]
        else:
            values = np.array([pick(random, INTEGERS) for _ in range(count)], np.int64)
            changed[chosen] = values.astype(array.dtype)
    return changed


def other_input(random: Random, node: OneNode) -> OneNode:
    """One input has another shape, type or values, or is gone."""
    name = pick(random, sorted(node.inputs))
    array = node.inputs[name]
    change = random.random()
    if change < 0.35:
        return node.but(**{name: other_shape(random, array)})
    if change < 0.85:
        return node.but(**{name: other_values(random, array)})
    if change < 0.95:
        with np.errstate(all="ignore"):
            return node.but(**{name: array.astype(pick(random, TYPES))})
    return node.but(**{name: None})


def other_constants(random: Random, node: OneNode) -> OneNode:
    """Other inputs are part of the model."""
    chosen = {name for name in sorted(node.inputs) if random.random() < 0.4}
    return OneNode(node.op, node.attributes, node.inputs, chosen)


def attempt(random: Random, node: OneNode) -> str:
    """How far a damaged node comes."""
    for _ in range(int(random.integers(4))):
        if not node.inputs:
            break
        change = pick(random, [other_attribute, other_input, other_input, other_constants])
        node = change(random, node)
    try:
        session = node.session(int(random.integers(1, 3)))
    except Exception as error:
        if "quickdraft" not in str(error) and "'node'" not in str(error):
            return "refused by the host"
        return "refused at load"
    for _ in range(2):
        try:
            results = session.run(None, node.feeds())
        except Exception:
            return "refused in a run"
        if any(result is None for result in results):
            raise AssertionError(f"{node.op} left out an output")
    return "ran"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sound = {op: example(op) for op in INPUTS}
    counts: collections.Counter[str] = collections.Counter()
    for number in range(options.runs):
        random = np.random.default_rng([options.seed, number])
        op = pick(random, sorted(sound))
        # Flushed before the run: after a crash the last line says which one it was.
        print(f"run {number}: {op}", file=sys.stderr, flush=True)
        counts[attempt(random, sound[op])] += 1
    print(dict(counts))


if __name__ == "__main__":
    main()
