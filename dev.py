#!/usr/bin/env python3
"""All commands a contributor needs: `python dev.py --help`. Standard library only."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "quickdraft-setup.json"
PACKAGES = ("quickdraft", "export", "runtime", "drafters", "kvcache", "device_profiles")
NATIVE = ROOT / "runtime" / "csrc"
OLDEST_PYTHON = (3, 11)
# The one torch the parity lane is known to agree with; an index without it gives its newest.
TORCH = ("torch==2.13.0", "torch>=2.5")
DEMO_MODEL = "smollm2-135m"
# The answer repeats part of the prompt, which is what prompt lookup drafts from.
DEMO_PROMPT = """\
Write this class again, then show how to use it:

class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        return self.items.pop()
"""


class Failed(Exception):
    """A step did not work; carries the exit code to leave with."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def say(text: str) -> None:
    """Print a line of our own, apart from the output of what we run."""
    print(f"dev.py: {text}", file=sys.stderr, flush=True)


def tool(name: str) -> str:
    """Path of a program inside the environment, on any system."""
    if os.name == "nt":
        return str(VENV / "Scripts" / f"{name}.exe")
    return str(VENV / "bin" / name)


# Progress bars are for people; in a log they would be a thousand lines.
PIP = (tool("python"), "-m", "pip", "install", *(() if sys.stderr.isatty() else ("-qq",)))


def run(
    *command: str, quiet: bool = False, ask: bool = True, env: Mapping[str, str] | None = None
) -> None:
    """Run a command in the repository, its output passed through.

    ask: it may read what we may. env: variables it gets besides ours.

    Raises:
        Failed: it exited with something else than 0; the same code is passed on.
    """
    if not quiet:
        say(" ".join(command))
    started = time.monotonic()
    stdin = None if ask else subprocess.DEVNULL
    variables = {**os.environ, **(env or {})}
    code = subprocess.run(command, cwd=ROOT, check=False, stdin=stdin, env=variables).returncode
    if code:
        raise Failed(f"exit code {code} from: {' '.join(command)}", code if code > 0 else 1)
    if not quiet:
        say(f"done in {time.monotonic() - started:.1f} s")


def pip_install(*arguments: str) -> None:
    """`pip install`, tried twice: a hiccup of the network should not cost the whole set-up."""
    try:
        run(*PIP, *arguments)
    except Failed:
        say("that failed; trying once more")
        run(*PIP, *arguments)


def install_torch() -> None:
    """Install torch before anything that would ask for it without naming a version."""
    exact, range_ = TORCH
    try:
        run(*PIP, exact)
    except Failed:
        say(f"{exact} is not to be had here; taking {range_}")
        pip_install(range_)


def is_pure() -> bool:
    """Whether QUICKDRAFT_PURE asks for an installation without native code."""
    return os.environ.get("QUICKDRAFT_PURE", "").lower() not in {"", "0", "false", "no", "off"}


def has_compiler() -> bool:
    """Whether CMake would find a C++ compiler; on Windows only CMake can tell."""
    names = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]
    return os.name == "nt" or any(shutil.which(name) for name in names)


def leave_out_native_code() -> None:
    """Install without native code where there is nothing to compile it with, and say so."""
    if not is_pure() and not has_compiler():
        say("*** no C++ compiler was found: installing WITHOUT the native library, as with")
        say("*** QUICKDRAFT_PURE=1. Same answers, but slower. To have it, install a compiler")
        say("*** (Debian and Ubuntu: g++; macOS: xcode-select --install) and run this again.")
        os.environ["QUICKDRAFT_PURE"] = "1"


