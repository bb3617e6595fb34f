"""What `quickdraft bench device` says: reports and comparisons, as text and as a page."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quickdraft import strict_json
from quickdraft.commands.output import human_size
from quickdraft.errors import InputError, MissingExtra, OptionError

KIND = "quickdraft device report"
COMPARISON = "quickdraft device comparison"
SCHEMA_VERSION = 1
MAX_BYTES = 1 << 24
MAX_DEPTH = 12
SAME = ("tokens", "prompts")
"""Reports that differ in these are not about the same work."""
NOTED = ("model", "weights", "kv_cache", "drafter", "rounds", "version", "threads")
REQUIRED = ("device", "model", "classes", "overall", "quality", "memory", "energy", *SAME)
SIMULATED = (
    "SIMULATED: steps take the time that a device's profile says, a bound that no real device "
    "reaches. Texts, their quality and the time of drafting are those of the processor that "
    "computed them."
)

Report = dict[str, Any]
Table = list[list[str]]


def check_plots() -> None:
    """Refuse a page whose plots could not be drawn.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtra("matplotlib", "bench")


def read_report(path: Path) -> Report:
    """A report, or a comparison, that was written before.

    Raises:
        InputError: it is not one, or of a newer version.
    """
    try:
        value = strict_json.loads(path.read_bytes(), max_bytes=MAX_BYTES, max_depth=MAX_DEPTH)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except strict_json.JsonProblem as problem:
        raise InputError(f"{path} {problem}") from None
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in (KIND, COMPARISON):
        raise InputError(f"{path} is no report of `quickdraft bench device` (kind {kind!r})")
    if value.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} has the schema_version {value.get('schema_version')!r}; this version reads "
            f"{SCHEMA_VERSION}: measure again"
        )
    for report in reports_of(value):
        lacking = [name for name in REQUIRED if name not in report]
        if lacking:
            raise InputError(f"{path} lacks {', '.join(lacking)}; measure again")
    return dict(value)


def reports_of(result: Report) -> list[Report]:
    """The reports of a comparison, or a report as the only one."""
    found: list[Report] = result["reports"] if result["kind"] == COMPARISON else [result]
    return found


def compare(results: Sequence[Report]) -> Report:
    """Several reports as one comparison, the first being what others are compared with.

    Raises:
        OptionError: they are not about the same work.
    """
    reports = [report for result in results for report in reports_of(result)]
    notes = []
    for name in (*SAME, *NOTED):
        values = {str(report.get(name)) for report in reports}
        if len(values) == 1:
            continue
        if name in SAME:
            raise OptionError(
                f"the reports differ in {name} ({', '.join(sorted(values))}) and do not compare; "
                "measure them with the same options and version"
            )
        notes.append(f"{name} differs: {', '.join(sorted(values))}")
    return {
        "kind": COMPARISON,
        "schema_version": SCHEMA_VERSION,
        "notes": notes,
        "reports": reports,
    }


def title(report: Report) -> str:
    """The name of a device, marked where it is simulated."""
    device = report["device"]
    mark = " (SIMULATED)" if device["simulated"] else ""
    return f"{device['title']}{mark}"


def markdown(result: Report) -> str:
    """A report or comparison as Markdown."""
    parts: list[str] = []
    for heading, table, notes in _sections(result):
        parts.append(f"{'#' if not parts else '##'} {heading}\n")
        parts += [f"{note}\n" for note in notes]
        if table:
            parts.append(_markdown_table(table) + "\n")
    return "\n".join(parts)


