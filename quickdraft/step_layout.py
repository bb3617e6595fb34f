"""What a graph is fed and gives back: its cache, and the names of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from quickdraft.errors import BundleError


@dataclass(frozen=True)
class SlotsLayout:
    """A cache of one key and one value tensor per layer.

    float32 [slots, kv_heads, head_dim], slots a multiple of `alignment`; the step writes its rows
    in place at the slots it is given. Names hold `{layer}`.
    """

    kind: Literal["slots"]
    alignment: int
    past_key: str
    past_value: str
    present_key: str
    present_value: str


@dataclass(frozen=True)
class BlocksLayout:
    """A cache of one buffer that holds all layers.

    uint8 [bytes], laid out as docs/cache-layout.md says for a capacity that is a multiple of
    `alignment` slots. The step writes its rows in place: the same memory is given as the input
    `cache` and as the output `present`.
    """

    kind: Literal["blocks"]
    alignment: int
    cache: str
    present: str


@dataclass(frozen=True)
class RowsLayout:
    """A cache of one key and one value tensor per layer that a step reads and does not write; or a
    memory, which beside a cache of `fixed_state` is of the type that its package computes in.

    past: float32 [kv_heads, slots, head_dim], all committed rows first; present: float32
    [kv_heads, n, head_dim], the rows of the step, which the runtime puts where they belong: so the
    cache lives outside the graph. Names hold `{layer}`.
    """

    kind: Literal["rows"]
    alignment: int
    past_key: str
    past_value: str
    present_key: str
    present_value: str


@dataclass(frozen=True)
class StaticStep:
    """A step of a fixed number of rows, as a function of the model. output_rows: how many rows'
    logits it puts out."""

    name: str
    rows: int
    output_rows: int


@dataclass(frozen=True)
class FixedStateLayout:
    """A cache that lives in named states of the engine, and so is not given to a step.

    keys, values: names of states, float16 [KV heads of all layers, slots, head_dim]; the sum of
    those of a tuple is what is cached (a second one holds what float16 rounds away). A step writes
    its rows, filled up to one of `steps`, from the slot that it is given on. length: rows that a
    conversation may have. move: a function that copies `move_rows` slots, which its input `source`
    names, to those from the given slot on.
    """

    kind: Literal["fixed_state"]
    alignment: int
    length: int
    slots: int
    keys: tuple[str, ...]
    values: tuple[str, ...]
    steps: tuple[StaticStep, ...]
    move: str
    move_rows: int
    source: str


@dataclass(frozen=True)
class AppendedLayout:
    """Keys and values as other exporters pass them: past in, past and the step's rows out.

    One tensor each per layer, [1, kv_heads, rows, head_dim], float32 or float16; names hold
    `{layer}`. in_place: past and present may be the same memory of more rows than are filled; the
    mask says how many are.
    """

    kind: Literal["appended"]
    past_key: str
    past_value: str
    present_key: str
    present_value: str
    in_place: bool = False


@dataclass(frozen=True)
class StatesLayout:
    """Keys and values are growing states of the compiled model, as OpenVINO GenAI keeps them."""

    kind: Literal["states"]


@dataclass(frozen=True)
class RecomputedLayout:
    """There is no cache: every step is given all tokens again."""

    kind: Literal["recomputed"]


CacheLayout = (
    SlotsLayout
    | BlocksLayout
    | FixedStateLayout
    | RowsLayout
    | AppendedLayout
    | StatesLayout
    | RecomputedLayout
)
ADAPTED = ("appended", "states", "recomputed")
"""Kinds of cache of adapted graphs, and of no others."""


@dataclass(frozen=True)
class StepNames:
    """Names of the tensors of one step.

    With a cache of `slots` or `fixed_state`: slots, the slots to write (of such a state only the
    first), and biases, the attention bias inputs by window (None: full attention). With one of
    `blocks`: the inputs ancestors, past and full_logits, and the outputs top_values, top_ids and
    log_sum over the `top` largest logits of each row.
    hidden_states: output by number of layers passed. features: input of vectors that come with the
    tokens, None where there is none. logits, output_rows: None in a predictor. target_rows: in a
    predictor, its input of the slots of the target's cache to write, for one of `slots`;
    target_past: the same for one of `blocks`, as `past`. An encoder has positions, and either
    features or tokens, which else is empty. source: with a memory of `blocks`, the input of encoder
    and target that says what it holds: int64 [3], its rows, the type of its values, its capacity;
    in a static flavour float32 [1, its rows], the bias that masks those the source does not fill.
    distances: of scores with relative positions: int64, over slots [n, slots], over rows
    [n, slots + n], the position of what is there less that of a row; what no row may see has any.

    In an adapted graph, whose inputs have a batch of one in front: mask, the attention mask over
    past and step; positions, None where the graph counts itself; beams, the reordering of states;
    branch, of a merged graph, whether there is a past. Logits are those of every row.
    """

    tokens: str
    positions: str | None
    output_rows: str | None = None
    logits: str | None = None
    slots: str | None = None
    biases: Mapping[int | None, str] = field(default_factory=dict)
    hidden_states: Mapping[int, str] = field(default_factory=dict)
    ancestors: str | None = None
    past: str | None = None
    full_logits: str | None = None
    top_values: str | None = None
    top_ids: str | None = None
    log_sum: str | None = None
    top: int = 0
    features: str | None = None
    target_rows: str | None = None
    target_past: str | None = None
    source: str | None = None
    distances: str | None = None
    mask: str | None = None
    beams: str | None = None
    branch: str | None = None


def check_layout(cache: CacheLayout, where: str) -> None:
    """Refuse a layout that no backend could use; `where` names it.

    Raises:
        BundleError: it is one.
    """
    if not isinstance(cache, AppendedLayout | StatesLayout | RecomputedLayout) and (
        cache.alignment < 1
    ):
        raise BundleError(f"{where}.alignment is 0; it must be at least 1")
    if isinstance(cache, FixedStateLayout):
        _check_states(cache, where)
    if not isinstance(cache, SlotsLayout | RowsLayout | AppendedLayout):
        return
    for name in ("past_key", "past_value", "present_key", "present_value"):
        _check_pattern(getattr(cache, name), f"{where}.{name}")


def _check_pattern(pattern: str, where: str) -> None:
    # Filled in by str.format later, which must find this one plain field and no other.
    if "{layer}" not in pattern or set("{}") & set(pattern.replace("{layer}", "", 1)):
        raise BundleError(f"{where} is {pattern[:120]!r}; it must hold {{layer}}")


def _check_states(cache: FixedStateLayout, where: str) -> None:
    """Every step must fit behind the longest conversation, and one row must be possible."""
    if not cache.keys or len(cache.keys) != len(cache.values):
        raise BundleError(f"{where} must name as many states of keys as of values, one at least")
    counts = [cache.move_rows, cache.length, *(step.rows for step in cache.steps)]
    if not cache.steps or min(counts) < 1:
        raise BundleError(f"{where} needs steps, and all its counts must be at least 1")
    if any(not 1 <= step.output_rows <= step.rows for step in cache.steps):
        raise BundleError(f"{where}.steps puts out logits of more rows than it has, or of none")
    if all(step.output_rows < step.rows for step in cache.steps):
        raise BundleError(f"{where}.steps has none that puts out logits of all its rows")
    if cache.length + max(counts[0], *counts[2:]) > cache.slots:
        raise BundleError(
            f"{where} has {cache.slots} slots, too few for {cache.length} rows and one more step"
        )
