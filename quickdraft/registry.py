"""Name to import path: what can be plugged in, without importing any of it.

Adding an architecture, emitter, drafter or backend is one file and one line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from quickdraft.errors import OptionError

ARCHITECTURES: Mapping[str, str] = {
    "bart": "quickdraft.export.architectures.bart:FAMILY",
    "gemma2": "quickdraft.export.architectures.gemma2:FAMILY",
    "gemma3": "quickdraft.export.architectures.gemma3:MULTIMODAL",
    "gemma3_text": "quickdraft.export.architectures.gemma3:FAMILY",
    "gpt2": "quickdraft.export.architectures.gpt2:FAMILY",
    "gpt_neox": "quickdraft.export.architectures.gpt_neox:FAMILY",
    "llama": "quickdraft.export.architectures.llama:FAMILY",
    "mt5": "quickdraft.export.architectures.t5:MT5",
    "marian": "quickdraft.export.architectures.marian:FAMILY",
    "mbart": "quickdraft.export.architectures.mbart:FAMILY",
    "mistral": "quickdraft.export.architectures.mistral:FAMILY",
    "mu": "quickdraft.export.architectures.mu:FAMILY",
    "olmo2": "quickdraft.export.architectures.olmo2:FAMILY",
    "openelm": "quickdraft.export.architectures.openelm:FAMILY",
    "opt": "quickdraft.export.architectures.opt:FAMILY",
    "phi3": "quickdraft.export.architectures.phi3:FAMILY",
    "qwen2": "quickdraft.export.architectures.qwen2:FAMILY",
    "qwen3": "quickdraft.export.architectures.qwen3:FAMILY",
    "smollm3": "quickdraft.export.architectures.smollm3:FAMILY",
    "stablelm": "quickdraft.export.architectures.stablelm:FAMILY",
    "t5": "quickdraft.export.architectures.t5:FAMILY",
    "whisper": "quickdraft.export.architectures.whisper:FAMILY",
}
CHECKPOINTS: Mapping[str, str] = {
    "huggingface": "quickdraft.export.checkpoints.hf:read_huggingface",
    "ctranslate2": "quickdraft.export.checkpoints.ctranslate2:read_ctranslate2",
    "onnx": "quickdraft.export.checkpoints.onnx_t5:read_onnx_t5",
}
"""Kinds of checkpoint folders (see quickdraft.checkpoint_folders): functions from a folder to an
export.checkpoints.base.Checkpoint."""
EMITTERS: Mapping[str, str] = {
    "genai": "quickdraft.export.emitters.genai:emit_genai",
    "coreml": "quickdraft.export.emitters.coreml:emit_coreml",
    "hotpath": "quickdraft.export.emitters.hotpath:emit_hotpath",
    "reference": "quickdraft.export.emitters.numpy:emit_reference",
    "onnx": "quickdraft.export.emitters.onnx:emit_onnx",
    "onnx-static": "quickdraft.export.emitters.onnx_static:emit_onnx_static",
    "openvino": "quickdraft.export.emitters.openvino:emit_openvino",
    "openvino-genai": "quickdraft.export.emitters.openvino_genai:emit_openvino_genai",
    "openvino-static": "quickdraft.export.emitters.openvino:emit_openvino_static",
}
BACKENDS: Mapping[str, str] = {
    "coreml": "quickdraft.runtime.backends.coreml:CoreMlBackend",
    "hotpath": "quickdraft.runtime.backends.hotpath:HotpathBackend",
    "reference": "quickdraft.runtime.backends.reference:ReferenceBackend",
    "onnxruntime": "quickdraft.runtime.backends.onnxruntime:OnnxRuntimeBackend",
    "onnxruntime_adapted": "quickdraft.runtime.backends.onnxruntime_adapted:OnnxRuntimeAdapted",
    "onnxruntime_static": "quickdraft.runtime.backends.onnxruntime_static:OnnxRuntimeStatic",
    "openvino": "quickdraft.runtime.backends.openvino:OpenVinoBackend",
    "openvino_adapted": "quickdraft.runtime.backends.openvino_adapted:OpenVinoAdapted",
}
PREDICTORS: Mapping[str, str] = {
    "hotpath": "quickdraft.runtime.backends.hotpath_predictor:HotpathPredictor",
    "reference": "quickdraft.runtime.backends.reference_predictor:ReferencePredictor",
    "onnxruntime": "quickdraft.runtime.backends.onnxruntime_predictor:OnnxRuntimePredictor",
    "onnxruntime_static": (
        "quickdraft.runtime.backends.onnxruntime_static_predictor:OnnxRuntimeStaticPredictor"
    ),
    "openvino": "quickdraft.runtime.backends.openvino_predictor:OpenVinoPredictor",
}
"""By backend: classes of runtime.backends.base.Predictor."""
DRAFTERS: Mapping[str, str] = {
    "prompt_lookup": "quickdraft.drafters.prompt_lookup:open_prompt_lookup",
    "source_lookup": "quickdraft.drafters.source_lookup:open_source_lookup",
    "ngram_store": "quickdraft.drafters.ngram_store:open_ngram_store",
    "recycling": "quickdraft.drafters.recycling:open_recycling",
    "trigram": "quickdraft.drafters.trigram:open_trigram",
    "small_model": "quickdraft.drafters.small_model:open_small_model",
    "auxiliary": "quickdraft.drafters.auxiliary:open_auxiliary",
    "compact": "quickdraft.drafters.compact:open_compact",
    "nested": "quickdraft.drafters.nested:open_nested",
    "shallow": "quickdraft.drafters.shallow:open_shallow",
    "eagle": "quickdraft.drafters.eagle:open_eagle",
    "falcon": "quickdraft.drafters.falcon:open_falcon",
    "chimera": "quickdraft.drafters.chimera:open_chimera",
    "clover": "quickdraft.drafters.clover:open_clover",
    "medusa": "quickdraft.drafters.medusa:open_medusa",
    "hydra": "quickdraft.drafters.hydra:open_hydra",
}
TRAINED: Mapping[str, str] = {
    "predictor": "quickdraft.export.prediction:attach",
    "compact": "quickdraft.export.heads.compact:attach_compact",
    "eagle": "quickdraft.export.heads.eagle:attach_eagle",
    "falcon": "quickdraft.export.heads.falcon:attach_falcon",
    "chimera": "quickdraft.export.heads.chimera:attach_chimera",
    "clover": "quickdraft.export.heads.clover:attach_clover",
    "nested": "quickdraft.export.heads.nested:attach_nested",
    "judge": "quickdraft.export.heads.judge:attach_judge",
    "medusa": "quickdraft.export.heads.medusa:attach_medusa",
    "hydra": "quickdraft.export.heads.hydra:attach_hydra",
}
"""Kinds of trained parts: functions of export.trained.Attach."""
TRAINED_WITH_ENCODER: Mapping[str, str] = {
    "shallow": "quickdraft.export.heads.shallow:attach_shallow",
}
"""The same for encoder-decoder models: functions of export.trained.AttachWithEncoder."""


def lookup(kind: str, table: Mapping[str, str], name: str) -> Any:
    """Import and return what `name` stands for in `table`.

    Values of a table read "module.path:attribute".

    Raises:
        OptionError: the name is unknown; the message lists what there is.
    """
    try:
        module, attribute = table[name].split(":")
    except KeyError:
        near = get_close_matches(name, table, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise OptionError(
            f"unknown {kind} {name!r}{hint} (there are: {', '.join(sorted(table)) or 'none'})"
        ) from None
    return getattr(importlib.import_module(module), attribute)
