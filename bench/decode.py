"""How fast does plain decoding run beside the peers, on the same weights?

    python bench/decode.py NAME quickdraft=BUNDLE onnxruntime-genai=PYTHON:FOLDER
        llama.cpp=PYTHON:FILE

Every engine is a process of its own, all loaded at once; rounds are interleaved, so that a noisy
minute hits all of them. A round prefills a prompt of fixed random ids and decodes greedily. The
figure of an engine is its best round; read ratios, not absolute times. Prefill includes the choice
of the first token; decoding is the tokens after it. PYTHON is the interpreter of the environment
the peer is installed in. The result goes to bench/results/decode-NAME.json.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from harness import start_peer, write_result
from rich.console import Console
from rich.table import Table

from quickdraft.device_profiles.bandwidth import read_bandwidth
from quickdraft.runtime.engine_process import EngineProcess

SCRIPTS = {
    "quickdraft": "quickdraft_peer.py",
    "onnxruntime-genai": "onnxruntime_genai_peer.py",
    "llama.cpp": "llama_cpp_peer.py",
}


def start(spec: str, threads: int) -> tuple[str, EngineProcess]:
    """LABEL=MODEL or LABEL=PYTHON:MODEL; a label may carry a note: `quickdraft+int4`.

    The note kv-f32, kv-f16 or kv-int8 says how quickdraft stores keys and values.
    """
    label, _, rest = spec.partition("=")
    engine, _, note = label.partition("+")
    if engine not in SCRIPTS or not rest:
        raise SystemExit(f"{spec!r}: expected ENGINE=MODEL with one of {', '.join(SCRIPTS)}")
    python, model = rest.split(":", 1) if ":" in rest else (sys.executable, rest)
    stored = [note.removeprefix("kv-")] if note.startswith("kv-") else []
    return label, start_peer(SCRIPTS[engine], python, model, threads, *stored)


def main() -> None:
    """Run, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("engines", nargs="+")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    peers = dict(start(spec, options.threads) for spec in options.engines)
    prompt = np.random.default_rng(0).integers(100, 30_000, options.prompt).tolist()
    times: dict[str, list[dict[str, float]]] = {label: [] for label in peers}
    bandwidth = 0.0
    for peer in peers.values():
        peer.ask(op="decode", prompt=prompt, tokens=8)
    for _ in range(options.rounds):
        bandwidth = max(bandwidth, round(read_bandwidth(options.threads), 1))
        for label, peer in peers.items():
            answer = peer.ask(op="decode", prompt=prompt, tokens=options.tokens)
            times[label].append(answer)
    engines = {
        label: {
            "decode_tps": round((options.tokens - 1) / min(t["decode_s"] for t in rounds), 2),
            "prefill_tps": round(options.prompt / min(t["prefill_s"] for t in rounds), 1),
            "rounds": rounds,
            "facts": peers[label].facts,
        }
        for label, rounds in times.items()
    }
    for peer in peers.values():
        peer.close()
    table = Table("engine", "prefill tok/s", "decode tok/s", "against the first")
    first = next(iter(engines.values()))["decode_tps"]
    for label, figures in engines.items():
        ratio = f"{figures['decode_tps'] / first:.2f}"
        table.add_row(label, str(figures["prefill_tps"]), str(figures["decode_tps"]), ratio)
    Console().print(table)
    setting = {k: getattr(options, k) for k in ("prompt", "tokens", "rounds", "threads")}
    figures = {"setting": setting, "bandwidth_gbs": bandwidth, "engines": engines}
    print(write_result(f"decode-{options.name}", figures))


if __name__ == "__main__":
    main()
