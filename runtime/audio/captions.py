"""Segments as text, SubRip (.srt), WebVTT (.vtt) or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from quickdraft.runtime.audio.transcribe import Segment


def to_text(segments: Sequence[Segment]) -> str:
    """A line for each segment."""
    return "".join(f"{segment.text}\n" for segment in segments)


def to_srt(segments: Sequence[Segment]) -> str:
    """SubRip: numbered, times with a comma."""
    return "\n".join(
        f"{number}\n{_time(each.start, ',')} --> {_time(each.end, ',')}\n{_cue(each.text)}\n"
        for number, each in enumerate(segments, start=1)
    )


def to_vtt(segments: Sequence[Segment]) -> str:
    """WebVTT (W3C), its markup escaped."""
    cues = "".join(
        f"\n{_time(each.start, '.')} --> {_time(each.end, '.')}\n{_escaped(each.text)}\n"
        for each in segments
    )
    return f"WEBVTT\n{cues}"


def to_json(segments: Sequence[Segment]) -> str:
    """An object with the whole text and the segments."""
    found = [segment.to_dict() for segment in segments]
    text = " ".join(segment.text for segment in segments)
    return json.dumps({"text": text, "segments": found}, ensure_ascii=False, indent=1) + "\n"


FORMATS: Mapping[str, Callable[[Sequence[Segment]], str]] = {
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
