"""Imports point down, by full name, and load nothing heavy."""

from __future__ import annotations

import ast
import functools
import importlib.util
import subprocess
import sys
from collections.abc import Iterator

import pytest
from house.repo import modules, package_folders, parse, pyproject

# What each layer may import besides itself. `bottom` is every file directly in quickdraft/ that
# is not named in TOP; `train` is quickdraft.drafters.train; `top` may look everywhere.
BELOW = {
    "bottom": set(),
    "device_profiles": {"bottom"},
    "kvcache": {"bottom", "device_profiles"},
    "drafters": {"bottom", "device_profiles", "kvcache"},
    "runtime": {"bottom", "device_profiles", "kvcache", "drafters"},
    "export": {"bottom", "device_profiles"},
    "train": {"bottom", "device_profiles", "kvcache", "drafters", "export"},
    "top": {"bottom", "device_profiles", "kvcache", "drafters", "runtime", "export", "train"},
}
TOP = {"api", "cli", "commands", "models", "__main__"}
# What runs models must not need any of these. Some of them are for training, which is all that
# may look at the emitter that needs torch.
BANNED = {"torch", "transformers", "gguf", "optimum", "accelerate"}
FOR_TRAINING = {"torch", "accelerate"}
TRAIN = "quickdraft.drafters.train"
TORCH_EMITTER = ("quickdraft.export.emitters.torch", "quickdraft.export.emitters.torch_ops")
FRAMEWORKS = BANNED | {"onnx", "onnx_ir", "onnxruntime", "coremltools", "openvino", "tokenizers"}
# Import names that differ from the name of the distribution.
IMPORT_NAMES = {"huggingface-hub": "huggingface_hub", "onnx-ir": "onnx_ir", "protobuf": "google"}


def layer_of(module: str) -> str:
    """The layer a module of ours belongs to."""
    if module == TRAIN or module.startswith(f"{TRAIN}."):
        return "train"
    first = module.split(".")[1] if "." in module else ""
    if f"quickdraft.{first}" in package_folders():
        return first
    return "top" if first in TOP else "bottom"


def trains(module: str) -> bool:
    """Whether a module of ours is there for training alone, and so may need torch."""
    return layer_of(module) == "train" or module in TORCH_EMITTER


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module imported anywhere in a source, with its line; relative ones start with "."."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in modules() else base), node.lineno


def violations(module: str, tree: ast.AST) -> list[str]:
    """What a source imports and must not."""
    layer = layer_of(module)
    found = []
    for name, line in imports(tree):
        root = name.split(".")[0]
        if name.startswith("."):
            found.append(f"{module}:{line} imports {name}; use the full name")
        elif root in package_folders().values() and root != "quickdraft":
            found.append(f"{module}:{line} imports {name}; say quickdraft.{name}")
        elif root in BANNED and not (root in FOR_TRAINING and trains(module)):
            found.append(f"{module}:{line} imports {name}; the package works without it")
        elif root == "quickdraft" and name != "quickdraft":
            other = layer_of(name)
            if other != layer and other not in BELOW[layer]:
                found.append(f"{module}:{line} imports {name}; {layer} is not above {other}")
            elif name in TORCH_EMITTER and not trains(module) and layer != "top":
                found.append(f"{module}:{line} imports {name}; only training may need torch")
    return found