def native_fingerprint() -> str:
    """Hash of what the native library is built from, or `pure` where it is left out."""
    if is_pure():
        return "pure"
    digest = hashlib.sha256()
    for path in sorted(NATIVE.rglob("*")):
        if path.is_file() and NATIVE / "tests" not in path.parents:
            digest.update(f"{path.relative_to(NATIVE).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def fingerprint() -> str:
    """Hash of all that decides what the environment holds, but for the native library."""
    facts = (ROOT / "pyproject.toml").read_bytes() + "\n".join((sys.version, *TORCH)).encode()
    return hashlib.sha256(facts).hexdigest()


def read_stamp() -> dict[str, str]:
    """What is installed already: fingerprint by part (`base`, `parity`)."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def leave_venv_alone() -> None:
    """Refuse to remove the environment that runs this file."""
    if Path(sys.prefix).resolve() == VENV:
        raise Failed(f"this Python lives in {VENV}; run dev.py with the one that created it", 2)


def create_venv() -> None:
    """Make `.venv` with the Python that runs this file."""
    leave_venv_alone()
    say(f"creating {VENV} with Python {sys.version.split()[0]}")
    code = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=False)
    if code.returncode:
        raise Failed(
            "this Python cannot create environments; on Debian and Ubuntu install the package "
            "python3-venv, elsewhere a complete Python"
        )


def setup(everything: bool = False) -> None:
    """Bring `.venv` up to date with pyproject.toml and the C++ sources; do nothing if it is."""
    leave_out_native_code()
    wanted, native = fingerprint(), native_fingerprint()
    stamp = read_stamp()
    if stamp.get("base") != wanted or not Path(tool("python")).exists():
        if not Path(tool("python")).exists() or stamp.get("python") != sys.version:
            create_venv()
        pip_install("--editable", ".[onnx,dev]")
        stamp = {"base": wanted, "native": native, "python": sys.version}
        STAMP.write_text(json.dumps(stamp), encoding="utf-8")
    elif stamp.get("native") != native:
        pip_install("--no-deps", "--editable", ".")
        stamp["native"] = native
        STAMP.write_text(json.dumps(stamp), encoding="utf-8")
    if everything and stamp.get("parity") != wanted:
        install_torch()
        pip_install("--editable", ".[onnx,dev,train,parity,openvino,coreml]")
        STAMP.write_text(json.dumps({**stamp, "parity": wanted}), encoding="utf-8")


def build_sanitized() -> dict[str, str]:
    """Build the native library with sanitizers; the variables that make Python load it.

    A finding ends the process, and so fails the test that ran.
    """
    compiler = os.environ.get("CXX", "g++")
    if sys.platform != "linux" or shutil.which(compiler) is None:
        raise Failed("--sanitize needs Linux and GCC; on Debian and Ubuntu install g++", 2)
    folder = ROOT / "build" / "sanitize"
    options = {
        "QD_SANITIZE": "address,undefined",
        "CMAKE_COMPILE_WARNING_AS_ERROR": "ON",
        "CMAKE_CXX_COMPILER": compiler,
        "CMAKE_MAKE_PROGRAM": tool("ninja"),
    }
    defined = [f"-D{name}={value}" for name, value in options.items()]
    run(tool("cmake"), "-S", str(NATIVE), "-B", str(folder), "-G", "Ninja", *defined)
    run(tool("cmake"), "--build", str(folder))
    # Python is not built with sanitizers, so their runtime comes first; libstdc++ beside it, or
    # the runtime would not see the exceptions of ONNX Runtime.
    runtimes = [
        subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    return {
        "LD_PRELOAD": " ".join(str(Path(path).resolve()) for path in runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "QUICKDRAFT_LIBRARY": str(folder / "libquickdraft.so"),
    }


def test(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Run the default lane of the tests, or another; `arguments` go to pytest."""
    setup(options.all)
    pytest = (tool("python"), "-m", "pytest")
    if options.sanitize:
        marks = "native and not (torch or models or arm or openvino or coreml)"
        lane = ("-m", marks, "--timeout", "600")
        run(*pytest, *lane, *arguments, env=build_sanitized())
    else:
        run(*pytest, *(("-m", "") if options.all else ()), *arguments)


def check_types() -> None:
    """Run mypy, and see that it looked at every file: through broken links it sees two."""
    command = [tool("python"), "-m", "mypy", "--cache-dir", str(VENV / "mypy-cache")]
    say("mypy")
    result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    print(result.stdout, result.stderr, sep="", end="", flush=True)
    if result.returncode:
        raise Failed("mypy found errors", result.returncode)
    found = re.search(r"no issues found in (\d+) source files", result.stdout)
    seen = int(found.group(1)) if found else 0
    expected = sum(1 for package in PACKAGES for _ in (ROOT / package).rglob("*.py"))
    if seen < expected:
        raise Failed(f"mypy checked {seen} files of {expected}; are the links in pkgview whole?")
    run(*command, "dev.py", "docs/tables.py")


def clang_format(*options: str) -> None:
    """Run clang-format over the C++ sources; their style is in `.clang-format`."""
    sources = sorted(path for path in NATIVE.rglob("*") if path.suffix in {".h", ".cpp"})
    names = [str(path.relative_to(ROOT)) for path in sources]
    say(f"clang-format {' '.join(options)}, {len(names)} files")
    run(tool("clang-format"), *options, *names, quiet=True)


def check() -> None:
    """Everything that needs no model: style, types, house tests. Never writes to the sources."""
    setup()
    python, cache = tool("python"), ("--cache-dir", str(VENV / "ruff-cache"))
    steps: tuple[Callable[[], None], ...] = (
        lambda: run(python, "-m", "ruff", "check", *cache, "."),
        lambda: run(python, "-m", "ruff", "format", "--check", *cache, "."),
        lambda: clang_format("--dry-run", "--Werror"),
        check_types,
        lambda: run(python, "-m", "pytest", "-p", "no:cacheprovider", "tests/house"),
    )
    failures = []
    for step in steps:
        try:
            step()
        except Failed as failure:
            failures.append(failure)
    if failures:
        raise Failed("\n        ".join(map(str, failures)), failures[0].code)


def format_sources() -> None:
    """Rewrite the sources: imports in order, one style."""
    setup()
    clang_format("-i")
    run(tool("python"), "-m", "ruff", "check", "--fix", ".")
    run(tool("python"), "-m", "ruff", "format", ".")


def demo() -> None:
    """Fetch a small model, export it, and let it answer while it drafts."""
    setup()
    # Without the store: a second demo would be fast because it remembers the first one's answer.
    options = ("--temperature", "0", "--max-new-tokens", "200", "--no-store", "--verbose")
    say(f"quickdraft run {DEMO_MODEL} PROMPT {' '.join(options)}, where PROMPT is")
    print(DEMO_PROMPT, flush=True)
    say("and this is the answer")
    # A prompt on the command line is joined with standard input, so that must be empty.
    run(tool("quickdraft"), "run", DEMO_MODEL, DEMO_PROMPT, *options, quiet=True, ask=False)
    say("that was with drafts; add --drafter none to see it without")


def clean() -> None:
    """Remove the environment, builds and caches; models in the user's cache stay."""
    leave_venv_alone()
    names = ("build", "dist", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis")
    for folder in (VENV, *(ROOT / name for name in names)):
        if folder.exists():
            say(f"removing {folder}")
            shutil.rmtree(folder)
    for package in (*PACKAGES, "tests", "bench"):
        for folder in list((ROOT / package).rglob("__pycache__")):
            shutil.rmtree(folder)


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The command, and what is left over for pytest."""
    parser = argparse.ArgumentParser(prog="dev.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    everything = {
        "setup": "also install torch, transformers, OpenVINO and coremltools, for every lane",
        "test": "run every lane: transformers, OpenVINO, Core ML, real models, Arm, slow tests",
    }
    sanitize = "run the tests of the native library with the address and undefined sanitizers"
    for name, text in {
        "setup": "create .venv and install the project; repeated only if it changed",
        "demo": "fetch a small model, export it, answer a prompt with speculation",
        "test": "run the tests; what follows goes to pytest",
        "check": "style, types and house tests; never writes",
        "format": "rewrite the sources in the house style",
        "docs": "regenerate the tables of the documentation",
        "clean": "remove the environment, builds and caches",
    }.items():
        command = commands.add_parser(name, help=text, description=text)
        lanes = command.add_mutually_exclusive_group()
        if name in everything:
            lanes.add_argument("--all", action="store_true", help=everything[name])
        if name == "test":
            lanes.add_argument("--sanitize", action="store_true", help=sanitize)
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "test":
        parser.error(f"unknown arguments for {options.command}: {' '.join(rest)}")
    return options, rest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    if sys.version_info < OLDEST_PYTHON:
        found, oldest = sys.version.split()[0], ".".join(map(str, OLDEST_PYTHON))
        say(f"this is Python {found}; quickdraft needs {oldest} or newer")
        return 2
    options, rest = parse(arguments)
    actions = {
        "setup": lambda: setup(options.all),
        "demo": demo,
        "test": lambda: test(options, rest),
        "check": check,
        "format": format_sources,
        "docs": lambda: run(sys.executable, str(ROOT / "docs" / "tables.py"), quiet=True),
        "clean": clean,
    }
    try:
        actions[options.command]()
    except Failed as failure:
        say(str(failure))
        return failure.code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
