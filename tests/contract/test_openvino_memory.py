"""What compiled OpenVINO graphs keep, beside what is planned for them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny.checkpoint import tiny_checkpoint

from quickdraft.bundle import open_bundle
from quickdraft.device_profiles.memory_plan import plan_memory
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.runtime.backends.opening import variant_for
from quickdraft.runtime.footprint import footprint
from quickdraft.static_shapes import StaticShapes

pytestmark = [
    pytest.mark.openvino,
    pytest.mark.skipif(sys.platform != "linux", reason="the system must say what is resident"),
]
FACTOR = 1.5
"""How far the plan may lie from what was measured, either way."""
CONFIG = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
}
STEPS = """
import json, sys
import numpy as np
import openvino
from pathlib import Path
from quickdraft.bundle import open_bundle
from quickdraft.drafters.tree import Tree
from quickdraft.runtime.backends.opening import open_backend

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

openvino.Core().available_devices
bundle = open_bundle(Path(sys.argv[1]))
before, found = resident(), []
backend = open_backend(bundle.folder, bundle.manifest, "openvino", 1).backend
cache, peak = backend.new_cache(), resident()
for rows in (1, 4, 8, 16, 128, 128, 128, 128):
    backend.step(Tree.chain(np.zeros(rows, np.int64)), cache, np.array([rows - 1]))
    cache.commit(range(rows))
    found.append(resident() - before)
print(json.dumps(found))
"""


def resident(folder: Path) -> list[int]:
    """Bytes of a process of its own after steps of 1, 4, 8, 16 and 128 rows, above those before."""
    command = [sys.executable, "-c", STEPS, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    numbers: list[int] = json.loads(done.stdout.splitlines()[-1])
    return numbers


@pytest.mark.parametrize("form", ["openvino", "openvino-static"])
@pytest.mark.parametrize("weights", ["int8", "int4-g128"])
def test_the_plan_is_near_what_is_resident(form: str, weights: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(**CONFIG)
    export_checkpoint(checkpoint, tmp_path / "b", weights=weights, formats=[form])
    manifest = open_bundle(tmp_path / "b").manifest
    held = footprint(manifest, variant_for(manifest, "openvino"))
    assert (held.graphs, held.kv_type) == ((5, "f32") if "static" in form else (1, "f32"))
    # In the end every graph has run.
    plan = plan_memory(manifest.model, replace(held, slots=0), 541, None)
    found = resident(tmp_path / "b")
    assert plan.needed / FACTOR < found[-1] < plan.needed * FACTOR, (plan, found)
    if "static" in form:
        # A copy for every graph: of the first one alone much less is resident.
        assert found[0] < 0.5 * found[-1]


def test_fewer_widths_take_less(tmp_path: Path) -> None:
    needed = []
    for widths in ((1, 4, 8, 16), (1, 8)):
        folder = tmp_path / str(len(widths))
        shapes = StaticShapes(widths, 32, cache_length=1000)
        export_checkpoint(
            tiny_checkpoint(**CONFIG),
            folder,
            weights="int8",
            formats=["openvino-static"],
            shapes=shapes,
        )
        manifest = open_bundle(folder).manifest
        variant = variant_for(manifest, "openvino")
        assert sorted(variant.widths) == [*widths, 32]
        assert variant.capacity == 1088  # 1000 and 32, in blocks of 64
        held = footprint(manifest, variant)
        needed.append((plan_memory(manifest.model, held, 512, None).needed, resident(folder)[-1]))
    assert needed[1][0] < 0.8 * needed[0][0]
    assert needed[1][1] < 0.8 * needed[0][1]
