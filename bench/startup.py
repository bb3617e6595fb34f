"""How long does the second start take: `load()` alone, and a process up to its first token?

    python bench/startup.py NAME MODEL [--threads 2] [--rounds 5] [-- OPTION=VALUE ...]

Every round starts two fresh processes. `load_s` is the call `quickdraft.load(MODEL)` in a process
that has imported the package (what load imports is inside). `first_token_s` runs from before the
process is started until the parent has read the first token of the greedy answer to a prompt of 10
tokens: interpreter, imports, load, tokenising, prefill. A first start, not counted, exports the
model, fills the page cache and writes the byte code of the modules, as an installation has it (also
where PYTHONDONTWRITEBYTECODE is set, which costs a third of the call). The figure is the best
round. OPTION=VALUE are options of `load`, such as backend=onnxruntime. The result goes to
bench/results/startup-NAME.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from harness import write_result

LOAD = """
import json, sys, time, quickdraft
options = json.loads(sys.argv[2])
started = time.perf_counter()
model = quickdraft.load(sys.argv[1], **options)
print(time.perf_counter() - started)
"""
FIRST_TOKEN = """
import json, sys, quickdraft
model = quickdraft.load(sys.argv[1], **json.loads(sys.argv[2]))
prompt = model.tokenize("The capital of France is a city on a river that flows")[:10]
answer = model.stream(prompt, temperature=0.0, max_new_tokens=2, ignore_eos=True)
next(answer)
print(len(prompt), flush=True)
"""


def run(script: str, model: str, options: dict[str, Any], cache: str) -> tuple[float, str]:
    """Seconds from before the process starts to its first line, and that line. cache: of byte
    code."""
    command = [sys.executable, "-c", script, model, json.dumps(options)]
    started = time.perf_counter()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = cache
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        if process.stdout is None:
            raise RuntimeError("the process has no standard output")
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"the process ended with exit code {process.returncode}")
    return seconds, line


def main() -> None:
    """Run, print the figures, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("model")
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    options = {"threads": given.threads} | dict(o.split("=", 1) for o in given.options)
    loads, firsts = [], []
    with tempfile.TemporaryDirectory() as cache:
        run(LOAD, given.model, options, cache)
        for _ in range(given.rounds):
            loads.append(float(run(LOAD, given.model, options, cache)[1]))
            seconds, line = run(FIRST_TOKEN, given.model, options, cache)
            if int(line) != 10:
                raise SystemExit(f"the prompt has {line.strip()} tokens instead of 10")
            firsts.append(seconds)
    figures = {
        "model": given.model.rpartition("/")[2],
        "load_s": round(min(loads), 3),
        "first_token_s": round(min(firsts), 3),
        "rounds": {"load_s": loads, "first_token_s": firsts},
        "options": options,
    }
    print({name: figures[name] for name in ("load_s", "first_token_s")})
    print(write_result(f"startup-{given.name}", figures))


if __name__ == "__main__":
    main()