def test_imports_point_down() -> None:
    # quickdraft/__init__.py names what it offers, for type checkers and on first use.
    sources = {name: path for name, path in modules().items() if name != "quickdraft"}
    found = [line for name, path in sources.items() for line in violations(name, parse(path))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("quickdraft.drafters.x", "from quickdraft.runtime.engine import Engine"),
        ("quickdraft.drafters.x", "import quickdraft.runtime.engine"),
        ("quickdraft.runtime.x", "def f():\n    from quickdraft.export import ops"),
        ("quickdraft.export.x", "from quickdraft.runtime.backends import base"),
        ("quickdraft.export.x", "from quickdraft.models import names"),
        ("quickdraft.errors", "from quickdraft.kvcache.base import KvCache"),
        ("quickdraft.export.x", "from quickdraft.cli import main"),
        ("quickdraft.runtime.x", "from . import y"),
        ("quickdraft.runtime.x", "from kvcache.base import KvCache"),
        ("quickdraft.runtime.x", "if TYPE_CHECKING:\n    import torch"),
        ("quickdraft.export.emitters.x", "import torch"),
        ("quickdraft.export.emitters.x", "from quickdraft.export.emitters.torch import TorchModel"),
        ("quickdraft.export.emitters.x", "from quickdraft.export.emitters import torch_ops"),
        ("quickdraft.commands.x", "def f():\n    import torch"),
        ("quickdraft.runtime.x", "from quickdraft.drafters.train.loop import run"),
        ("quickdraft.drafters.x", "from quickdraft.drafters.train import loop"),
        ("quickdraft.drafters.x", "def f():\n    import quickdraft.drafters.train"),
        ("quickdraft.export.x", "from quickdraft.drafters.train.loop import run"),
        ("quickdraft.drafters.train.x", "from quickdraft.runtime.model import Model"),
        ("quickdraft.drafters.train.x", "from quickdraft.commands import options"),
        ("quickdraft.drafters.train.x", "import transformers"),
    ],
)
def test_planted_imports_are_found(module: str, source: str) -> None:
    assert violations(module, ast.parse(source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("quickdraft.drafters.train.x", "import torch, accelerate"),
        ("quickdraft.drafters.train.x", "from quickdraft.export.emitters.torch import TorchModel"),
        ("quickdraft.drafters.train.x", "from quickdraft.drafters.tree import Tree"),
        ("quickdraft.export.emitters.torch", "from torch import nn"),
        ("quickdraft.commands.x", "def f():\n    from quickdraft.drafters.train import loop"),
    ],
)
def test_training_may_use_torch(module: str, source: str) -> None:
    assert not violations(module, ast.parse(source))


def test_third_party_imports_are_declared() -> None:
    project = pyproject()["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["onnx"]]
    for extra in ("audio", "bench", "coreml", "openvino", "train"):
        wanted += project["optional-dependencies"][extra]
    names = {line.split(">")[0].split("=")[0].split("<")[0].strip() for line in wanted}
    allowed = {IMPORT_NAMES.get(name, name) for name in names} | set(sys.stdlib_module_names)
    found = {
        f"{module}:{line} imports {name}"
        for module, path in modules().items()
        for name, line in imports(parse(path))
        if name.split(".")[0] not in allowed | {"quickdraft"}
    }
    assert not found, "\n".join(sorted(found))


def measure(statement: str) -> tuple[float, set[str]]:
    """Seconds that a statement takes in a fresh interpreter, and the modules it loads."""
    script = (
        "import sys, time\n"
        "before = time.perf_counter()\n"
        f"{statement}\n"
        "print(time.perf_counter() - before, *{name.split('.')[0] for name in sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    seconds, *loaded = result.stdout.split()
    return float(seconds), set(loaded)


def test_import_is_quick_and_light() -> None:
    runs = [measure("import quickdraft") for _ in range(5)]
    assert min(seconds for seconds, _ in runs) < 0.150
    assert not runs[0][1] & (FRAMEWORKS | {"numpy", "click", "huggingface_hub"})


def test_command_line_starts_without_frameworks() -> None:
    runs = [measure("import quickdraft.cli") for _ in range(3)]
    assert min(seconds for seconds, _ in runs) < 0.300
    assert not runs[0][1] & (FRAMEWORKS | {"numpy"})


@functools.cache
def needs_an_extra(module: str) -> bool:
    """Whether a module imports, by itself or through others of ours, OpenVINO where that is not
    installed, or coremltools, which loads torch where it finds it."""
    found = parse(modules()[module]).body
    tops = [each for each in found if isinstance(each, ast.Import | ast.ImportFrom)]
    names = {name for name, _ in imports(ast.Module(tops, []))}
    absent = {name for name in ("openvino",) if importlib.util.find_spec(name) is None}
    outside = {name.split(".")[0] for name in names}
    return bool(outside & (absent | {"coremltools"})) or any(
        needs_an_extra(name) for name in names & set(modules()) - {module}
    )


def test_every_module_imports_without_torch() -> None:
    names = ", ".join(
        sorted(name for name in modules() if not trains(name) and not needs_an_extra(name))
    )
    _, loaded = measure(f"import {names}")
    assert "quickdraft" in loaded
    assert not loaded & BANNED
