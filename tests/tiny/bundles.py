"""A bundle of a few bytes: a true manifest over files that no engine opens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from quickdraft.manifest import (
    EXPORT_REVISION,
    BlocksLayout,
    FileEntry,
    Manifest,
    Role,
    SlotsLayout,
    SourceEntry,
    StepNames,
    TokenizerEntry,
    Variant,
)
from quickdraft.types import ModelSpec


def field(number: int, data: bytes) -> bytes:
    """A protobuf field that holds bytes (fewer than 16,384)."""
    size = len(data)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return (bytes([number << 3 | 2]) if number < 16 else bytes([number << 3 & 127 | 130, 1])) + (
        length + data
    )


def onnx_tensor(location: str, key: str = "location") -> bytes:
    """A TensorProto whose data lie in another file."""
    return field(13, field(1, key.encode()) + field(2, location.encode()))


def onnx_model(location: str) -> bytes:
    """A ModelProto with one initializer whose data lie in another file."""
    return field(7, field(5, onnx_tensor(location)))


TINY_FILES: Mapping[str, bytes] = {
    "model.onnx": onnx_model("weights/model.bin"),
    "weights/model.bin": bytes(range(256)) * 9,
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
}


def entries(files: Mapping[str, bytes]) -> dict[str, FileEntry]:
    return {
        name: FileEntry(len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()
    }


def tiny_manifest(files: Mapping[str, bytes] = TINY_FILES) -> Manifest:
    step = StepNames(
        tokens="tokens",
        positions="positions",
        slots="slots",
        output_rows="output_rows",
        logits="logits",
        biases={None: "bias", 128: "bias_128"},
        hidden_states={0: "hidden_0", 2: "hidden_2"},
    )
    cache = SlotsLayout(
        kind="slots",
        alignment=8,
        past_key="past_key_{layer}",
        past_value="past_value_{layer}",
        present_key="present_key_{layer}",
        present_value="present_value_{layer}",
    )
    variant = Variant(
        target_format="onnx",
        flavour="portable",
        weight_format="int4",
        model="model.onnx",
        files=("model.onnx", "weights/model.bin"),
        step=step,
        cache=cache,
        guarantee="same_distribution",
    )
    model = ModelSpec(
        family="llama",
        num_layers=2,
        hidden_size=16,
        vocab_size=32,
        context_length=64,
        num_heads=(4, 4),
        num_kv_heads=(2, 2),
        head_dim=4,
        windows=(None, 128),
        num_parameters=1234,
    )
    tokenizer = TokenizerEntry(
        file="tokenizer.json",
        chat_template="chat_template.jinja",
        bos_token_id=1,
        eos_token_ids=(2, 3),
        add_bos=False,
        special_tokens={"eos_token": "<|end|>"},
    )
    return Manifest(
        model=model,
        roles={"target": (variant,)},
        tokenizer=tokenizer,
        files=entries(files),
        source=SourceEntry("gguf", "tiny", "0" * 64, licence="Apache-2.0"),
        generation={"temperature": 0.7, "top_k": 40, "stop_strings": ["a", None, True]},
        written_by={"quickdraft": "0.1.0", "export": EXPORT_REVISION},
    )


def tiny_blocks_manifest() -> Manifest:
    """The same with a variant whose cache is one buffer."""
    manifest = tiny_manifest()
    step = StepNames(
        tokens="tokens",
        positions="positions",
        output_rows="output_rows",
        logits="logits",
        ancestors="ancestors",
        past="past",
        full_logits="full_logits",
        top_values="top_values",
        top_ids="top_ids",
        log_sum="log_sum",
        top=8,
    )
    variant = replace(
        manifest.roles["target"][0],
        flavour="hotpath",
        step=step,
        cache=BlocksLayout("blocks", 16, "cache", "present_cache"),
        guarantee="bit_identical",
    )
    return replace(manifest, roles={"target": (variant,)})


def with_parts(base: Manifest) -> Manifest:
    """A manifest that also has a part of every other role that decoders have."""
    target = base.roles["target"][0]
    spec = replace(base.model, num_layers=1, num_heads=(4,), num_kv_heads=(2,), windows=(None,))
    head = replace(
        target,
        name="head",
        spec=replace(spec, vocab_size=5),
        step=replace(target.step, features="features", top=min(target.step.top, 5)),
        features=32,
        token_map="head.tokens",
        details={"kind": "head", "depth": 3},
    )
    auxiliary = replace(target, name="0.25-hidden", spec=spec)
    blocks = target.cache.kind == "blocks"
    step = replace(
        target.step,
        output_rows=None,
        logits=None,
        full_logits=None,
        top_values=None,
        top_ids=None,
        log_sum=None,
        top=0,
        target_past="target_past" if blocks else None,
        target_rows=None if blocks else "target_rows",
    )
    predictor = replace(auxiliary, step=step, target_cache=target.cache)
    roles: dict[Role, tuple[Variant, ...]] = {
        **base.roles,
        "drafter": (head,),
        "auxiliary": (auxiliary,),
        "predictor": (predictor,),
    }
    files = {**base.files, "head.tokens": FileEntry(20, "1" * 64)}
    return replace(base, roles=roles, files=files)


def write_tiny_bundle(folder: Path, files: Mapping[str, bytes] = TINY_FILES) -> Manifest:
    """Lay a sound bundle out by hand, so that tests of reading do not depend on the writer."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    manifest = tiny_manifest(files)
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def with_extra_file(manifest: Manifest, name: str) -> Manifest:
    """The same manifest, which also lists a file called `name`."""
    return replace(manifest, files={**manifest.files, name: FileEntry(0, "0" * 64)})
