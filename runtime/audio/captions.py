"""Segments as text, SubRip (.srt), WebVTT (.vtt) or JSON, piece by piece as they are found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping

from quickdraft.runtime.audio.transcribe import Segment


def to_text(segments: Iterable[Segment]) -> Iterator[str]:
    """A line for each segment."""
    for segment in segments:
        yield f"{segment.text}\n"


def to_srt(segments: Iterable[Segment]) -> Iterator[str]:
    """SubRip: numbered, times with a comma."""
    for number, each in enumerate(segments, start=1):
        gap = "" if number == 1 else "\n"
        times = f"{_time(each.start, ',')} --> {_time(each.end, ',')}"
        yield f"{gap}{number}\n{times}\n{_cue(each.text)}\n"


def to_vtt(segments: Iterable[Segment]) -> Iterator[str]:
    """WebVTT (W3C), its markup escaped."""
    yield "WEBVTT\n"
    for each in segments:
        times = f"{_time(each.start, '.')} --> {_time(each.end, '.')}"
        yield f"\n{times}\n{_escaped(each.text)}\n"


def to_json(segments: Iterable[Segment]) -> Iterator[str]:
    """An object with the whole text and the segments, in one piece."""
    known = list(segments)
    text = " ".join(segment.text for segment in known)
    found = {"text": text, "segments": [segment.to_dict() for segment in known]}
    yield json.dumps(found, ensure_ascii=False, indent=1) + "\n"


FORMATS: Mapping[str, Callable[[Iterable[Segment]], Iterator[str]]] = {
    "text": to_text,
    "srt": to_srt,
    "vtt": to_vtt,
    "json": to_json,
}
EXTENSIONS = {"text": ".txt", "srt": ".srt", "vtt": ".vtt", "json": ".json"}


def _time(seconds: float, mark: str) -> str:
    thousandths = round(seconds * 1000)
    whole, rest = divmod(thousandths, 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{mark}{rest:03}"


def _cue(text: str) -> str:
    """On one line, and without the arrow that would begin a cue."""
    return " ".join(text.split()).replace("-->", "->")


def _escaped(text: str) -> str:
    return _cue(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
