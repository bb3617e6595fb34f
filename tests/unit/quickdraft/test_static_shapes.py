"""Shapes of static graphs: what can be asked for, and what is refused instead of bent."""

from __future__ import annotations

from typing import Any

import pytest

from quickdraft.errors import OptionError
from quickdraft.static_shapes import StaticShapes, is_static


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widths": ()}, "must begin with 1"),
        ({"widths": (2, 4)}, "widths is '2,4'; it must begin with 1"),
        ({"widths": (1, 4, 4)}, "widths is '1,4,4'"),
        ({"widths": (1, 2000)}, "rise to 1024 at most"),
        ({"prefill_chunk": 1}, "prefill_chunk is 1; it must be between 2"),
        ({"prefill_chunk": 5000}, "prefill_chunk is 5000"),
        ({"cache_length": 0}, "cache_length is 0"),
        ({"longest_cache": -1}, "longest_cache is -1"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        StaticShapes(**values)


def test_what_is_asked_for_comes_before_the_emitter() -> None:
    own = StaticShapes()
    assert own.rows((1, 4), 128) == ((1, 4), 128)
    assert StaticShapes((1, 8), 32).rows((1, 4), 128) == ((1, 8), 32)
    with pytest.raises(OptionError, match="prefill_chunk is 8, and a step of 16 rows"):
        StaticShapes(prefill_chunk=8).rows((1, 16), 128)
    assert own.length(8192, 4064) == 4064
    assert own.length(512, 4064) == 512
    assert StaticShapes(longest_cache=1024).length(8192, 4064) == 1024
    assert StaticShapes(longest_cache=5000).length(8192, 4064) == 5000
    assert StaticShapes(cache_length=6000, longest_cache=1024).length(8192, 4064) == 6000
    with pytest.raises(OptionError, match=r"cache_length is 600, and the context .* 512 tokens"):
        StaticShapes(cache_length=600).length(512, 4064)


def test_keys_tell_shapes_apart() -> None:
    shapes = [
        StaticShapes(),
        StaticShapes((1, 4)),
        StaticShapes((1, 4), 64),
        StaticShapes((1, 4), 64, 512),
        StaticShapes((1, 4), 64, None, 512),
    ]
    keys = [each.key for each in shapes]
    assert keys[0] == ""
    assert keys[3] == "w1.4-p64-c512"
    assert len(set(keys)) == len(keys)


def test_which_formats_have_them() -> None:
    assert is_static(["onnx", "coreml"])
    assert is_static(["openvino-static"])
    assert not is_static(["hotpath", "onnx", "openvino"])
