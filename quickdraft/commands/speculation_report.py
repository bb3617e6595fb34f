"""What `quickdraft bench speculation` says: a document, tables and a plot."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quickdraft.commands.circumstances import circumstances, name_only
from quickdraft.commands.output import table
from quickdraft.runtime.speculation_bench import PLAIN, Samples, seconds, tokens
from quickdraft.runtime.suites import CODE, SPEC_BENCH

if TYPE_CHECKING:
    from quickdraft.runtime.metrics import StepRecord
    from quickdraft.runtime.model import Model
    from quickdraft.runtime.speculation_bench import SpeculationPlan

GROUPS = {"spec-bench": SPEC_BENCH, "code": CODE}
"""Categories whose ratios are also averaged."""
LEAST_TOKENS = 8
"""Shorter answers count in sums, but have no speed of their own: the clock would decide it."""


@dataclass(frozen=True)
class Measured:
    """Who was measured. drafter, threads: as asked for. peers: what the other engines say of
    themselves, by `engine/mode`."""

    model: Model
    drafter: str
    threads: int
    peers: Mapping[str, Mapping[str, Any]]


def document(measured: Measured, plan: SpeculationPlan, samples: Samples) -> dict[str, Any]:
    """The result as plain JSON types; docs/cli.md describes it. Times in ms."""
    from quickdraft.runtime.backends.opening import opened_variant
    from quickdraft.runtime.backends.simulated import simulated_device

    model = measured.model
    known = [name for name in plan.suites if samples.measured(name)]
    categories = {name: category_figures(name, samples, tuple(plan.settings)) for name in known}
    return {
        **circumstances(),
        "model": name_only(model.name),
        "weights": opened_variant(model.manifest, model.backend).weight_format,
        "backend": model.backend.name,
        "simulated": simulated_device(model.backend),
        "device": model.backend.device,
        "isa": model.backend.isa,
        "kv_cache": model.backend.kv_type,
        "threads": measured.threads,
        "drafter": measured.drafter,
        "config": plan.config.to_dict(),
        "settings": {name: dict(options) for name, options in plan.settings.items()},
        "cold": plan.cold,
        "rounds": samples.rounds,
        "interrupted": samples.rounds < plan.rounds,
        "categories": categories,
        "groups": groups(categories),
        "peers": {
            peer: {name: tps for name in known if (tps := speed(name, samples, peer))}
            for peer in measured.peers
        },
        "facts": {name: dict(told) for name, told in measured.peers.items()},
    }


def groups(categories: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Means of the ratios of the groups that were measured whole."""
    return {
        group: {"ratio": round(mean(categories[name]["ratio"] for name in members), 4)}
        for group, members in GROUPS.items()
        if all(name in categories and categories[name]["ratio"] for name in members)
    }


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean; 0 of nothing."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else 0.0


def speed(category: str, samples: Samples, engine: str) -> float:
    """Tokens per second over all prompts of a category, each in its best round."""
    turns = [samples.best(category, name, engine) for name in samples.measured(category)]
    return round(_rate(sum(map(tokens, turns)), math.fsum(map(seconds, turns))), 3)


def _rate(count: int, spent: float) -> float:
    return count / spent if spent > 0 else 0.0


