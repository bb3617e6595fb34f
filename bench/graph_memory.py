"""What OpenVINO's compiled graphs keep, beside what is planned: anonymous memory of a process.

    python bench/graph_memory.py NAME BUNDLE...

Each bundle is opened in a process of its own, which takes steps of 1, 4, 8, 16 and 128 rows, the
last ones over a growing context. The result goes to bench/results/graph-memory-NAME.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from harness import write_result

from quickdraft.bundle import open_bundle
from quickdraft.device_profiles.memory_plan import plan_memory
from quickdraft.drafters.tree import Tree
from quickdraft.runtime.backends.opening import open_backend, variant_for
from quickdraft.runtime.footprint import footprint

STEPS = (1, 4, 8, 16, 128, 128, 128, 128)


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("bundles", nargs="+", type=Path)
    options = parser.parse_args()
    if options.name == "-":  # the process of one bundle
        print(json.dumps(resident(options.bundles[0])))
        return
    found = {}
    for folder in options.bundles:
        manifest = open_bundle(folder).manifest
        variant = variant_for(manifest, "openvino")
        held = footprint(manifest, variant)
        context = sum(STEPS)
        command = [sys.executable, __file__, "-", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[folder.name] = {
            "flavour": variant.flavour,
            "weights": variant.weight_format,
            "file_bytes": held.weights,
            **json.loads(done.stdout.splitlines()[-1]),
            "planned": plan_memory(manifest.model, replace(held, slots=0), context, None).needed,
            "planned_peak": plan_memory(manifest.model, held, context, None).needed,
        }
        print(folder.name, found[folder.name])
    print(write_result(f"graph-memory-{options.name}", {"steps": STEPS, "bundles": found}))


def resident(folder: Path) -> dict[str, object]:
    """Bytes above those of the process before it opened the bundle: when it was opened, and after
    every step."""
    import openvino

    openvino.Core().available_devices  # noqa: B018 - the library itself does not count
    bundle = open_bundle(folder)
    before, after = anonymous(), []
    backend = open_backend(bundle.folder, bundle.manifest, "openvino", 1).backend
    opened, cache = anonymous() - before, backend.new_cache()
    for rows in STEPS:
        backend.step(Tree.chain(np.zeros(rows, np.int64)), cache, np.array([rows - 1]))
        cache.commit(range(rows))
        after.append(anonymous() - before)
    return {"opened": opened, "after": after}


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
