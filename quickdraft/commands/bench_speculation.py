"""`quickdraft bench speculation`: drafted answers beside plain ones, and beside other engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from quickdraft.commands.bench_curve import DEFAULT_THREADS
from quickdraft.commands.options import common_options, loading_options
from quickdraft.commands.output import print_json
from quickdraft.commands.peers import (
    GENERATING,
    PeerChoice,
    name_list,
    peer_commands,
    peer_options,
)
from quickdraft.commands.progress import Bars
from quickdraft.commands.result_files import check_plot, write_document, write_file
from quickdraft.errors import OptionError

if TYPE_CHECKING:
    from quickdraft.runtime.drafting import DraftingSetup
    from quickdraft.runtime.engine_process import EngineProcess
    from quickdraft.runtime.model import Model
    from quickdraft.runtime.session import Session
    from quickdraft.runtime.speculation_bench import Ask, SpeculationPlan

ALL_CATEGORIES = (
    "multi-turn,translation,summarisation,qa,math,rag,humaneval,mbpp,gsm8k,multi-lexsum,chat,edit,"
    "random,noise"
)
SWEPT = (2, 4, 8, 16)
"""Fixed numbers of drafted tokens; plain decoding, which is 0, is measured in any case."""


@click.command("bench speculation")
@click.argument("model")
@click.option(
    "--categories", default=ALL_CATEGORIES, callback=name_list, metavar="NAME,...",
    help="Suites of prompts.  [default: all of them]",
)  # fmt: skip
@click.option("--prompts", default=10, show_default=True, type=int, help="Of a category.")
@click.option(
    "--tokens", default=128, show_default=True, type=int, help="Most tokens of an answer."
)
@click.option("--rounds", default=2, show_default=True, type=int)
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False, exists=True),
    envvar="QUICKDRAFT_DATA", help="Folder of the prompts.",
)  # fmt: skip
@click.option(
    "--draft-tokens", type=int, help="Always draft this many tokens, instead of planning each step."
)
@click.option("--sweep", is_flag=True, help="Also measure fixed numbers: 2, 4, 8 and 16 tokens.")
@click.option("--cold", is_flag=True, help="Forget after every prompt what was learnt from it.")
@click.option("--temperature", default=0.0, show_default=True, type=float)
@click.option("--top-p", default=1.0, show_default=True, type=float)
@click.option("--ignore-eos", is_flag=True, help="Do not end answers at an end-of-text token.")
@peer_options(GENERATING)
@click.option(
    "--peer-modes", default="", callback=name_list, metavar="NAME,...",
    help="Measure these modes of the peers only, such as plain.",
)  # fmt: skip
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the result here, as JSON, after every category.",
)  # fmt: skip
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Also draw it in this .png."
)
@loading_options(
    *("drafter", "drafter_options", "no_store"),
    *("device", "backend", "weights", "threads", "kv_cache", "offline"),
)
@common_options
def speculation(
    model: str,
    out: Path | None,
    plot: Path | None,
    peers: PeerChoice,
    loading: dict[str, Any],
    as_json: bool,
    **tests: Any,
) -> None:
    """Measure what drafting gains, by kinds of text.

    Answers to the same prompts are decoded plainly and with drafts, in turns, over one loaded
    model. Speeds are those of decoding: from the first token to the last. Drafters learn from
    prompt to prompt, as for a user, beginning with nothing in every round; the store of the user
    is left alone. Ctrl-C ends it with the prompts that are complete.
    """
    from quickdraft.commands.speculation_report import Measured, document, draw, render
    from quickdraft.runtime.speculation_bench import Samples, measure_speculation

    check_plot(plot)
    if peers.names and tests["temperature"]:
        raise OptionError("--peers take the likeliest tokens; leave --temperature at 0 beside them")
    threads = loading.setdefault("threads", DEFAULT_THREADS)
    plan = _plan(tests)
    loaded, setup = _load(model, loading)
    with loaded:
        plan.check(loaded.spec.context_length)
        with Bars(transient=True) as bars:
            commands = peer_commands(model, loaded.manifest, peers, loading, bars)
        beside = Beside(commands, tests["peer_modes"])
        samples = Samples()

        def result() -> dict[str, Any]:
            measured = Measured(loaded, setup.drafter, threads, beside.facts)
            return document(measured, plan, samples)

        def keep() -> None:
            if out is not None:
                write_document(out, result())

        settings = partial(_opened, loaded, setup, tuple(plan.settings))
        with Bars(quiet=as_json, transient=True) as bars:
            try:
                measure_speculation(loaded, plan, settings, beside.opened, samples, bars, keep)
            except KeyboardInterrupt:
                if not samples.turns:
                    raise
        keep()
        found = result()
    if as_json:
        print_json(found)
    else:
        click.echo(render(found))
    if plot is not None:
        write_file(plot, draw(found))
    if found["interrupted"]:
        raise click.Abort


def _plan(tests: Mapping[str, Any]) -> SpeculationPlan:
    """What was asked for, prompts and all. Nothing is loaded for options that cannot be."""
    from quickdraft.runtime.generation import GenerationConfig
    from quickdraft.runtime.speculation_bench import AUTO, PLAIN, SpeculationPlan
    from quickdraft.runtime.suites import load_suites

    config = GenerationConfig(
        max_new_tokens=tests["tokens"],
        temperature=tests["temperature"],
        top_p=tests["top_p"],
        ignore_eos=tests["ignore_eos"],
    )
    count = tests["draft_tokens"]
    settings: dict[str, dict[str, Any]] = {PLAIN: {"num_draft_tokens": 0}}
    settings |= {AUTO: {}} if count is None else {f"fixed {count}": {"num_draft_tokens": count}}
    if tests["sweep"]:
        settings |= {f"fixed {swept}": {"num_draft_tokens": swept} for swept in SWEPT}
    for options in settings.values():
        config.replace(**options)  # bad values fail before anything is fetched
    suites = load_suites(tests["categories"], tests["prompts"], tests["data"])
    return SpeculationPlan(suites, settings, config, tests["rounds"], tests["cold"])


def _load(model: str, loading: Mapping[str, Any]) -> tuple[Model, DraftingSetup]:
    """The model, and how its drafters are to be opened: anew for every setting and round."""
    from quickdraft.api import load
    from quickdraft.runtime.drafting import DraftingSetup

    drafter = loading.get("drafter", "auto")
    if drafter == "none":
        raise OptionError("drafter is 'none': there would be nothing to compare; name another")
    store = loading.get("store", True)
    with Bars(transient=True) as bars:
        loaded = load(model, progress=bars, **{**loading, "store": False})
    loaded.drafting.close()
    options = loading.get("drafter_options", {})
    return loaded, DraftingSetup(drafter, options, store, loaded.open_bundle)


@contextmanager
def _opened(
    model: Model, setup: DraftingSetup, settings: Sequence[str]
) -> Iterator[Mapping[str, Callable[[], Session]]]:
    """What makes the sessions of each setting: the first decodes plainly, every other one has
    drafters of its own, whose empty store goes away with them."""
    from quickdraft.runtime.drafting import Drafting

    plain, *drafted = settings
    with TemporaryDirectory() as folder, ExitStack() as stack:
        makers = {plain: partial(model.session, Drafting((), model.backend))}
        for name in drafted:
            place = Path(folder) / name.replace(" ", "-")
            own = replace(setup, store=place) if setup.store else setup
            drafting = stack.enter_context(model.open_drafting(own))
            makers[name] = partial(model.session, drafting)
        yield makers


class Beside:
    """Other engines, opened anew in every round: what they learn is forgotten as well.

    facts: what they say of themselves, by `engine/mode`, once they were opened.
    """

    def __init__(self, commands: Mapping[str, Sequence[str]], modes: Sequence[str]) -> None:
        """modes: those to ask for; all there are if empty."""
        self._commands = commands
        self._modes = modes
        self.facts: dict[str, dict[str, Any]] = {}

    @contextmanager
    def opened(self) -> Iterator[Mapping[str, Ask]]:
        """Every engine in each of its modes, by `engine/mode`.

        Raises:
            BackendError: one cannot be started. OptionError: none has any of the modes.
        """
        from quickdraft.runtime.engine_process import EngineProcess

        with ExitStack() as stack:
            asks: dict[str, Ask] = {}
            for name, command in self._commands.items():
                engine = stack.enter_context(EngineProcess(name, command))
                for mode in engine.facts.get("modes", ()):
                    if not self._modes or mode in self._modes:
                        asks[f"{name}/{mode}"] = partial(_ask, engine, mode)
                        self.facts[f"{name}/{mode}"] = engine.facts
            if self._commands and not asks:
                wanted = ", ".join(self._modes) or "any mode that bench speculation knows"
                raise OptionError(f"none of {', '.join(self._commands)} has {wanted}")
            yield asks


def _ask(engine: EngineProcess, mode: str, ids: Sequence[int], count: int) -> dict[str, Any]:
    return engine.ask(op="generate", prompt=list(ids), tokens=count, mode=mode)
