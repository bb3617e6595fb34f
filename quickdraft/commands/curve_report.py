"""What `quickdraft bench curve` says: a document, a table and a plot."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from quickdraft.commands.circumstances import circumstances, name_only
from quickdraft.commands.output import table
from quickdraft.commands.weight_bytes import step_bytes, variant_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from quickdraft.bundle import Bundle
    from quickdraft.runtime.curve import CurvePlan, Point, Samples

OURS = "quickdraft"


def document(
    model: str,
    bundle: Bundle,
    plan: CurvePlan,
    samples: Samples,
    facts: dict[str, dict[str, Any]],
    interrupted: bool,
) -> dict[str, Any]:
    """The result as plain JSON types; docs/cli.md describes it. Times in ms, MB of 1e6 bytes."""
    from quickdraft.runtime.backends.opening import variant_for

    variant = variant_for(bundle.manifest, facts[OURS]["backend"], facts[OURS].get("device", ""))
    return {
        **circumstances(),
        "weights": variant.weight_format,
        "weights_bytes": variant_bytes(bundle.manifest, variant),
        "step_bytes": step_bytes(bundle.folder, bundle.manifest, variant),
        "threads": plan.threads,
        "rounds": samples.rounds,
        "interrupted": interrupted,
        "curves": [
            {
                "model": name_only(model),
                "context": context,
                "bandwidth_gbs": round(max(samples.bandwidths), 1),
                "engines": {
                    name: _figures(name, context, plan, samples) | {"facts": facts[name]}
                    for name in facts
                },
            }
            for context in plan.contexts
        ],
    }


def _figures(name: str, context: int, plan: CurvePlan, samples: Samples) -> dict[str, Any]:
    """Minimum and median over the rounds. Prompts start from an empty cache, at any context."""
    points = [p for p in plan.points if p.context in (0, context)]
    peak = samples.peak_bytes[name, context]

    def by_count(kind: str, figure: Callable[[str, Point], float]) -> dict[str, float]:
        return {str(p.count): round(figure(name, p), 3) for p in points if p.kind == kind}

    return {
        "T": by_count("T", samples.minimum),
        "T_median": by_count("T", samples.median),
        "prefill": by_count("prefill", samples.minimum),
        "prefill_median": by_count("prefill", samples.median),
        "rss_mb": None if peak is None else round(peak / 1e6, 1),
        "kv_bytes": samples.kv_bytes[name, context],
    }


def render(result: dict[str, Any]) -> str:
    """A table per context, as text."""
    parts = []
    for curve in result["curves"]:
        rows = _rows(curve)
        numbers = frozenset(range(1, len(rows[0])))
        title = f"{curve['model']}, context {curve['context']}, in ms"
        parts.append("\n".join([title, "", table(rows, numbers), "", *_remarks(result, curve)]))
    if result["interrupted"]:
        parts.append(f"interrupted after {result['rounds']} complete rounds")
    return "\n\n".join(parts)


def _rows(curve: dict[str, Any]) -> list[list[str]]:
    """Cells: a line per test, a column per engine, then ratios of ours."""
    engines = curve["engines"]
    compared = len(engines) > 1
    rows = [["test", *engines, *["to best peer"] * compared, "to T(1)"]]
    single = engines[OURS]["T"].get("1")
    for kind, label in (("T", "T({})"), ("prefill", "prefill {}")):
        for count in engines[OURS][kind]:
            times = [engine[kind][count] for engine in engines.values()]
            cells = [label.format(count), *(f"{time:.2f}" for time in times)]
            if compared:
                cells.append(f"{times[0] / min(times[1:]):.2f}")
            cells.append(f"{times[0] / single:.2f}" if kind == "T" and single else "")
            rows.append(cells)
    memory = [f"{engine['rss_mb']:.0f}" if engine["rss_mb"] else "?" for engine in engines.values()]
    rows.append(["peak MB", *memory, *[""] * (compared + 1)])
    return rows


def least_ms(result: dict[str, Any], curve: dict[str, Any]) -> float:
    """Milliseconds that reading the weights takes at the measured bandwidth."""
    least: float = result["step_bytes"] / curve["bandwidth_gbs"] / 1e6
    return least


def _remarks(result: dict[str, Any], curve: dict[str, Any]) -> list[str]:
    """How the figures stand to the limit of the machine, and how they were made."""
    least = least_ms(result, curve)
    limit = (
        f"{result['step_bytes'] / 1e6:.0f} MB of weights a step at {curve['bandwidth_gbs']:.1f} "
        f"GB/s: {least:.2f} ms at the least"
    )
    single = curve["engines"][OURS]["T"].get("1")
    if single:
        limit += f"; T(1) is {single / least:.2f} times that"
    how = f"minimum of {result['rounds']} rounds, {result['threads']} threads"
    return [limit, f"{result['weights']} weights, {how}"]


def draw(result: dict[str, Any]) -> bytes:
    """A PNG image: T(M) over M, one panel per context, a line per engine."""
    from matplotlib.figure import Figure

    curves = result["curves"]
    figure = Figure(figsize=(5.5 * len(curves), 4), layout="constrained")
    for number, curve in enumerate(curves):
        axes = figure.add_subplot(1, len(curves), number + 1)
        for name, engine in curve["engines"].items():
            curve_points = [(int(count), time) for count, time in engine["T"].items()]
            axes.plot(*zip(*sorted(curve_points), strict=True), marker=".", label=name)
        axes.axhline(
            least_ms(result, curve), color="grey", linestyle=":", label="weights / bandwidth"
        )
        axes.set(
            title=f"{curve['model']}, context {curve['context']}",
            xlabel="rows of a step",
            ylabel="ms",
            ylim=(0, None),
        )
        axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()