def category_figures(category: str, samples: Samples, settings: Sequence[str]) -> dict[str, Any]:
    """One entry of `categories`. settings: plain, the one in question, others."""
    names = samples.measured(category)
    tested = settings[1]
    plain_tps, spec_tps = (speed(category, samples, name) for name in (PLAIN, tested))
    ours = [samples.best(category, name, tested) for name in names]
    steps = [step for turns in ours for turn in turns for step in turn.steps]
    answers = [answer_figures(category, name, samples, tested) for name in names]
    known = [answer["ratio"] for answer in answers if answer["ratio"] is not None]
    fixed = [name for name in settings if name != tested]
    speeds = {name: speed(category, samples, name) for name in fixed}
    identical = {
        name: all(samples.identical(category, prompt, name) for prompt in names)
        for name in settings
    }
    prefills = [turn.prefill_s for turns in ours for turn in turns]
    return {
        "plain_tps": plain_tps,
        "spec_tps": spec_tps,
        "ratio": _ratio(spec_tps, plain_tps),
        "tokens_per_step": round(_rate(sum(step.emitted for step in steps), len(steps)), 3),
        "identical": identical[tested],
        "worst_prompt_ratio": min(known, default=None),
        "prompts": len(names),
        "tokens": sum(map(tokens, ours)),
        "acceptance": _ratio(sum(s.accepted for s in steps), sum(s.drafted for s in steps)),
        "acceptance_by_depth": by_depth(steps),
        "drafters": by_drafter(steps),
        "rows_per_step": round(mean(step.rows for step in steps), 3),
        "verify_ms": round(1e3 * mean(step.verify_s for step in steps), 3),
        "draft_ms": round(1e3 * mean(step.draft_s for step in steps), 4),
        "learn_ms": round(1e3 * mean(step.learn_s for step in steps), 4),
        "prefill_ms": round(1e3 * mean(prefills), 3),
        "guarantee": sorted({turn.guarantee for turns in ours for turn in turns if turn.guarantee}),
        "settings": {name: {"tps": speeds[name], "identical": identical[name]} for name in fixed},
        "of_best_setting": _ratio(spec_tps, max(speeds.values())),
        "answers": answers,
    }


def _ratio(value: float, base: float) -> float | None:
    return round(value / base, 4) if base else None


def answer_figures(category: str, name: str, samples: Samples, tested: str) -> dict[str, Any]:
    """One prompt: the time of its answers, plain and with drafts. A ratio is one of tokens per
    second, None where an answer is short."""
    plain, ours = (samples.best(category, name, engine) for engine in (PLAIN, tested))
    timed = min(tokens(plain), tokens(ours)) >= LEAST_TOKENS
    rates = _rate(tokens(ours), seconds(ours)), _rate(tokens(plain), seconds(plain))
    return {
        "name": name,
        "prompt_tokens": samples.prompts[category, name],
        "tokens": [tokens(plain), tokens(ours)],
        "plain_ms": round(1e3 * seconds(plain), 3),
        "spec_ms": round(1e3 * seconds(ours), 3),
        "ratio": _ratio(*rates) if timed else None,
        "identical": samples.identical(category, name, tested),
    }


def by_depth(steps: Sequence[StepRecord]) -> list[float]:
    """Of the steps that drafted to depth 1, 2, ..., the share that accepted as far."""
    shares = []
    for depth in range(1, max((step.depth for step in steps), default=0) + 1):
        reached = [step for step in steps if step.depth >= depth]
        shares.append(round(sum(step.accepted >= depth for step in reached) / len(reached), 4))
    return shares


def by_drafter(steps: Sequence[StepRecord]) -> dict[str, dict[str, float | int | None]]:
    """Tokens drafted and accepted by drafter, and its time per step. A token that several
    drafters proposed counts for each of them."""
    names = sorted({name for step in steps for name in step.by_drafter})
    figures: dict[str, dict[str, float | int | None]] = {}
    for name in names:
        counts = [step.by_drafter[name] for step in steps if name in step.by_drafter]
        drafted, accepted = (sum(column) for column in zip(*counts, strict=True))
        spent = mean(step.draft_s_by.get(name, 0.0) for step in steps)
        figures[name] = {
            "drafted": drafted,
            "accepted": accepted,
            "acceptance": _ratio(accepted, drafted),
            "draft_ms": round(1e3 * spent, 4),
        }
    return figures


def render(result: Mapping[str, Any]) -> str:
    """Tables, as text: ours, fixed settings where there are any, peers where there are any."""
    mark = f", time of {result['simulated']}" if result.get("simulated") else ""
    parts = [f"{result['model']}, tokens per second{mark}", _ours(result["categories"])]
    if len(result["settings"]) > 2:
        parts += ["fixed numbers of drafted tokens, tokens per second", _settings(result)]
    if result["peers"]:
        parts += ["peers in their best modes, tokens per second", _peers(result)]
    parts.append("\n".join(_remarks(result)))
    return "\n\n".join(parts)


_HEAD = ("category", "plain", "drafted", "ratio", "worst", "tokens/step", "accepted")


