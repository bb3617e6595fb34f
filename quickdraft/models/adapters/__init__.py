"""Folders that other tools exported, opened as they are: a manifest is made in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from quickdraft.bundle import Bundle
from quickdraft.errors import AdapterError, BundleError
from quickdraft.types import Progress

Kind = Literal["onnxruntime-genai", "openvino", "optimum"]

OPTIMUM_MODELS = ("model.onnx", "decoder_model_merged.onnx", "decoder_with_past_model.onnx",
                  "decoder_model.onnx", "model_quantized.onnx",
                  "decoder_model_merged_quantized.onnx")  # fmt: skip
"""Files that make a folder an export of optimum; of several, the first is used. The last two are
what its quantiser writes, to a folder of their own unless told otherwise."""


def recognise(folder: Path) -> Kind | None:
    """Which tool a folder is from, by what lies in it; None for none of them.

    A checkpoint stays one, also where an export lies beside its weights.
    """
    if (folder / "genai_config.json").is_file():
        return "onnxruntime-genai"
    if any(folder.glob("*.safetensors")):
        return None
    if (folder / "openvino_model.xml").is_file():
        return "openvino"
    if any(
        (part / name).is_file() for part in (folder, folder / "onnx") for name in OPTIMUM_MODELS
    ):
        return "optimum"
    return None


def adapt(folder: Path, *, progress: Progress | None = None) -> Bundle:
    """The bundle that a recognised folder stands for. progress: stage `verify`, in bytes.

    Raises:
        AdapterError: a file is missing, or the model is of a kind that no adapter opens.
        TokenizerError, CheckpointError: the files of its tokenizer cannot be used.
    """
    kind = recognise(folder)
    try:
        if kind == "onnxruntime-genai":
            from quickdraft.models.adapters.genai import adapt_genai

            return adapt_genai(folder, progress)
        if kind == "openvino":
            from quickdraft.models.adapters.openvino import adapt_openvino

            return adapt_openvino(folder, progress)
        if kind == "optimum":
            from quickdraft.models.adapters.optimum import adapt_optimum

            return adapt_optimum(folder, progress)
    except AdapterError:
        raise
    except BundleError as error:  # from readers that know no folders of other tools
        raise AdapterError(str(error)) from error
    raise AdapterError(f"{folder} is not an export of onnxruntime-genai, optimum or OpenVINO")
