"""Install engines to compare with, each in an environment of its own.

    python bench/peers/install.py llama.cpp onnxruntime-genai openvino-genai transformers
        ctranslate2 optimum [--dir DIR]

DIR/NAME becomes a virtual environment with the engine and what converts models for it, and
DIR/NAME.json tells `quickdraft bench ... --peers NAME` how to run it. DIR is the folder `peers`
of quickdraft's cache unless given; give the same to `--peers-dir` then. llama.cpp is compiled for
this processor, once as a library and once as the server that has its speculative decoding, which
takes many minutes and a C++ compiler. ctranslate2 is for bench/speech.py and bench/titles.py, which
are given its interpreter, optimum for bench/adapters.py. What is there already is brought up to
date.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import venv
from pathlib import Path

from quickdraft.hashes import cache_root

HERE = Path(__file__).resolve().parent
# torch comes first, alone: with it in place nothing asks for one with the libraries of a GPU.
TORCH = ["torch==2.13.0"]
DECODER = "gguf-decoder"
CTRANSLATE2 = "ctranslate2"
OPTIMUM = "optimum"
LLAMA_CPP = "llama-cpp-python==0.3.36"
STEPS: dict[str, tuple[list[str], ...]] = {
    # transformers 5 keeps the blocks of a GGUF file and cannot save them; GenAI's builder needs it.
    DECODER: (TORCH, ["transformers==4.57.6", "gguf==0.19.0", "accelerate==1.15.0"]),
    "llama.cpp": (["numpy", LLAMA_CPP, "cmake", "ninja"],),
    "onnxruntime-genai": (
        TORCH,
        ["onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "onnx==1.23.2", "onnx-ir==1.1.0"],
        ["transformers==5.23.0", "sentencepiece"],
    ),
    "openvino-genai": (
        TORCH,
        ["openvino==2026.4.1", "openvino-genai==2026.4.1.0", "nncf==3.4.0"],
        ["transformers==4.57.6"],
        # Its dependencies are the lines above; its own choice of torch is gigabytes.
        ["--no-deps", "optimum-intel==2.2.0", "optimum==2.3.0", "optimum-onnx==0.1.0"],
    ),
    "transformers": (TORCH, ["transformers==4.57.6"]),
    OPTIMUM: (TORCH, ["transformers==4.57.6", "optimum-onnx==0.1.0", "onnxruntime==1.32.0"]),
    CTRANSLATE2: (["ctranslate2==4.8.5", "numpy", "setuptools", "tokenizers"],),
}
SCRIPTS = {
    "llama.cpp": "llama_cpp_peer.py",
    "onnxruntime-genai": "onnxruntime_genai_peer.py",
    "openvino-genai": "openvino_genai_peer.py",
    "transformers": "transformers_peer.py",
}
CONVERTED = ("onnxruntime-genai", "openvino-genai", "transformers")
# Without pages to show, encryption and everything else that a benchmark of text does not touch.
SERVER_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}


def python_of(name: str, folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / name / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(name: str, folder: Path) -> None:
    """Make or renew an environment."""
    print(f"{name}: {folder / name}", flush=True)
    python = python_of(name, folder)
    if not python.exists():
        venv.create(folder / name, with_pip=True)
    for packages in STEPS[name]:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)


def build_server(folder: Path) -> None:
    """Build llama-server beside the interpreter, of the sources that the package was made of."""
    python = python_of("llama.cpp", folder)
    built = python.with_name("llama-server.exe" if os.name == "nt" else "llama-server")
    if built.exists():
        return
    programs = {"cmake": str(python.with_name("cmake")), "ninja": str(python.with_name("ninja"))}
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        download = [str(python), "-m", "pip", "download", "--quiet", "--no-deps"]
        source = ["--no-binary", ":all:", "--dest", place, LLAMA_CPP]
        subprocess.run([*download, *source], check=True)
        with tarfile.open(next(work.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(work, filter="data")
        tree = next(work.glob("llama_cpp_python-*/vendor/llama.cpp"))
        options = SERVER_OPTIONS | {"CMAKE_MAKE_PROGRAM": programs["ninja"]}
        given = [f"-D{name}={value}" for name, value in options.items()]
        make = [programs["cmake"], "-S", str(tree), "-B", str(work / "build"), "-G", "Ninja"]
        subprocess.run([*make, *given], check=True, stdout=subprocess.DEVNULL)
        build = [programs["cmake"], "--build", str(work / "build"), "--target", "llama-server"]
        subprocess.run(build, check=True)
        shutil.copy2(work / "build" / "bin" / built.name, built)


def describe(name: str, folder: Path) -> None:
    """Write DIR/NAME.json."""
    python, decoder = str(python_of(name, folder)), str(python_of(DECODER, folder))
    convert = [python, str(HERE / "convert.py"), "--decoder", decoder, name]
    commands = {
        "command": [python, str(HERE / SCRIPTS[name])],
        "convert": convert if name in CONVERTED else None,
    }
    (folder / f"{name}.json").write_text(json.dumps(commands, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Install what is named, and what converts models for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "peers", nargs="+", choices=[*SCRIPTS, CTRANSLATE2, OPTIMUM], metavar="PEER"
    )
    parser.add_argument("--dir", type=Path, default=cache_root() / "peers")
    options = parser.parse_args()
    folder = options.dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if set(options.peers) & set(CONVERTED):
        install(DECODER, folder)
    for name in options.peers:
        install(name, folder)
        if name == "llama.cpp":
            build_server(folder)
        if name in SCRIPTS:
            describe(name, folder)


if __name__ == "__main__":
    main()
