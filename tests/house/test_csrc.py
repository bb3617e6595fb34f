"""The C++ sources: small files, our own words, flags in one place, layers that point down."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from house.repo import ROOT, files, read, text_files

FOLDER = Path("runtime/csrc")
CMAKE = FOLDER / "CMakeLists.txt"
FILE_LINES, COLUMNS = 400, 100
HEADERS_OF_THE_LANGUAGE = """
algorithm array atomic cerrno cfloat chrono climits cmath condition_variable cstddef cstdint
cstdio cstdlib cstring exception functional initializer_list iterator limits memory mutex new
numeric optional stdexcept string string_view thread tuple type_traits utility vector
"""
HEADERS = set(HEADERS_OF_THE_LANGUAGE.split())
# Instructions and questions about the processor; nobody's library.
SYSTEM_HEADERS = {
    *(
        "immintrin.h",
        "xmmintrin.h",
        "intrin.h",
        "cpuid.h",
        "arm_neon.h",
        "arm64_neon.h",
        "windows.h",
    ),
    *("sys/auxv.h", "asm/hwcap.h", "sys/sysctl.h"),
}
# What a folder may include besides itself; "" is runtime/csrc.
BELOW = {
    "kernels": set(),
    "": {"kernels"},
    "capi": {"", "kernels"},
    "ort": {"", "kernels"},
    "tests": {"capi", "kernels"},
}
FLAGS = re.compile(
    r"(?<![\w-])-(march=|mavx|mfma|mf16c|mtune=|O[0-3s]\b|f(fast-math|fp-contract|visibility))"
    r"|/arch:|#\s*pragma\s+(GCC|clang)\s+(optimize|target|fp)|__attribute__\s*\(\(\s*target"
)


def sources() -> list[Path]:
    return [p for p in files() if FOLDER in p.parents and p.suffix in {".h", ".cpp"}]


def folder_of(path: Path) -> str:
    inside = path.relative_to(FOLDER).parts
    return inside[0] if len(inside) > 1 else ""


def test_there_are_sources() -> None:
    assert len(sources()) > 20
    assert {folder_of(path) for path in sources()} == set(BELOW)


@pytest.mark.parametrize("path", sources(), ids=str)
def test_sizes(path: Path) -> None:
    lines = read(path).splitlines()
    assert len(lines) <= FILE_LINES
    wide = [number for number, line in enumerate(lines, 1) if len(line) > COLUMNS]
    assert not wide, f"more than {COLUMNS} columns in lines {wide}"


def foreign_includes(path: Path, text: str) -> list[str]:
    """Headers that are neither ours, nor of the language, nor of the processor; layers broken."""
    found = []
    for kind, name in re.findall(r"^\s*#\s*include\s*([<\"])([^>\"]+)", text, re.M):
        if kind == "<" and name not in HEADERS | SYSTEM_HEADERS:
            found.append(f"<{name}> is somebody else's")
        if kind == '"':
            folder = folder_of(FOLDER / name)
            if not (ROOT / FOLDER / name).is_file():
                found.append(f'"{name}" is not a path below {FOLDER}')
            elif folder not in {folder_of(path)} | BELOW[folder_of(path)]:
                found.append(f'"{name}": {folder_of(path)} is not above {folder}')
    return found


@pytest.mark.parametrize("path", sources(), ids=str)
def test_includes_point_down_and_stay_here(path: Path) -> None:
    text = read(path)
    assert not foreign_includes(path, text)
    if path.suffix == ".h":
        assert "#pragma once" in text


@pytest.mark.parametrize(
    "line",
    [
        "#include <onnxruntime_c_api.h>",
        '#include "onnxruntime_cxx_api.h"',
        "#include <Eigen/Core>",
        '#include "ort/op.h"',
        '#include "../exported.h"',
    ],
)
def test_planted_includes_are_found(line: str) -> None:
    assert foreign_includes(FOLDER / "kernels" / "x.h", f"{line}\n")


def test_flags_are_in_one_place() -> None:
    assert FLAGS.search(read(CMAKE))
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in [*text_files(), *(p for p in files() if p.name == "CMakeLists.txt")]
        if path != CMAKE and path.suffix != ".md" and path.parts[0] != "tests"
        for number, line in enumerate(read(path).splitlines(), 1)
        if FLAGS.search(line)
    ]
    assert not found, "\n".join(found)


def test_every_source_is_built() -> None:
    globs = re.search(r"file\(GLOB QD_SOURCES CONFIGURE_DEPENDS (.+)\)", read(CMAKE))
    assert globs is not None
    folders = {part.removesuffix("/*.cpp") for part in globs[1].split()}
    units = [p for p in sources() if p.suffix == ".cpp" and folder_of(p) != "tests"]
    assert {p.parent.relative_to(FOLDER).as_posix() for p in units} == folders
    named = set(re.findall(r"^ *qd_isa\((\w+)", read(CMAKE), re.M))
    assert named == {p.stem.removeprefix("isa_") for p in units if p.stem.startswith("isa_")}
    programs = re.findall(r"tests/\w+\.cpp", read(CMAKE))
    assert set(programs) == {f"tests/{p.name}" for p in sources() if folder_of(p) == "tests"}


def ops() -> dict[str, Path]:
    """Path by name of the ops offered to ONNX Runtime."""
    found = {}
    for path in sources():
        for name in re.findall(r'\bkName\[\] = "(\w+)"', read(path)):
            found[name] = path
    return found


def test_every_op_is_documented() -> None:
    page = read(Path("docs/hot-path-ops.md"))
    assert len(ops()) >= 6
    assert not [name for name in ops() if not re.search(rf"^#+ .*\b{name}\b", page, re.M)]


def test_functions_used_from_python_are_declared() -> None:
    header = read(FOLDER / "capi" / "capi.h")
    used = set(re.findall(r'"(qd_\w+)"', read(Path("runtime/native.py"))))
    assert len(used) >= 5
    assert not [name for name in used if not re.search(rf"QD_EXPORT [^;]*\b{name}\(", header)]


@pytest.mark.parametrize("name", ["QUICKDRAFT_ISA", "QUICKDRAFT_LIBRARY", "QUICKDRAFT_PURE"])
def test_variables_are_documented(name: str) -> None:
    assert f"`{name}" in read(Path("docs/native.md"))
