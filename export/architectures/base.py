"""What a family file provides, and finding the right one for a checkpoint.

To add a family: write `read` (config to DecoderSpec) and `gather` (tensors to DecoderWeights) in
a file here, bind `FAMILY = Family(read, gather, DEFAULTS)`, add a line per model_type to
`quickdraft.registry.ARCHITECTURES` and two tiny configs to `tests/tiny/family_configs.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from quickdraft.errors import CheckpointError, UnsupportedModel
from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.decoder import DecoderSpec, DecoderWeights, build_decoder
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.ops import Ops
from quickdraft.registry import ARCHITECTURES, lookup

V = TypeVar("V")

# Constant buffers that older versions of transformers saved.
_BUFFERS = r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias)$"
# A copy of the embedding, saved although tied.
_HEADS = r"(^|\.)(lm_head|embed_out)\.weight$"


@dataclass(frozen=True)
class Family:
    """A model family. read_config: refuses what it does not implement. gather: maps tensors to
    their places. defaults: of transformers' config class, for keys a file leaves out. unused:
    regular expression of names of tensors that may be left over."""

    read_config: Callable[[Config], DecoderSpec]
    gather: Callable[[DecoderSpec, WeightMap], DecoderWeights]
    defaults: Mapping[str, Any]
    unused: str | None = None

    def read(self, config: Mapping[str, Any], where: str = "config.json") -> DecoderSpec:
        """The architecture that a config describes; `where` names it in errors.

        Raises:
            CheckpointError: a key is missing or has a value it cannot have.
            UnsupportedModel: a value that is not implemented; the message names key and value.
        """
        reader = open_config(config, self.defaults, where)
        reader.only("is_encoder_decoder", False)
        spec = self.read_config(reader)
        for index, layer in enumerate(spec.layers):
            if layer.num_heads % layer.num_kv_heads:
                raise CheckpointError(
                    f"{reader.where}: layer {index} has {layer.num_heads} heads over "
                    f"{layer.num_kv_heads} KV heads; the first must be a multiple of the second"
                )
        return spec

    def build(self, ops: Ops[V], spec: DecoderSpec, weights: WeightMap) -> None:
        """Write the model against `ops`. Raises as `collect`."""
        build_decoder(ops, spec, self.collect(spec, weights))

    def collect(self, spec: DecoderSpec, weights: WeightMap) -> DecoderWeights:
        """All weights of a checkpoint in their places.

        Raises:
            CheckpointError: a tensor is missing or has the wrong shape.
            UnsupportedModel: tensors are left over, so the model is not the one we know.
        """
        gathered = self.gather(spec, weights)
        refuse_left_over(weights, spec.family, _HEADS if spec.tied_output else None, self.unused)
        return gathered


def open_config(config: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> Config:
    """A reader of a config over the defaults of its class.

    Raises:
        UnsupportedModel: it is of quantised weights, or its rope differs by layer type.
    """
    reader = Config({**defaults, **_flatten_rope(config, where)}, where)
    if reader.has("quantization_config"):
        method = reader.values["quantization_config"]
        if isinstance(method, Mapping):
            method = method.get("quant_method", "unknown")
        raise reader.refuse("quantization_config", method, "unquantised checkpoints, or GGUF files")
    return reader


def refuse_left_over(weights: WeightMap, family: str, *unused: str | None) -> None:
    """Refuse tensors that nobody asked for, but constant buffers and names that match `unused`.

    Raises:
        UnsupportedModel: there are some, so the model is not the one we know.
    """
    allowed = re.compile("|".join(pattern for pattern in (_BUFFERS, *unused) if pattern))
    left = sorted(n for n in weights if n not in weights.used and not allowed.search(n))
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise UnsupportedModel(
            f"the checkpoint has the tensor {left[0]!r}{more}, which the config does not "
            f"ask for and {family} does not use"
        )


def find_any(config: Mapping[str, Any]) -> Any:
    """What registry.ARCHITECTURES has for a config's `model_type`: a Family or a Seq2SeqFamily.

    Raises:
        UnsupportedModel: there is nothing; the message lists what there is.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"config.json: 'model_type' is {name!r}, which is not supported; "
            f"supported: {', '.join(sorted(ARCHITECTURES))}; for other decoders there is "
            "`quickdraft export --via optimum`"
        )
    return lookup("architecture", ARCHITECTURES, name)


def find_family(config: Mapping[str, Any]) -> Family:
    """The family of a decoder-only model.

    Raises:
        UnsupportedModel: see find_any, or the model has an encoder too.
    """
    family = find_any(config)
    if not isinstance(family, Family):
        raise UnsupportedModel(
            f"config.json: {config['model_type']!r} is an encoder-decoder model, and this is for "
            "decoder-only models"
        )
    return family


def _flatten_rope(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """transformers 5 writes `rope_parameters` for what was `rope_theta` and `rope_scaling`."""
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, Mapping):
        return config
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise UnsupportedModel(
            f"{where}: 'rope_parameters' differs by layer type, which is not supported; "
            "supported: 'rope_theta' and 'rope_scaling' as transformers 4 writes them"
        )
    scaling = {k: v for k, v in parameters.items() if k != "rope_theta"}
    flat = {**config, "rope_scaling": scaling}
    if "rope_theta" in parameters:
        flat["rope_theta"] = parameters["rope_theta"]
    if "partial_rotary_factor" in scaling:
        flat["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
    return flat