def page(result: Report) -> str:
    """A report or comparison as an HTML page that needs nothing else, plots included."""
    from quickdraft.commands.device_plots import draw

    body = []
    for number, (heading, table, notes) in enumerate(_sections(result)):
        level = 1 if number == 0 else 2
        body.append(f"<h{level}>{html.escape(heading)}</h{level}>")
        body += [f"<p>{html.escape(note)}</p>" for note in notes]
        if table:
            body.append(_html_table(table))
    for caption, png in draw(reports_of(result)):
        data = base64.b64encode(png).decode("ascii")
        body.append(f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">')
    style = (
        "body{font:16px sans-serif;margin:2em;max-width:60em}table{border-collapse:collapse}"
        "td,th{border:1px solid #bbb;padding:.3em .6em;text-align:left}img{max-width:100%}"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>quickdraft bench device</title><style>{style}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _sections(result: Report) -> Iterator[tuple[str, Table, list[str]]]:
    reports = reports_of(result)
    simulated = [SIMULATED] if any(r["device"]["simulated"] for r in reports) else []
    if result["kind"] == COMPARISON:
        yield "Devices compared", _overview(reports), [*simulated, *result["notes"]]
        yield "Second and later tokens per second, drafted (plain)", _classes(reports), []
        yield "Milliseconds to the first token", _first_tokens(reports), []
        return
    (report,) = reports
    yield title(report), _facts(report), simulated
    yield "Speed by class of prompt", _speeds(report), _speed_notes(report)
    yield "Starts", _starts(report), []


def _facts(report: Report) -> Table:
    memory, energy, quality = report["memory"], report["energy"], report["quality"]
    budget = "unknown" if memory["budget"] is None else human_size(memory["budget"])
    identical = {True: "yes", False: "NO", None: "no drafts"}[quality["identical"]]
    per_token = energy["joules_per_token"]
    told = energy["note"]
    if per_token is not None:
        told = ", ".join(f"{way} {joules:.3f} J" for way, joules in per_token.items()) + " a token"
    overall = {way: found for way, found in report["overall"].items() if found is not None}
    rows = [["", ""], *_placed(report), ["why", report["device"]["why"]]]
    for way, found in overall.items():
        rows.append([way, f"{found['ttft_ms']:.1f} ms to the first token, {found['rate']:.1f} t/s"])
    rows += [
        [
            "quality",
            f"{quality['guarantee']}; drafted as plain: {identical}; perplexity "
            f"{quality['perplexity'] if quality['perplexity'] is not None else 'not measured'}",
        ],
        [
            "memory",
            f"{human_size(memory['needed'])} of {budget} planned for {memory['context']} tokens; "
            "largest size of the process here "
            + ("unknown" if memory["peak"] is None else human_size(memory["peak"])),
        ],
        ["energy", told],
        ["machine", str((report.get("machine") or {}).get("processor"))],
        ["versions", f"quickdraft {report.get('version')} ({report.get('commit')}), "
                     + ", ".join(f"{k} {v}" for k, v in (report.get("versions") or {}).items())],
        ["date", str(report.get("date"))],
    ]  # fmt: skip
    return rows


def _placed(report: Report) -> Table:
    """The model, and where it ran; of a simulated device, what is timed and what computed."""
    timed = report["device"].get("timed_as")
    isa = f", {report['isa']}" if report.get("isa") else ""
    device = None if report["device"]["simulated"] else report.get("runs_on")
    backend = ":".join(filter(None, (report["backend"], device)))
    flavour = "" if report["flavour"] == report["backend"] else f", {report['flavour']}"
    ran = f"{backend}{flavour}{isa}, {report['threads']} threads"
    model = f"{report['model']}, weights {_weights(report)}"
    if timed is None:
        return [["model", model], ["runs on", ran]]
    rows = "" if timed["rows"] is None else f"steps of {', '.join(map(str, timed['rows']))} rows, "
    return [
        ["model", f"{model}, keys and values {timed['kv_cache']}"],
        ["timed as", f"{rows}{timed['tops']:g} TOPS, {timed['bandwidth_gb_s']:g} GB/s"],
        ["computed by", f"{ran}, weights {report['weights']}, keys and values "
                        f"{report['kv_cache']}"],
    ]  # fmt: skip


def _weights(report: Report) -> str:
    """The format of the weights that times are of."""
    timed = report["device"].get("timed_as")
    return str(report["weights"] if timed is None else timed["weights"])


def _speeds(report: Report) -> Table:
    head = ["class", "prompt tokens", "ttft ms", "plain t/s", "drafted t/s", "ratio"]
    rows = [[*head, "tokens/step", "accepted", "same text"]]
    for name, figures in report["classes"].items():
        plain, drafted = figures["plain"], figures.get("drafted", {})
        same = {True: "yes", False: "NO", None: ""}[figures.get("identical")]
        rows.append(
            [
                name,
                f"{figures['prompt_tokens']:.0f}",
                f"{plain['ttft_ms']:.1f}",
                f"{plain['rate']:.1f}",
                _number(drafted.get("rate"), 1),
                _number(figures.get("ratio"), 2),
                _number(drafted.get("tokens_per_step"), 2),
                _number(drafted.get("acceptance"), 2),
                same,
            ]
        )
    return rows


def _speed_notes(report: Report) -> list[str]:
    notes = [
        f"Answers of {report['tokens']} tokens; rounds after a warm-up: {report['rounds']}; t/s: "
        "1000 over the mean milliseconds of a token after the first; ratio: drafted over plain; "
        "accepted: part of the drafted tokens; same text: whether all drafted answers are the "
        "plain ones. The classes are those of MLPerf Client, the prompts are ours."
    ]
    for name, count in report.get("skipped", {}).items():
        notes.append(f"{count} of {name} left out: too long for the context of the model.")
    return notes


def _starts(report: Report) -> Table:
    starts = report.get("starts")
    if starts is None or "note" in starts:
        return [["start", ""], ["not measured", (starts or {}).get("note", "left out")]]
    rows = [["start", "to the first token", "loading", "files out of the system's cache"]]
    for name, found in starts.items():
        dropped = "asked for" if found["dropped"] else "no"
        total, loading = (f"{found[key]:.0f} ms" for key in ("total_ms", "load_ms"))
        rows.append([name, total, loading, dropped])
    return rows


def _overview(reports: Sequence[Report]) -> Table:
    rows = [
        [
            "device",
            "model",
            "ttft ms",
            "plain t/s",
            "drafted t/s",
            "memory",
            "J/token",
            "perplexity",
        ]
    ]
    for report in reports:
        plain = report["overall"]["plain"] or {}
        drafted = report["overall"].get("drafted") or {}
        joules = report["energy"]["joules_per_token"] or {}
        rows.append(
            [
                title(report),
                f"{report['model']} ({_weights(report)})",
                _number(plain.get("ttft_ms"), 1),
                _number(plain.get("rate"), 1),
                _number(drafted.get("rate"), 1),
                human_size(report["memory"]["needed"]),
                _number(joules.get("drafted", joules.get("plain")), 3),
                _number(report["quality"]["perplexity"], 3),
            ]
        )
    return rows


def _classes(reports: Sequence[Report]) -> Table:
    names = dict.fromkeys(name for report in reports for name in report["classes"])
    rows = [["class", *map(title, reports)]]
    for name in names:
        cells = []
        for report in reports:
            figures = report["classes"].get(name, {})
            plain = _number(figures.get("plain", {}).get("rate"), 1)
            drafted = _number(figures.get("drafted", {}).get("rate"), 1)
            cells.append(f"{drafted} ({plain})" if drafted else plain)
        rows.append([name, *cells])
    return rows


def _first_tokens(reports: Sequence[Report]) -> Table:
    names = dict.fromkeys(name for report in reports for name in report["classes"])
    rows = [["class", *map(title, reports)]]
    for name in names:
        found = (report["classes"].get(name, {}).get("plain", {}) for report in reports)
        rows.append([name, *(_number(figures.get("ttft_ms"), 1) for figures in found)])
    return rows


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _markdown_table(table: Table) -> str:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in table]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    lines.insert(1, "|" + " --- |" * len(table[0]))
    return "\n".join(lines)


def _html_table(table: Table) -> str:
    rows = []
    for number, row in enumerate(table):
        tag = "th" if number == 0 else "td"
        rows.append("".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row))
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"
