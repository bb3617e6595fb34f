"""Install engines to compare with, each in an environment of its own.

    python bench/peers/install.py llama.cpp onnxruntime-genai openvino-genai [--dir DIR]

DIR/NAME becomes a virtual environment with the engine and what converts models for it, and
DIR/NAME.json tells `quickdraft bench curve --peers NAME` how to run it. DIR is the folder `peers`
of quickdraft's cache unless given; give the same to `--peers-dir` then. llama.cpp is compiled for
this processor, which takes minutes and a C++ compiler. What is there already is brought up to date.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import venv
from pathlib import Path

from quickdraft.hashes import cache_root

HERE = Path(__file__).resolve().parent
# torch comes first, alone: with it in place nothing asks for one with the libraries of a GPU.
TORCH = ["torch==2.13.0"]
DECODER = "gguf-decoder"
STEPS: dict[str, tuple[list[str], ...]] = {
    # transformers 5 keeps the blocks of a GGUF file and cannot save them; GenAI's builder needs it.
    DECODER: (TORCH, ["transformers==4.57.6", "gguf==0.19.0", "accelerate==1.15.0"]),
    "llama.cpp": (["numpy", "llama-cpp-python==0.3.36"],),
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
}
SCRIPTS = {
    "llama.cpp": "llama_cpp_peer.py",
    "onnxruntime-genai": "onnxruntime_genai_peer.py",
    "openvino-genai": "openvino_genai_peer.py",
}
CONVERTED = ("onnxruntime-genai", "openvino-genai")


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
    parser.add_argument("peers", nargs="+", choices=SCRIPTS, metavar="PEER")
    parser.add_argument("--dir", type=Path, default=cache_root() / "peers")
    options = parser.parse_args()
    folder = options.dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if set(options.peers) & set(CONVERTED):
        install(DECODER, folder)
    for name in options.peers:
        install(name, folder)
        describe(name, folder)


if __name__ == "__main__":
    main()
