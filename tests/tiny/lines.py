"""Lines of text that tokenizers get wrong: made here, and sampled from the data folder."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SCRIPTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Voix ambiguë d’un cœur qui, au zéphyr, préfère les jattes de kiwis.",
    "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "日本語の文章、漢字とかなとカタカナ。",
    "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。",
    "다람쥐 헌 쳇바퀴에 타고파.",
    "صِف خَلقَ خَودٍ كَمِثلِ الشَمسِ إِذ بَزَغَت",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण",
    "กว่าบรรดาฝูงสัตว์เดรัจฉาน",
    "Jackdaws ﬁnd ﬀ ligatures & Ångström ℃ ① ½ ² Ⅷ",
    "አንድ ሰው ᚠᛇᚻ ᛒᛦᚦ 𐍈𐌰 𝒜𝓁ℊℴ 𠜎𠜱",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇯🇵 ❤️‍🔥 1️⃣ 🧑‍🚀",
)
_CODE = (
    "def f(x: int) -> str:\n    return f'{x!r:>10}'  # comment",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 2.0f; }",
    '\tif err != nil {\n\t\treturn nil, fmt.Errorf("%w: %d", err, 42)\n\t}',
    "SELECT * FROM t WHERE a='it''s' AND b>=1e-10;",
    "<div class=\"a b\" onclick='f(&quot;x&quot;)'>&nbsp;</div>",
    "λ = lambda *a, **k: (yield from a) or {**k}",
    "$ curl -sL 'https://example.org/?q=1&r=%20' | tar xz -C /tmp",
    '#!/bin/sh\nset -eu\n\n\n\necho "${HOME:-/root}"',
    '{"a":[1,2,{"b":null}],"c":1.5e+3}',
    "\\frac{\\partial^2 u}{\\partial x^2} = \\sum_{i=0}^{\\infty}",
    "0x1F 0b1010 1_000_000 3.14159 12345678901234567890",
    "don't I'LL you've SHE'S we're 'tis o'clock rock'n'roll 'D 'd",
)
_SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "[INST]", "<0x0A>", "<|")


def tricky_lines() -> list[str]:
    """More than 300 lines in a fixed order."""
    lines = [*_SCRIPTS, *_CODE]
    lines += [f"a{chr(code)}b {chr(code)} {chr(code) * 3}" for code in (*range(33), 127)]
    spaces = "\u00a0\u2003\u200b\u200d\u3000\ufeff\u2028\u0085"
    lines += [f"x{space}y{space * 2}{space}z" for space in spaces]
    lines += [f"{' ' * n}x{' ' * n}1{' ' * n}" for n in range(1, 33)]
    lines += ["\t" * n + "x" + "\n" * n + "y" + "\r\n" * n + "7" for n in range(1, 17)]
    lines += [f"{a}{b}" for a, b in itertools.product(_SPECIAL, ("", " hi", "\n", "<|im_end|>"))]
    lines += [f"{a} {b}" for a, b in itertools.combinations(_SCRIPTS, 2)]
    lines += ["", "a", "\n", " ", "é", "e\u0301", "ﬃ", "a" * 500, "ab " * 100, "🙂" * 40, "1" * 50]
    rng = random.Random(7)
    letters = "abc XYZ 019 .,;:!?'\"\n\t<>|_-éßñ中あ한🙂ी́"
    lines += ["".join(rng.choices(letters, k=rng.randint(1, 60))) for _ in range(60)]
    return lines


def data_folder() -> Path:
    """QUICKDRAFT_DATA, or `shared/data` beside the repository; it need not be there."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    return Path(os.environ.get("QUICKDRAFT_DATA", beside))


def data_lines(count: int) -> list[str]:
    """`count` lines spread over every file of the data folder, or none where there is no folder."""
    everything = data_folder().rglob("*")
    paths = sorted(p for p in everything if p.name.endswith((".jsonl", ".gz", ".txt")))
    if not paths:
        return []
    each = -(-count // len(paths))
    lines: list[str] = []
    for path in paths:
        texts = sorted(set(itertools.islice(_texts(path), 4_000)))
        random.Random(path.name).shuffle(texts)
        lines += texts[: 3 * each]
    random.Random(count).shuffle(lines)
    return lines[:count]


def _texts(path: Path) -> Iterator[str]:
    read = gzip.open if path.suffix == ".gz" else open
    with read(path, "rt", encoding="utf-8") as file:
        for line in file:
            if ".jsonl" in path.name:
                yield from (text[:2_000] for text in _strings(json.loads(line)))
            elif line.strip():
                yield line.rstrip("\n")[:2_000]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
