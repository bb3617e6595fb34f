"""Look at an OpenVINO IR before OpenVINO does: its reader dies of files that nest deep enough, and
takes constants whose sizes overflow."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any
from xml.parsers import expat

from quickdraft.errors import BundleError

MAX_BYTES = 64 << 20
MAX_DEPTH = 64
_MOST = 1 << 62


def check_ir(xml: Path, weights: Path) -> None:
    """Refuse a graph that could harm its reader. weights: the file its constants lie in.

    Raises:
        BundleError: it cannot be read, is too large, nests too deep, declares entities, or has a
            constant outside the file of weights.
    """
    try:
        size, end = xml.stat().st_size, weights.stat().st_size
        if size > MAX_BYTES:
            raise BundleError(f"{xml.name} has {size} bytes; a graph has {MAX_BYTES} at most")
        data = xml.read_bytes()
    except OSError as error:
        raise BundleError(f"{xml} cannot be read: {error.strerror or error}") from error
    checks = _Checks(xml.name, end)
    parser = expat.ParserCreate()
    parser.StartElementHandler = checks.start
    parser.EndElementHandler = checks.end
    parser.StartDoctypeDeclHandler = checks.doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise BundleError(f"{xml.name} is no OpenVINO graph: {error}; export it again") from None
    if not checks.layers:
        raise BundleError(f"{xml.name} is no OpenVINO graph: it has no layers; export it again")


class _Checks:
    """What is looked at while the file is parsed."""

    def __init__(self, name: str, end: int) -> None:
        self._name, self._end = name, end
        self._depth = 0
        self.layers = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element opens."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise BundleError(f"{self._name} nests deeper than {MAX_DEPTH}; export it again")
        self.layers += tag == "layer"
        if tag == "data" and "offset" in attributes:
            self._constant(attributes)

    def _constant(self, attributes: dict[str, str]) -> None:
        offset, size = (self._number(attributes.get(key, "")) for key in ("offset", "size"))
        sizes = [self._number(each) for each in re.findall(r"[^, ]+", attributes.get("shape", ""))]
        if offset + size > self._end:
            raise BundleError(
                f"{self._name} has a constant that ends at byte {offset + size} of {self._end}; "
                "export it again"
            )
        # Four bits a value are the fewest there are, but for kinds of a bit that nobody exports.
        if math.prod(sizes) > 8 * max(size, 1):
            raise BundleError(f"{self._name} has a constant larger than its data; export it again")

    def _number(self, text: str) -> int:
        if not re.fullmatch("[0-9]{1,19}", text) or int(text) > _MOST:
            raise BundleError(f"{self._name} has a constant of size {text[:40]!r}; export it again")
        return int(text)

    def end(self, tag: str) -> None:
        """An element closes."""
        del tag
        self._depth -= 1

    def doctype(self, *declared: Any) -> None:
        """Entities are declared in a document type, and a graph needs neither."""
        del declared
        raise BundleError(f"{self._name} declares a document type, which no graph has")