def _ours(categories: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [[*_HEAD, "verify ms", "draft ms", "identical"]]
    for name, found in categories.items():
        rows.append(
            [
                name,
                f"{found['plain_tps']:.1f}",
                f"{found['spec_tps']:.1f}",
                _shown(found["ratio"]),
                _shown(found["worst_prompt_ratio"]),
                f"{found['tokens_per_step']:.2f}",
                _shown(found["acceptance"], ".0%"),
                f"{found['verify_ms']:.2f}",
                f"{found['draft_ms']:.3f}",
                "yes" if found["identical"] else "NO",
            ]
        )
    return table(rows, frozenset(range(1, 9)))


def _shown(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)


def _settings(result: Mapping[str, Any]) -> str:
    plain, tested, *others = result["settings"]
    fixed = [plain, *others]
    rows = [["category", *fixed, tested, "of best"]]
    for name, found in result["categories"].items():
        speeds = [found["settings"][setting]["tps"] for setting in fixed]
        cells = [f"{tps:.1f}" for tps in [*speeds, found["spec_tps"]]]
        rows.append([name, *cells, _shown(found["of_best_setting"])])
    return table(rows, frozenset(range(1, len(rows[0]))))


def _peers(result: Mapping[str, Any]) -> str:
    """The best mode of every engine, and our speed over that of the best of them."""
    engines = engines_of(result)
    head = [cell for engine in engines for cell in (engine, "mode")]
    rows = [["category", *head, "ours", "to best"]]
    for name, found in result["categories"].items():
        cells, speeds = [], []
        for modes in engines.values():
            mode, tps = best_mode(modes, name)
            cells += [_shown(tps or None, ".1f"), mode]
            speeds.append(tps)
        ours = found["spec_tps"]
        rows.append([name, *cells, f"{ours:.1f}", _shown(_ratio(ours, max(speeds)))])
    numbers = {place for place in range(len(rows[0])) if place and rows[0][place] != "mode"}
    return table(rows, frozenset(numbers))


def engines_of(result: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, float]]]:
    """Speeds by category, by mode, by engine."""
    engines: dict[str, dict[str, Mapping[str, float]]] = {}
    for name, speeds in result["peers"].items():
        engine, _, mode = name.rpartition("/")
        engines.setdefault(engine, {})[mode] = speeds
    return engines


def best_mode(modes: Mapping[str, Mapping[str, float]], category: str) -> tuple[str, float]:
    """The fastest mode of an engine, and its speed; no name and 0 where it was not asked."""
    known = {mode: speeds[category] for mode, speeds in modes.items() if category in speeds}
    return max(known.items(), key=lambda item: item[1], default=("", 0.0))


def _remarks(result: Mapping[str, Any]) -> list[str]:
    """Means, and how the figures were made."""
    lines = [f"{name}: mean ratio {found['ratio']:.2f}" for name, found in result["groups"].items()]
    memory = "nothing learnt is kept" if result["cold"] else "learning from prompt to prompt"
    lines.append(
        f"{result['weights']} weights, {result['threads']} threads, drafter {result['drafter']}, "
        f"best of {max(result['rounds'], 1)} rounds, {memory}"
    )
    if result["interrupted"]:
        lines.append(f"interrupted after {result['rounds']} complete rounds")
    return lines


def draw(result: Mapping[str, Any]) -> bytes:
    """A PNG image: bars of tokens per second by category, ours and every peer's best mode."""
    from matplotlib.figure import Figure

    categories = result["categories"]
    bars = {
        "plain": [found["plain_tps"] for found in categories.values()],
        "drafted": [found["spec_tps"] for found in categories.values()],
    }
    for engine, modes in engines_of(result).items():
        bars[f"{engine}, best mode"] = [best_mode(modes, name)[1] for name in categories]
    figure = Figure(figsize=(max(6.0, 1.3 * len(categories)), 4), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(bars)
    for number, (label, speeds) in enumerate(bars.items()):
        places = [
            place + width * (number - (len(bars) - 1) / 2) for place in range(len(categories))
        ]
        axes.bar(places, speeds, width, label=label)
    axes.set(title=result["model"], ylabel="tokens per second")
    axes.set_xticks(range(len(categories)), [*categories], rotation=30, ha="right")
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()
