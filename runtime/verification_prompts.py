"""What `quickdraft verify` asks unless it is told: code, repetition, chats, languages, JSON.

Texts to continue, and chats to answer. They differ in how well they can be drafted, and that is
the point: a draft that holds, one that fails early and none at all take different ways through the
loop. A chat goes on from the one before it, so that its session is not empty.
"""

from __future__ import annotations

Text = str | tuple[tuple[str, str], ...]
"""A text to continue, or the messages of a chat as (role, content)."""

_CHAT = (("user", "Which planets have rings? Answer in two sentences."),)
_LATER = (
    *_CHAT,
    ("assistant", "Saturn has the brightest rings. Jupiter, Uranus and Neptune have faint ones."),
    ("user", "Say that again as a list, one planet a line, and add the planets without rings."),
)

PROMPTS: tuple[tuple[str, Text], ...] = (
    (
        "code",
        '''def merge_intervals(intervals):
    """Merge overlapping intervals and return them in order."""
    merged = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def merge_intervals_with_gap(intervals, gap):
    """Merge intervals that overlap or are less than `gap` apart, and return them in order."""
''',
    ),
    ("repetition", "one, two, three, four, one, two, three, four, one, two, three,"),
    ("chat", _CHAT),
    ("chat, later", _LATER),
    (
        "German",
        "Die drei Brüder bauten ein Haus am Fluss. Der erste Bruder trug die Steine, der zweite",
    ),
    (
        "JSON",
        '{"planets": [{"name": "Mercury", "moons": 0, "rings": false}, '
        '{"name": "Venus", "moons": 0, "rings": false}, {"name": "Earth",',
    ),
    (
        "edit",
        "Original:\nThe quick brown fox jumps over the lazy dog. The dog does not mind. "
        "The fox goes home and sleeps until the evening.\n\n"
        "The same with a cat instead of the fox:\nThe quick brown cat",
    ),
    ("Chinese", "从前有座山，山上有座庙，庙里有个老和尚在给小和尚讲故事。他讲的是：从前有座山，"),
    (
        "SQL",
        "SELECT name, price FROM products WHERE price > 10 ORDER BY price;\n"
        "SELECT name, stock FROM products WHERE stock > 10 ORDER BY stock;\n"
        "SELECT name, weight FROM products WHERE",
    ),
    ("story", "The lighthouse keeper had not spoken to anyone for eleven days when"),
    ("numbers", "1 2 3 5 8 13 21 34 55 89 144 233 377"),
    (
        "HTML",
        "<ul>\n  <li><a href='/a'>Apples</a></li>\n  <li><a href='/b'>Bananas</a></li>\n"
        "  <li><a href='/c'>",
    ),
    ("Russian", "В лесу родилась ёлочка, в лесу она росла. Зимой и летом стройная,"),
    ("symbols", "=== *** === *** === *** \U0001f600 \U0001f600 \U0001f600 === ***"),
    ("arithmetic", "Q: 17 + 25?\nA: 42\nQ: 18 + 25?\nA: 43\nQ: 19 + 25?\nA:"),
    ("one word", "The"),
)
