"""Prompts for a report on a device, in the classes of MLPerf Client.

The classes are theirs, the prompts are ours: figures compare devices with each other, not with
MLPerf's. The code that is analysed is a module of this package.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping

from quickdraft.drafters import tree

LIBRARY = """\
The public library of a small harbour town keeps a record of every book it has lent since 1911.
The first volumes are written in ink by four different hands, and the last of them, a retired
pilot, added remarks on the weather. When the building was flooded in 1953, the record survived
because a caretaker had carried it to the attic the evening before; why she did so she never said.
After the war the library lent mostly handbooks: on engines, on vegetables, on the repair of
roofs. Novels came back slowly. In 1968 one third of all loans were novels, in 1985 two thirds,
and today the share is falling again, this time because of cookery books and guides for
travellers.

Two students have now typed the whole record into a table of four hundred thousand rows. They
found that the most faithful reader came every Thursday for fifty-one years and never returned a
book late; that nobody has ever borrowed the second volume of a history of drainage whose first
volume is the ninth most popular book of all; and that loans rise by a fifth in weeks with fog.
The town council wants to publish the table. Some readers object: a list of loans tells more about
a person than a photograph does, and many of them, or their children, still live here. The
students propose to leave out all names, and all books that were borrowed fewer than five times.
The council will decide in spring.
"""
BRIDGE = """\
The bridge at the mill was to be finished in autumn. Its two halves grew towards each other from
the banks, each a little longer every week, and people came on Sundays to guess where they would
meet. In August the surveyor measured them again, as she did every month, and found the eastern
half four centimetres too low. The concrete was sound, the drawings were right, and so were the
instruments. What nobody had thought of was the river: it had been lower than in any summer
before, the clay under the eastern pier had dried and shrunk, and the pier had gone down with it.
The engineers met for three days. One proposal was to lift the pier with jacks and to fill the gap
below it; another, to build the last eleven segments along a curve that would make up for the
difference, so gently that no driver would feel it. The second was cheaper, and slower by a month.
The mayor, who had promised to cross the bridge before the election, preferred the first.

They chose the second. In October it rained for two weeks, the clay took up the water, and the
pier rose by three centimetres, so that the curve had to be drawn once more. The halves met on the
ninth of December, eight millimetres apart, at an hour when it was already dark. The surveyor
closed her book and wrote the date under the last figure. The mayor crossed the bridge the next
morning, alone and on foot, having lost the election by a few hundred votes, most of them on the
other bank.
"""


def prompt_classes() -> Mapping[str, tuple[str, ...]]:
    """Prompts by class, the same in every run of a version."""
    code = inspect.getsource(tree)
    brief = "Summarise this text in two sentences.\n\n"
    thorough = "Summarise each report in a paragraph, then say what they have in common.\n\n"
    return {
        "code analysis": (
            f"Explain what this module does, and name one thing that could go wrong.\n\n{code}",
        ),
        "content generation": (
            "Write a short guide for people who grow tomatoes on a balcony for the first time.",
            "Write an e-mail to a landlord: the heating has been cold for three days, and somebody "
            "who can repair it has to come this week.",
        ),
        "creative writing": (
            "Write the beginning of a story about a lighthouse keeper who finds a letter.",
            "Write a poem of four verses about the last train of the day.",
        ),
        "summarisation, light": (brief + LIBRARY, brief + BRIDGE),
        "summarisation, moderate": (f"{thorough}{LIBRARY}\n{BRIDGE}\n{LIBRARY[:900]}",),
    }


def fingerprint() -> str:
    """Tells the prompts of one version from those of another: reports with different ones do not
    compare."""
    told = "\n".join(
        f"{name}\n{text}" for name, texts in prompt_classes().items() for text in texts
    )
    return hashlib.sha256(told.encode()).hexdigest()[:16]
