"""quickdraft: small language models on the devices people own, answering fast and exactly."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quickdraft.api import load
    from quickdraft.errors import QuickdraftError
    from quickdraft.runtime.generation import GenerationConfig
    from quickdraft.runtime.model import Model, Result

__version__ = "0.1.0"

_LAZY = {
    "load": "quickdraft.api",
    "QuickdraftError": "quickdraft.errors",
    "GenerationConfig": "quickdraft.runtime.generation",
    "Model": "quickdraft.runtime.model",
    "Result": "quickdraft.runtime.model",
}

__all__ = ["GenerationConfig", "Model", "QuickdraftError", "Result", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that `import quickdraft` stays light."""
    if name not in _LAZY:
        raise AttributeError(f"module 'quickdraft' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
