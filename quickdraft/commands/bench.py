"""`quickdraft bench`: prefill and decoding speed, in the shape of llama-bench."""

from __future__ import annotations

import csv
import io
import json
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quickdraft.commands.options import common_options, loading_options, whole_numbers
from quickdraft.commands.output import human_count, human_size
from quickdraft.commands.progress import Bars, open_model
from quickdraft.errors import InputError, OptionError

if TYPE_CHECKING:
    from quickdraft.runtime.benchmark import Measurement
    from quickdraft.runtime.model import Model

FORMATS = ("md", "csv", "json", "jsonl")

TEXT = '''Here is a Python function. Write it again with type hints, and change nothing else.

def merge_intervals(intervals):
    """Merge overlapping intervals and return them in order."""
    merged = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged

def total_length(intervals):
    """Add up the lengths of the merged intervals."""
    length = 0
    for start, end in merge_intervals(intervals):
        length += end - start
    return length

The same with type hints:
'''


@click.command()
@click.argument("model")
@click.option(
    "-p", "--prompts", default="128,512", show_default=True, callback=whole_numbers,
    metavar="N,...", help="Lengths of prefill tests; empty for none.",
)  # fmt: skip
@click.option(
    "-n", "--decode", default="64", show_default=True, callback=whole_numbers,
    metavar="N,...", help="Steps of decoding tests; empty for none.",
)  # fmt: skip
@click.option("-r", "--repetitions", default=5, show_default=True, type=int)
@click.option(
    "--drafter", "drafters", multiple=True,
    help="Also decode a text with this drafter (none: without one). Repeatable.",
)  # fmt: skip
@click.option(
    "--prefill", "prefills", multiple=True, metavar="KIND",
    help="Also prefill this way, such as predicted. Repeatable.",
)  # fmt: skip
@click.option(
    "--text", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Prompt of the tests with a drafter, instead of the built-in one.",
)  # fmt: skip
@click.option("-o", "--output", default="md", show_default=True, type=click.Choice(FORMATS))
@loading_options("device", "backend", "weights", "threads", "kv_cache", "offline")
@common_options
def bench(
    model: str,
    drafters: tuple[str, ...],
    prefills: tuple[str, ...],
    text: Path | None,
    output: str,
    loading: dict[str, Any],
    as_json: bool,
    **tests: Any,
) -> None:
    """Measure prefill and decoding speed.

    pp512 is the prefill of 512 tokens, tg64 is 64 decoding steps, both from an empty cache, in
    tokens per second. As in llama-bench, tokens are fixed and random, and neither tokenising nor
    sampling is timed. Tests with a drafter decode the answer to a text, engine and sampling
    included.
    """
    from quickdraft.runtime.benchmark import measure, measure_prediction, measure_text
    from quickdraft.runtime.prediction import Prefill

    prompt = TEXT if text is None else _read(text)
    decoded, repetitions = max(tests["decode"], default=64), tests["repetitions"]
    prompts = tests["prompts"]
    total = len(prompts) * (1 + len(prefills)) + len(tests["decode"]) + len(drafters)
    for prefill in prefills:
        Prefill.parse(prefill)  # bad values fail before anything is fetched
    if not total:
        raise OptionError("there is nothing to measure; give --prompts, --decode or --drafter")
    rows: list[dict[str, Any]] = []
    # What a step costs is measured where a plan will need it.
    drafting = {"drafter": "auto" if drafters else "none", "store": False}
    with (
        open_model(model, **loading, **drafting) as loaded,
        Bars(quiet=as_json, transient=True) as bars,
    ):
        runs = chain(
            measure(loaded.backend, **tests),
            *(measure_prediction(loaded, prompts, how, repetitions) for how in prefills),
            (measure_text(loaded, prompt, decoded, name, repetitions) for name in drafters),
        )
        for measurement in runs:
            rows.append(_row(loaded, measurement, loading.get("threads")))
            bars("bench", len(rows), total)
    click.echo(_render(rows, "json" if as_json else output, repetitions), nl=False)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"--text: {file} is not UTF-8") from None


def _row(model: Model, m: Measurement, threads: int | None) -> dict[str, Any]:
    """One test as plain JSON types; rates in tokens per second."""
    from quickdraft.runtime.backends.simulated import simulated_device

    return {
        "model": model.name,
        "size": _size(model),
        "params": model.spec.num_parameters,
        "backend": model.backend.name,
        "simulated": simulated_device(model.backend),
        "flavour": model.backend.flavour,
        "device": model.backend.device,
        "isa": model.backend.isa,
        "kv_cache": model.backend.kv_type,
        "threads": threads or "auto",
        "test": m.test,
        "mean": round(m.mean, 3),
        "deviation": round(m.deviation, 3),
        "slowest": round(m.slowest, 3),
        "acceptance": None if m.acceptance is None else round(m.acceptance, 4),
        "tokens_per_step": None if m.tokens_per_step is None else round(m.tokens_per_step, 3),
        "seconds": [round(seconds, 6) for seconds in m.seconds],
    }


def _size(model: Model) -> int:
    """Bytes of the files that the backend loaded."""
    from quickdraft.runtime.backends.opening import weight_bytes

    return weight_bytes(model.manifest, model.backend)


def _render(rows: list[dict[str, Any]], output: str, repetitions: int) -> str:
    if output == "json":
        return json.dumps(rows, ensure_ascii=False) + "\n"
    if output == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if output == "csv":
        return _csv(rows)
    return _markdown(rows, repetitions)


def _csv(rows: list[dict[str, Any]]) -> str:
    """A line per test; the seconds of the repetitions are separated by spaces."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, "seconds": " ".join(map(str, row["seconds"]))})
    return text.getvalue()


def _place(row: dict[str, Any]) -> str:
    """The backend, with its device where that is not the processor."""
    return row["backend"] if row["device"] == "CPU" else f"{row['backend']}:{row['device']}"


def _markdown(rows: list[dict[str, Any]], repetitions: int) -> str:
    drafted = any(row["tokens_per_step"] for row in rows)
    head = ["model", "size", "params", "backend", "threads", "test", "t/s", "min t/s"]
    table = [head + ["accepted", "tokens/step"] * drafted]
    for row in rows:
        cells = [
            row["model"],
            human_size(row["size"]),
            human_count(row["params"]),
            row["simulated"] or _place(row),
            str(row["threads"]),
            row["test"],
            f"{row['mean']:.2f} ± {row['deviation']:.2f}",
            f"{row['slowest']:.2f}",
        ]
        if drafted:
            share, step = row["acceptance"], row["tokens_per_step"]
            cells += [
                "" if share is None else f"{share:.1%}",
                "" if step is None else f"{step:.2f}",
            ]
        table.append(cells)
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in table
    ]
    lines.insert(1, "| " + " | ".join("-" * w for w in widths) + " |")
    method = (
        f"Mean ± standard deviation and minimum of {repetitions} repetitions after a warm-up; "
        "pp and tg: fixed random tokens, no tokenising, no sampling, empty cache."
    )
    return "\n".join([*lines, "", method, ""])
