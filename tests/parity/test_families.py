"""Every family against its published implementation: logits in float32, within 1e-4.

The oracle runs each root-to-node path of a tree as a plain text of its own.
"""

from __future__ import annotations

import functools
import inspect
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from quickdraft.drafters.tree import Tree
from quickdraft.export.architectures.base import Family, find_family
from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.rope import read_rope
from quickdraft.export.checkpoints.hf import read_huggingface
from quickdraft.export.quantize import FORMATS
from quickdraft.registry import ARCHITECTURES, BACKENDS, EMITTERS, lookup
from quickdraft.runtime.backends.base import Backend
from quickdraft.runtime.native import library_path

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny.families import CONFIGS, Oracle, save_tiny  # noqa: E402
from tiny.folders import lasting_folder  # noqa: E402
from tiny.parts import target_request  # noqa: E402
from transformers import CONFIG_MAPPING, LlamaConfig  # noqa: E402
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

TOLERANCE = 1e-4
PROMPT = 24
EMITTER_OF = {"reference": "reference", "onnxruntime": "onnx"}
if library_path() is not None:
    EMITTER_OF["hotpath"] = "hotpath"
EXACT = {"hotpath": {"kv_cache": "f32"}}
"""What makes a backend compute in float32 throughout."""


@dataclass(frozen=True)
class Case:
    """A tiny model, opened, beside the model it must equal."""

    backend: Backend
    oracle: Oracle
    vocabulary: int

    def logits_of(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """What the published implementation says: [n, vocabulary]."""
        result: NDArray[np.float32] = self.oracle.logits(torch.from_numpy(tokens)[None])[0].numpy()
        return result


def open_backend(name: str, folder: Path, hidden_states: tuple[int, ...] = ()) -> Backend:
    """Export the checkpoint folder in float32 and open it with the backend `name`."""
    checkpoint = read_huggingface(folder)
    family = find_family(checkpoint.config)
    spec = family.read(checkpoint.config)
    request = target_request(
        lambda ops: family.build(ops, spec, checkpoint.weights),
        spec.model_spec(),
        folder,
        FORMATS["fp32"],
        hidden_states,
    )
    variant = lookup("format", EMITTERS, EMITTER_OF[name])(request)[0]
    open_with = functools.partial(lookup("backend", BACKENDS, name), **EXACT.get(name, {}))
    backend: Backend = open_with(folder, spec.model_spec(), variant)
    return backend


@functools.cache
def open_case(backend: str, model: str) -> Case:
    torch.set_num_threads(1)
    folder = lasting_folder("tiny-")
    oracle = save_tiny(model, folder)
    opened = open_backend(backend, folder)
    return Case(opened, oracle, opened.spec.vocab_size)


@pytest.fixture(params=[(b, m) for m in CONFIGS for b in EMITTER_OF], ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    return open_case(*request.param)


def prompt(case: Case, seed: int, length: int = PROMPT) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(4, case.vocabulary, length)


def assert_equal(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    assert theirs.std() > 0.05, "the model says the same about everything; the test is blind"
    assert np.abs(ours - theirs).max() <= TOLERANCE


def test_prefill(case: Case) -> None:
    tokens = prompt(case, 0)
    ours = case.backend.step(Tree.chain(tokens), case.backend.new_cache()).logits
    assert_equal(ours, case.logits_of(tokens))


def test_step_by_step(case: Case) -> None:
    tokens, cache = prompt(case, 1), case.backend.new_cache()
    rows = []
    for token in tokens:
        rows.append(case.backend.step(Tree.chain([token]), cache).logits[0].copy())
        cache.commit([0])
    assert_equal(np.array(rows), case.logits_of(tokens))


@pytest.mark.parametrize("chunks", [(1, 7, 3, 13), (11, 5, 8), (2, 21, 1)])
def test_chunks(case: Case, chunks: tuple[int, ...]) -> None:
    tokens, cache = prompt(case, 2), case.backend.new_cache()
    rows = []
    for chunk in np.split(tokens, np.cumsum(chunks)[:-1]):
        rows.append(case.backend.step(Tree.chain(chunk), cache).logits.copy())
        cache.commit(range(len(chunk)))
    assert_equal(np.concatenate(rows), case.logits_of(tokens))


@pytest.mark.parametrize("seed", range(3))
def test_random_trees(case: Case, seed: int) -> None:
    random = np.random.default_rng(100 + seed)
    tokens, cache = prompt(case, seed, 12), case.backend.new_cache()
    case.backend.step(Tree.chain(tokens), cache, rows=np.array([0]))
    cache.commit(range(len(tokens)))
    size = 14
    parent = np.array([random.integers(max(-1, i - 6), i) if i else -1 for i in range(size)])
    tree = Tree(random.integers(4, case.vocabulary, size), parent.astype(np.int64))
    ours = case.backend.step(tree, cache).logits
    theirs = []
    for node in range(size):
        path = np.flatnonzero(tree.mask[node])
        theirs.append(case.logits_of(np.concatenate([tokens, tree.tokens[path]]))[-1])
    assert_equal(ours, np.array(theirs))


@pytest.mark.parametrize("seed", range(2))
def test_accepted_paths(case: Case, seed: int) -> None:
    """After a tree and the commit of one of its paths, decoding goes on as if it were plain."""
    random = np.random.default_rng(200 + seed)
    tokens, cache = prompt(case, seed, 9), case.backend.new_cache()
    case.backend.step(Tree.chain(tokens), cache)
    cache.commit(range(len(tokens)))
    parent = np.array([-1, 0, 0, 1, 2, 2, 4, 4, 6], np.int64)
    tree = Tree(random.integers(4, case.vocabulary, len(parent)), parent)
    case.backend.step(tree, cache)
    path = [0, 2, 4, 6, 8]
    cache.commit(path)
    rest = prompt(case, seed + 50, 5)
    ours = case.backend.step(Tree.chain(rest), cache).logits
    whole = np.concatenate([tokens, tree.tokens[path], rest])
    assert_equal(ours, case.logits_of(whole)[-len(rest) :])


@pytest.mark.parametrize("model", ["llama", "gemma3", "gpt2", "olmo2"])
@pytest.mark.parametrize("backend", EMITTER_OF)
def test_hidden_states(backend: str, model: str) -> None:
    """The residual stream after 0, 1, 2 layers; the published code norms the last one."""
    with tempfile.TemporaryDirectory() as folder:
        oracle = save_tiny(model, Path(folder))
        opened = open_backend(backend, Path(folder), hidden_states=(0, 1, 2))
        tokens = np.random.default_rng(3).integers(4, opened.spec.vocab_size, 10)
        ours = opened.step(Tree.chain(tokens), opened.new_cache()).hidden_states
        theirs = oracle.hidden_states(torch.from_numpy(tokens)[None])
    assert sorted(ours) == [0, 1, 2]
    for layer, values in ours.items():
        assert_equal(values, theirs[layer][0].numpy())


DECODERS = [
    name
    for name in ARCHITECTURES
    if isinstance(lookup("architecture", ARCHITECTURES, name), Family) and name != "openelm"
]


@pytest.mark.parametrize("name", DECODERS)
def test_defaults_are_those_of_the_published_code(name: str) -> None:
    defaults = lookup("architecture", ARCHITECTURES, name).defaults
    published = CONFIG_MAPPING[name]
    arguments = inspect.signature(published.__init__).parameters
    inherited = vars(published())
    said = {
        key: arguments[key].default if key in arguments else inherited[key]
        for key in defaults
        if key in arguments or key in inherited
    }
    assert {key: defaults[key] for key in said} == said
    assert len(said) >= len(defaults) - 3  # the rest are keys of Llama or of later files


SCALINGS: dict[str, dict[str, object]] = {
    "default": {},
    "linear": {"factor": 8.0},
    "llama3": {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32768},
    "longrope": {"factor": 32.0, "short_factor": [1.0 + i / 9 for i in range(32)]},
}


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("theta", [10000.0, 500000.0, 1000000.0])
def test_frequencies_are_rounded_as_in_the_published_code(kind: str, theta: float) -> None:
    """At position 8000 an angle may then be wrong by a thousandth of a radian, no more."""
    scaling = {"rope_type": kind, "long_factor": [2.0] * 32, **SCALINGS[kind]}
    config = LlamaConfig(head_dim=64, rope_theta=theta, max_position_embeddings=131072)
    config.rope_scaling = scaling
    theirs, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    values = {"max_position_embeddings": 131072, "rope_scaling": scaling}
    ours = read_rope(Config(values), 64, theta)
    np.testing.assert_allclose(ours.frequencies, theirs.numpy(), rtol=1.3e-7)
    assert ours.attention_factor == factor


def test_longrope_ends_where_its_frequencies_change() -> None:
    case = open_case("reference", "phi3-longrope-partial")
    assert case.backend.spec.context_length == 64
