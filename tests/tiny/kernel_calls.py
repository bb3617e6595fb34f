"""Random calls of every kernel, the same ones for every instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tiny.native import (
    ACTIVATIONS,
    FORMATS,
    KV_TYPES,
    NORMS,
    Cache,
    Matrix,
    Norm,
    Scores,
    Step,
    kv_head_bytes,
    record_bytes,
)
from tiny.native_structs import CacheArgs
from tiny.replay import Call, MoveArgs, Recorder

from quickdraft.weight_layout import LAYOUTS, sections

Random = np.random.Generator


def record(isa: str, threads: int = 1) -> list[Call]:
    """Every call made with one instruction set, and what it wrote."""
    recorder = Recorder(isa, threads)
    for part in PARTS:
        random = np.random.default_rng(7)
        for label in part(recorder, random):
            recorder.label = label
    return recorder.calls


def floats(random: Random, *shape: int) -> np.ndarray:
    """Values of all sizes: most near one, some tiny, some large, some zero; one row all zero."""
    values = random.standard_normal(shape) * 10.0 ** random.choice(
        [-6, -1, 0, 0, 0, 0, 1, 3], shape
    )
    values[random.random(shape) < 0.05] = 0
    if len(shape) > 1 and shape[0] > 2:
        values[1] = 0
    return values.astype(np.float32)


def matrix(random: Random, format: str, n: int, k: int, gated: bool = False) -> Matrix:
    """Random records: any codes, scales of float16 that keep the values small."""
    blocks = -(-n // 16) * (2 if gated else 1)
    data = np.zeros((blocks, record_bytes(format, k)), np.uint8)
    for name, part in sections(data, format, k).items():
        if part.dtype.kind == "f":
            scale = 0.05 if name in {"values", "scale", "minimum"} else 0.002
            part[:] = random.standard_normal(part.shape) * scale
        else:
            facts = np.iinfo(part.dtype)
            # The layout promises codes below 64 in these two formats.
            small = name == "codes" and format in ("w8m", "w8k")
            largest = 63 if small else facts.max
            part[:] = random.integers(facts.min, largest, part.shape, part.dtype, endpoint=True)
    bias = floats(random, n * (2 if gated else 1)) if random.random() < 0.5 else None
    return Matrix(format, data, n, k, bias, gated)


def norm(random: Random, width: int, kind: str) -> Norm:
    """A norm with or without weight and bias."""
    weight, bias = (floats(random, width) if random.random() < 0.7 else None for _ in range(2))
    return Norm(kind, 1e-5, weight, bias if kind == "layer" else None)


def columns(random: Random, format: str) -> int:
    """A number of columns that suits the format: 256, 512, or fewer, or odd."""
    divisor = LAYOUTS[format].divisor
    if LAYOUTS[format].dense is not None:
        return int(random.choice([1, 33, 96, 256, 300]))
    return divisor * int(random.choice([1, 2] if divisor == 256 else [1, 3, 8, 9, 16]))


def _linears(kernels: Recorder, random: Random) -> Iterator[str]:
    for format in FORMATS:
        for rows in (1, 2, 3, 5, 8, 9, 16, 17, 33, 70):
            gated = bool(random.random() < 0.3)
            k, n = columns(random, format), int(random.choice([16, 32, 48, 40, 7]))
            weights = matrix(random, format, n, k, gated)
            kind, activation = random.choice(NORMS), random.choice(ACTIVATIONS)
            residual = floats(random, rows, n) if random.random() < 0.5 else None
            size = f"{rows} rows, k {k}, n {n}"
            yield f"{format} {size}, {gated=} {kind} {activation}"
            x = floats(random, rows, k)
            kernels.linear(x, weights, norm(random, k, kind), residual, str(activation))


def _heads(kernels: Recorder, random: Random) -> Iterator[str]:
    for format in FORMATS:
        for m in (1, 4, 19):
            k, n, top = columns(random, format), int(random.choice([33, 100, 160])), 8
            weights, kind = matrix(random, format, n, k), random.choice(NORMS)
            rows = np.sort(random.integers(0, 20, m))
            softcap = float(random.choice([0, 30]))
            yield f"{format} {m} of 20 rows, k {k}, n {n}, {kind} {softcap=}"
            x = floats(random, 20, k)
            kernels.head(x, weights, rows, top, norm(random, k, kind), softcap)


def _embeds(kernels: Recorder, random: Random) -> Iterator[str]:
    for format in FORMATS:
        k = columns(random, format)
        yield f"{format} k {k}"
        kernels.embed(matrix(random, format, 40, k), random.integers(0, 40, 9), 1.5)


def _norms(kernels: Recorder, random: Random) -> Iterator[str]:
    for kind in ("rms", "layer"):
        for heads, width in ((1, 1), (1, 64), (1, 576), (3, 40), (4, 128), (1, 2050)):
            per_head = bool(random.random() < 0.5)
            offset, rows = int(random.choice([0, 3])), int(random.integers(1, 6))
            x = floats(random, rows, offset + heads * width + 2)
            residual = floats(random, rows, heads * width) if random.random() < 0.5 else None
            yield f"{kind} {rows} rows of {heads} x {width} from {offset}, {per_head=}"
            form = norm(random, width * (heads if per_head else 1), kind)
            kernels.norm_rows(x, form, heads, offset, per_head, width, residual)


def _rope_tables(kernels: Recorder, random: Random) -> Iterator[str]:
    for pairs in (1, 8, 20, 32, 64):
        frequencies = (10_000.0 ** -(np.arange(pairs) / pairs)).astype(np.float32)
        positions = random.integers(0, 140_000, 7)
        positions[:2] = 0, 1
        yield f"{pairs} pairs"
        kernels.rope_table(positions, frequencies, float(random.choice([1, 0.7])))


def tree(random: Random, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Depths [rows] and ancestors int32 [rows, depths] of a random tree."""
    paths: list[list[int]] = [[0]]
    for row in range(1, rows):
        paths.append([*paths[int(random.integers(0, row))], row])
    table = np.full((rows, max(map(len, paths))), -1, np.int32)
    for row, path in enumerate(paths):
        table[row, : len(path)] = path
    return np.array([len(path) - 1 for path in paths]), table


