"""What does KV prediction gain for the first token, and what does it cost in quality?

    python bench/kv_prediction.py NAME BUNDLE DATA [--parts speed,quality,refresh]
        [--peers llama.cpp,openvino-genai --checkpoint FILE.gguf] [--ways 'predicted *ridge*']

Every predictor of the bundle and every auxiliary model alone, beside the exact prefill. `speed`:
the time to the first token by prompt length, beside the peers' prefill, and multiplications.
`quality`: perplexity of held-out text after a prefix that was read this way, agreement with the
exact model's answers to chat prompts, TriviaQA and HumanEval; HumanEval runs what the model wrote
(prediction/sandbox.py). `refresh`: the time to 128 tokens with `predicted+refresh`.

Prints tables; a plot and all figures go to bench/results/prediction-NAME.png and .json. A part that
is not measured this time is kept there as it was, and so is the quality of ways that are not asked
for if the setting is the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from harness import RESULTS, circumstances
from prediction.quality import Quality, Setting
from prediction.report import draw, render
from prediction.sandbox import isolation
from prediction.speed import measure_first_token, measure_refresh
from prediction.ways import Opening, Way, open_ways

from quickdraft.bundle import Bundle, open_bundle
from quickdraft.commands.peers import STEPPING, PeerChoice, name_list, peer_commands
from quickdraft.commands.progress import Bars
from quickdraft.commands.result_files import write_document
from quickdraft.hashes import cache_root
from quickdraft.runtime.engine_process import EngineProcess

PARTS = ("speed", "quality", "refresh")
Keep = Callable[[str, Mapping[str, Any]], None]


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS), type=names)
    parser.add_argument("--ways", nargs="*", default=[], help="patterns of names")
    parser.add_argument("--hybrid", nargs="*", type=int, default=[64])
    parser.add_argument("--lengths", nargs="*", type=int, default=[128, 512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--refresh-lengths", nargs="*", type=int, default=[512, 1024])
    parser.add_argument("--tokens", type=int, default=128, help="of answers that are refreshed")
    for field in fields(Setting):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv-cache")
    parser.add_argument("--peers", default="", type=names)
    parser.add_argument("--peers-dir", type=Path, default=cache_root() / "peers")
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"--parts: there is no {unknown.pop()}; there are {', '.join(PARTS)}")
    return options


def names(text: str) -> tuple[str, ...]:
    """`a,b` as names."""
    return name_list(None, None, text)  # type: ignore[arg-type]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = options_of(arguments)
    bundle = open_bundle(options.bundle)
    file = RESULTS / f"prediction-{options.name}.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    with ExitStack() as stack:
        hybrid = tuple(options.hybrid)
        opening = Opening(options.threads, options.kv_cache, tuple(options.ways), hybrid)
        ways = open_ways(bundle, opening, stack)
        document = {**kept, **facts(bundle, ways, options), "ways": kept.get("ways", {})}
        for way in ways:
            about = {"kind": way.kind, "details": dict(way.details)}
            document["ways"][way.name] = about

        def keep(part: str, figures: Mapping[str, Any]) -> None:
            document[part] = circumstances() | dict(figures)
            RESULTS.mkdir(exist_ok=True)
            write_document(file, document)

        bars = stack.enter_context(Bars(transient=True))
        if "speed" in options.parts:
            with started_peers(bundle, options, bars) as peers:
                keep("speed", measure_first_token(
                    ways, peers, options.lengths, options.rounds, bars
                ))  # fmt: skip
        if "refresh" in options.parts:
            keep("refresh", measure_refresh(
                ways, options.refresh_lengths, options.tokens, options.rounds, bars
            ))  # fmt: skip
        if "quality" in options.parts:
            measure_quality(ways, options, kept.get("quality", {}), keep, bars)
    print(render(document))
    file.with_suffix(".png").write_bytes(draw(document))
    print(file)


def facts(bundle: Bundle, ways: Sequence[Way], options: argparse.Namespace) -> dict[str, Any]:
    """What was measured."""
    backend = ways[0].model.backend
    return {
        "model": bundle.manifest.source.name,
        "weights": bundle.manifest.roles["target"][0].weight_format,
        "backend": backend.name,
        "isa": backend.isa,
        "kv_cache": backend.kv_type,
        "threads": options.threads,
        "versions": dict(bundle.manifest.written_by),
    }


def measure_quality(
    ways: Sequence[Way],
    options: argparse.Namespace,
    before: Mapping[str, Any],
    keep: Keep,
    progress: Bars,
) -> None:
    """One way after the other, each kept when it is done."""
    setting = Setting(**{field.name: getattr(options, field.name) for field in fields(Setting)})
    quality = Quality(ways[0].model, setting, options.data)
    quality.learn(ways[0])
    told = asdict(setting)
    figures: dict[str, Any] = {"setting": told, "sandbox": isolation(), "ways": {}}
    if before.get("setting") == told:
        figures["ways"] = dict(before["ways"])
    if setting.windows:
        figures["empty_perplexity"] = round(quality.empty_perplexity(ways[0]), 4)
    for way in ways:
        figures["ways"][way.name] = quality.measure(way, progress)
        keep("quality", figures)


@contextmanager
def started_peers(
    bundle: Bundle, options: argparse.Namespace, bars: Bars
) -> Iterator[Mapping[str, EngineProcess]]:
    """The engines asked for, by name, in processes of their own."""
    chosen = PeerChoice(options.peers, STEPPING, options.peers_dir, options.checkpoint)
    loading = {"threads": options.threads}
    commands = peer_commands(str(bundle.folder), bundle.manifest, chosen, loading, bars)
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(EngineProcess(name, command))
            for name, command in commands.items()
        }


if __name__ == "__main__":
    main()
