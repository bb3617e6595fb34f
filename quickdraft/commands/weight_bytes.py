"""How many bytes of weights a step must read, from the graph of a bundle."""

from __future__ import annotations

from pathlib import Path

from quickdraft.errors import MissingExtra
from quickdraft.manifest import Manifest, Variant

# Ops that read the rows they are asked for, not the whole table.
_LOOKUPS = frozenset({"Gather", "GatherBlockQuantized", "Embed"})


def variant_bytes(manifest: Manifest, variant: Variant) -> int:
    """Size of the files of a variant."""
    return sum(manifest.files[name].size for name in variant.files)


def step_bytes(folder: Path, manifest: Manifest, variant: Variant) -> int:
    """Bytes of the weights that every step reads: all but tables that are only looked up.

    Raises:
        MissingExtra: onnx-ir is not installed.
    """
    if variant.target_format != "onnx":
        return variant_bytes(manifest, variant)
    try:
        import onnx_ir
    except ImportError:
        raise MissingExtra("onnx-ir", "onnx") from None
    graph = onnx_ir.load(folder / variant.model).graph
    return sum(
        value.const_value.nbytes
        for value in graph.initializers.values()
        if value.const_value is not None
        and any(use.node.op_type not in _LOOKUPS for use in value.uses())
    )
