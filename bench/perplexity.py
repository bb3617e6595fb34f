"""Is a bundle as good as the file it came from? Perplexity of engines on the same tokens.

    python bench/perplexity.py NAME BUNDLE TEXT [llama.cpp=PYTHON:FILE] [quickdraft+fp32=BUNDLE]
        [quickdraft+kv-f32=BUNDLE] [quickdraft+kv-int8=BUNDLE]

The first tokens of TEXT (ids by our tokenizer, the same ids for all) are cut in windows; each
window starts from an empty cache, and all its tokens after the first are scored. Engines as in
decode.py; `kv-` and a type say how keys and values are stored. The result goes to
bench/results/perplexity-NAME.json.
"""

from __future__ import annotations

import argparse
import gzip
import math
import sys
from pathlib import Path

from decode import start
from harness import write_result
from tokenizers import Tokenizer


def main() -> None:
    """Run, print both figures, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("engines", nargs="*")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    raw = options.text.read_bytes()
    text = (gzip.decompress(raw) if options.text.suffix == ".gz" else raw).decode("utf-8")
    tokenizer = Tokenizer.from_file(str(options.bundle / "tokenizer.json"))
    # Six characters a token is more than any text needs, and encoding all of it takes long.
    ids = tokenizer.encode(text[: 8 * options.tokens], add_special_tokens=False).ids
    ids = ids[: options.tokens]
    if len(ids) < options.tokens:
        raise SystemExit(f"{options.text.name} holds only {len(ids)} tokens")
    specs = [f"quickdraft={options.bundle}", *options.engines]
    engines = dict(start(spec, options.threads) for spec in specs)
    sums = dict.fromkeys(engines, 0.0)
    count = 0
    for begin in range(0, len(ids) - 1, options.window):
        window = ids[begin : begin + options.window]
        count += len(window) - 1
        for label, engine in engines.items():
            sums[label] += sum(engine.ask(op="score", tokens=window)["logprobs"])
        now = {label: round(math.exp(-total / count), 4) for label, total in sums.items()}
        print(f"{begin + len(window)} tokens: {now}", file=sys.stderr)
    for engine in engines.values():
        engine.close()
    figures = {
        "perplexity": now,
        "scored_tokens": count,
        "setting": {"tokens": options.tokens, "window": options.window, "text": options.text.name},
        "facts": {label: engine.facts for label, engine in engines.items()},
    }
    print(now)
    print(write_result(f"perplexity-{options.name}", figures))


if __name__ == "__main__":
    main()