SHAPES = (
    # heads, kv_heads, head_dim, past, rows; head_dim 64 and 128 are the common ones
    (4, 2, 64, 0, 21),
    (9, 3, 64, 37, 8),
    (2, 2, 128, 300, 5),
    (6, 1, 80, 15, 16),
    (3, 3, 20, 129, 1),
    (8, 2, 96, 64, 33),
)


def _attentions(kernels: Recorder, random: Random) -> Iterator[str]:
    for kind in KV_TYPES:
        for heads, kv_heads, head_dim, past, rows in SHAPES:
            capacity = (past + rows + 15) // 16 * 16
            cache = Cache(kind, capacity, kv_heads, head_dim)
            where = f"{kind} {heads}/{kv_heads} heads of {head_dim}"
            if past:
                yield f"{where}, {past} rows from 0"
                _attend(kernels, random, cache, heads, Step(np.arange(past), 0), Scores(0.1))
            depths, ancestors = tree(random, rows)
            for name, step in (
                ("chain", Step(past + np.arange(rows), past)),
                ("tree", Step(past + depths, past, ancestors)),
            ):
                scores = Scores(
                    scale=head_dim**-0.5,
                    window=int(random.choice([0, 0, 9, 100])),
                    softcap=float(random.choice([0, 0, 20])),
                    sinks=floats(random, heads) if random.random() < 0.3 else None,
                    relative=_relative(random, heads) if random.random() < 0.3 else None,
                )
                if random.random() < 0.7:
                    pairs = int(random.choice([head_dim // 2, head_dim // 4]))
                    scores.rope = random.uniform(-1, 1, (rows, 2, pairs)).astype(np.float32)
                yield f"{where}, {name} of {rows} from {past}, {scores.window=} {scores.softcap=}"
                _attend(kernels, random, cache, heads, step, scores)


def _attend(
    kernels: Recorder, random: Random, cache: Cache, heads: int, step: Step, scores: Scores
) -> None:
    """One step whose queries, keys and values lie side by side in one array."""
    rows, dim = len(step.positions), cache.head_dim
    values = random.standard_normal((rows, (heads + 2 * cache.kv_heads) * dim))
    joined = values.astype(np.float32)
    q, k, v = np.split(joined, [heads * dim, (heads + cache.kv_heads) * dim], axis=1)
    kernels.attention(q, k, v, step, cache, scores)


def _relative(random: Random, heads: int) -> np.ndarray:
    return floats(random, heads, 2 * int(random.choice([1, 17, 128])) + 1)


def _sources(kernels: Recorder, random: Random) -> Iterator[str]:
    for kind in KV_TYPES:
        for heads, kv_heads, head_dim, _, rows in (*SHAPES, (2, 2, 64, 0, 300)):
            memory = Cache(kind, (rows + 15) // 16 * 16, kv_heads, head_dim)
            q, k, v = (floats(random, rows, n * head_dim) for n in (heads, kv_heads, kv_heads))
            where = f"{kind} {heads}/{kv_heads} heads of {head_dim}, {rows} rows"
            relative = _relative(random, heads) if random.random() < 0.5 else None
            yield f"{where}, encoded"
            kernels.encode(q, k, v, memory, Scores(head_dim**-0.5, relative=relative))
            yield f"{where}, read"
            kernels.cross(q[:7], memory, rows, Scores(head_dim**-0.5))


def _kv_writes(kernels: Recorder, random: Random) -> Iterator[str]:
    for kind in KV_TYPES:
        for _, kv_heads, head_dim, past, rows in (*SHAPES, (1, 4, 64, 5, 200)):
            capacity = (past + rows + 15) // 16 * 16
            cache = Cache(kind, capacity, kv_heads, head_dim)
            joined, pairs = floats(random, rows, (2 * kv_heads + 1) * head_dim), head_dim // 2
            k, _, v = np.split(joined, [kv_heads * head_dim, (kv_heads + 1) * head_dim], axis=1)
            rope = random.uniform(-1, 1, (rows, 2, pairs)).astype(np.float32)
            yield f"{kind} {kv_heads} heads of {head_dim}, {rows} rows from {past}"
            kernels.kv_write(k, v, past, cache, rope if random.random() < 0.7 else None)


def _moves(kernels: Recorder, random: Random) -> Iterator[str]:
    for kind in KV_TYPES:
        heads, dim, capacity = np.array([2, 1, 3]), 24, 48
        size = capacity * int(heads.sum()) * kv_head_bytes(kind, dim)
        data = random.integers(0, 255, size, np.uint8)
        source = np.sort(random.choice(np.arange(20, 40), 7, replace=False))
        target = np.arange(20, 27)
        cache = CacheArgs(None, size, KV_TYPES.index(kind), capacity, dim, len(heads))
        args = MoveArgs(cache, count=len(source))
        args.cache.data = data.ctypes.data_as(type(args.cache.data))
        for owner, name, array in (
            (args.cache, "kv_heads", heads),
            (args, "from_", source),
            (args, "to", target),
        ):
            setattr(owner, name, array.ctypes.data_as(type(getattr(owner, name))))
        yield kind
        kernels.call("move_rows", args)


PARTS = (
    *(_linears, _heads, _embeds, _norms, _rope_tables),
    *(_attentions, _sources, _kv_writes, _moves),
)
