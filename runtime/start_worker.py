"""A process that loads a bundle, answers one token and says how long that took.

`python -m quickdraft.runtime.start_worker FOLDER OPTIONS` prints one JSON object. The time from the
start of the process is its parent's to measure.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

_STARTED = time.perf_counter()


def main(folder: Path, options: dict[str, object]) -> dict[str, float]:
    """Milliseconds of loading (imports included) and of the first token after it."""
    from quickdraft.bundle import open_bundle
    from quickdraft.runtime.drafting import DraftingSetup
    from quickdraft.runtime.model import Model

    bundle = open_bundle(folder)
    setup = DraftingSetup("none", store=False)
    with Model.open(bundle.folder, manifest=bundle.manifest, drafting=setup, **options) as model:  # type: ignore[arg-type]
        loaded = time.perf_counter()
        model.generate("Hello", max_new_tokens=1, ignore_eos=True)
        answered = time.perf_counter()
    return {"load_ms": 1e3 * (loaded - _STARTED), "first_token_ms": 1e3 * (answered - loaded)}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), json.loads(sys.argv[2]))))
