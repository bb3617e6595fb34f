"""The torch module of every family: the numbers of the NumPy reference, and true gradients."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quickdraft.drafters.tree import Tree
from quickdraft.export.architectures.base import find_family
from quickdraft.export.architectures.decoder import (
    DecoderSpec,
    decoder_keys,
    decoder_layer,
    decoder_norm,
    layer_attention,
)
from quickdraft.export.checkpoints.gguf import read_gguf
from quickdraft.export.weights import dense_weight

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny.decoders import TinyDecoder, tiny_decoder  # noqa: E402
from tiny.families import CONFIGS  # noqa: E402
from tiny.gguf_models import tiny_llama  # noqa: E402

from quickdraft.export.emitters.torch import Past, TorchModel  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

TOLERANCE = 1e-4
WINDOWED = ["mistral-window", "gemma2", "qwen2-window-tied-yarn"]


@functools.cache
def reference(name: str) -> Any:
    torch.set_num_threads(1)
    return tiny_decoder(name).reference()


@functools.cache
def model_of(name: str) -> TorchModel:
    torch.set_num_threads(1)
    return TorchModel(tiny_decoder(name).build)


def random_tokens(seed: int, *shape: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(4, 200, shape)


def random_tree(seed: int, size: int = 12) -> Tree:
    random = np.random.default_rng(seed)
    parent = np.array([random.integers(max(-1, i - 6), i) if i else -1 for i in range(size)])
    return Tree(random.integers(4, 200, size), parent.astype(np.int64))


def assert_near(ours: Any, theirs: Any) -> None:
    ours, theirs = (np.asarray(getattr(x, "detach", lambda x=x: x)()) for x in (ours, theirs))
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.02, "everything is the same; the test is blind"
    assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.mark.parametrize("name", CONFIGS)
def test_prefill(name: str) -> None:
    tokens = random_tokens(0, 2, 24)
    layers = range(len(tiny_decoder(name).spec.layers) + 1)
    ours = model_of(name)(torch.from_numpy(tokens), hidden_states=layers)
    for row in range(2):
        backend = reference(name)
        theirs = backend.step(Tree.chain(tokens[row]), backend.new_cache())
        assert_near(ours.logits[row], theirs.logits)
        for layer in layers:
            assert_near(ours.hidden_states[layer][row], theirs.hidden_states[layer])


@pytest.mark.parametrize("name", CONFIGS)
def test_trees(name: str) -> None:
    """A tree of its own in each sequence: as one mask over all rows, and over the past."""
    prompt, trees = random_tokens(1, 2, 10), [random_tree(seed) for seed in range(2)]
    masks = torch.ones(2, 22, 22, dtype=torch.bool).tril()
    masks[:, 10:, 10:] = torch.from_numpy(np.stack([tree.mask for tree in trees]))
    depths = torch.from_numpy(np.stack([tree.depth for tree in trees])) + 10
    drafted = torch.from_numpy(np.stack([tree.tokens for tree in trees]))
    positions = torch.cat([torch.arange(10).expand(2, -1), depths], 1)
    tokens = torch.from_numpy(prompt)
    model = model_of(name)
    whole = model(torch.cat([tokens, drafted], 1), positions=positions, mask=masks).logits[:, 10:]
    past = model(tokens).present
    step = {"positions": depths, "past": past}
    after = model(drafted, mask=masks[:, 10:, 10:], **step).logits
    wide = model(drafted, mask=masks[:, 10:], **step).logits
    for row, tree in enumerate(trees):
        backend = reference(name)
        cache = backend.new_cache()
        backend.step(Tree.chain(prompt[row]), cache)
        cache.commit(range(10))
        theirs = backend.step(tree, cache).logits
        for ours in (whole, after, wide):
            assert_near(ours[row], theirs)


@pytest.mark.parametrize("name", ["llama", *WINDOWED])
def test_chunks(name: str) -> None:
    tokens = torch.from_numpy(random_tokens(2, 2, 24))
    model = model_of(name)
    first = model(tokens[:, :9])
    second = model(tokens[:, 9:11], past=first.present)
    third = model(tokens[:, 11:], past=first.present.join(second.present))
    chunks = torch.cat([first.logits, second.logits, third.logits], 1)
    assert_near(chunks, model(tokens).logits)


def test_gradients_go_through_the_past() -> None:
    tiny, tokens = tiny_decoder("llama"), torch.from_numpy(random_tokens(13, 1, 9))
    key = tiny.weights.layers[0].key.weight.name

    def gradient(cut: bool) -> Any:
        model = TorchModel(tiny.build, train=lambda name: name == key)
        past = model(tokens[:, :6]).present
        model(tokens[:, 6:], past=past.detach() if cut else past).logits.square().mean().backward()
        return model.find(key).grad

    whole = TorchModel(tiny.build, train=lambda name: name == key)
    whole(tokens).logits[:, 6:].square().mean().backward()
    assert_near(gradient(cut=False), whole.find(key).grad)
    assert float((gradient(cut=True) - whole.find(key).grad).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["llama", *WINDOWED])
def test_documents_side_by_side(name: str) -> None:
    """Positions that start again and a mask between documents: as if each were alone."""
    tokens = torch.from_numpy(random_tokens(3, 1, 20))
    places = torch.cat([torch.arange(12), torch.arange(8)])
    document = (torch.arange(20) >= 12).long()
    mask = torch.ones(20, 20, dtype=torch.bool).tril() & (document[:, None] == document)
    model = model_of(name)
    alone = [model(tokens[:, :12]).logits, model(tokens[:, 12:]).logits]
    assert_near(model(tokens, positions=places, mask=mask).logits, torch.cat(alone, 1))


def test_a_row_always_sees_itself() -> None:
    """As a masked row of padding must, or its values would be no numbers."""
    tokens = torch.from_numpy(random_tokens(4, 1, 6))
    for name in ("llama", "gemma2"):
        nothing = torch.zeros(6, 6, dtype=torch.bool)
        alone = model_of(name)(tokens, mask=nothing, positions=torch.zeros(6, dtype=torch.long))
        first = model_of(name)(tokens[:, :1])
        assert_near(alone.logits[:, 0], first.logits[:, 0])
        assert bool(torch.isfinite(alone.logits).all())


def test_wanted_rows() -> None:
    tokens = torch.from_numpy(random_tokens(5, 2, 8))
    model = model_of("llama")
    every = model(tokens).logits
    assert_near(model(tokens, rows=torch.tensor([7, 2])).logits, every[:, [7, 2]])
    own = model(tokens, rows=torch.tensor([[1, 2], [0, 7]])).logits
    assert_near(own, torch.stack([every[0, [1, 2]], every[1, [0, 7]]]))
    chosen = torch.from_numpy(np.random.default_rng(5).random((2, 8)) < 0.5)
    assert_near(model(tokens, rows=chosen).logits, every[chosen])
    assert model(tokens, rows=torch.tensor([], dtype=torch.long)).logits.shape[:2] == (2, 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_the_published_code(name: str) -> None:
    """Where a weight is one of the checkpoint's; one cut out of such a one at least has some."""
    tiny = tiny_decoder(name)
    model = TorchModel(tiny.build, train=lambda weight: True)
    tokens = torch.from_numpy(random_tokens(6, 1, 12))
    published = tiny.oracle.model
    published.zero_grad()
    made = published(tokens)
    theirs_loss = getattr(made, "logits", made).square().mean()
    theirs_loss.backward()
    model(tokens).logits.square().mean().backward()
    theirs = {weight: each.grad for weight, each in published.named_parameters()}
    compared = 0
    for weight, values in model.trained_weights():
        assert values.grad is not None, weight
        assert bool(torch.isfinite(values.grad).all()), weight
        assert bool((values.grad != 0).any()), weight
        expected = theirs.get(weight.split("+")[0])
        if expected is not None and name.startswith("gpt2") and expected.dim() == 2:
            # GPT-2 stores some matrices inputs first.
            expected = expected.T if ".c_" in weight else expected
        if expected is not None and expected.shape == values.shape:
            scale = max(1.0, float(expected.abs().max()))
            assert float((values.grad - expected).abs().max()) <= 1e-4 * scale, weight
            compared += 1
    assert compared >= 6


def one_layer(tiny: TinyDecoder, index: int) -> Any:
    def build(ops: Any) -> None:
        layer = tiny.weights.layers[index]
        x = decoder_layer(ops, tiny.spec, index, layer, ops.features(), ops.positions())
        ops.hidden_state(x, index + 1)

    return build


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "stablelm-parallel-normed"])
def test_one_layer_alone(name: str) -> None:
    tiny, tokens = tiny_decoder(name), torch.from_numpy(random_tokens(7, 2, 9))
    whole = model_of(name)(tokens, hidden_states=(1, 2))
    layer = TorchModel(one_layer(tiny, 1), features=tiny.spec.hidden_size, share=model_of(name))
    ours = layer(features=whole.hidden_states[1], hidden_states=[2])
    assert_near(ours.hidden_states[2], whole.hidden_states[2])
    assert ours.logits is None
    alone = TorchModel(one_layer(tiny, 1), features=tiny.spec.hidden_size)
    again = alone(features=whole.hidden_states[1], hidden_states=[2])
    assert_near(again.hidden_states[2], whole.hidden_states[2])


def copying_predictor(spec: DecoderSpec, tiny: TinyDecoder) -> TorchModel:
    """Stages what comes as features: projected keys and values, one layer after another."""
    widths = [2 * layer.num_kv_heads * spec.head_dim for layer in spec.layers]
    total, starts = sum(widths), np.cumsum([0, *widths])
    identity = np.eye(total, dtype=np.float32)

    def build(ops: Any) -> None:
        for index, layer in enumerate(tiny.weights.layers):
            rows = np.split(identity[starts[index] : starts[index + 1]], 2)
            k, v = (
                ops.linear(ops.features(), dense_weight(f"{part}.{index}", each))
                for part, each in zip("kv", rows, strict=True)
            )
            k = decoder_keys(ops, spec, index, layer, k, ops.positions())
            ops.stage(k, v, layer_attention(spec, index))

    return TorchModel(build, features=total)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "olmo2", "stablelm-parallel-normed"])
def test_a_cache_that_was_predicted(name: str) -> None:
    """From keys as projected, the target's own functions make the cache that it makes itself."""
    tiny, tokens = tiny_decoder(name), torch.from_numpy(random_tokens(8, 2, 11))
    spec, target = tiny.spec, model_of(name)
    keys = target(tokens[:, :10], keys=True).keys
    vectors = torch.cat([part for k in keys.values() for part in (k.projected, k.value)], -1)
    staged = copying_predictor(spec, tiny)(features=vectors).staged
    for index, each in staged.items():
        for part in ("projected", "unrotated", "key", "value"):
            assert_near(getattr(each, part), getattr(keys[index], part))
    rotated = any(layer.rope is not None for layer in spec.layers)
    assert (keys[0].unrotated is not keys[0].key) == rotated
    assert (keys[0].projected is not keys[0].unrotated) == (spec.query_norm is not None)
    cache = Past(torch.arange(10)[None], {i: (k.key, k.value) for i, k in staged.items()})
    assert_near(target(tokens[:, 10:], past=cache).logits, target(tokens).logits[:, 10:])


def test_frozen_weights() -> None:
    """Gradients, parameters and checkpoints are those of the trained weights alone."""
    tiny, tokens = tiny_decoder("llama"), torch.from_numpy(random_tokens(9, 1, 8))
    model = TorchModel(tiny.build, train=lambda name: ".layers.1." in name)
    names = {name for name, _ in model.trained_weights()}
    assert names
    assert all(".layers.1." in name for name in names)
    assert len(list(model.parameters())) == len(model.state_dict()) == len(names)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    model(tokens).logits.square().mean().backward()
    optimiser.step()
    changed = model(tokens).logits
    assert float((changed - model_of("llama")(tokens).logits).abs().max()) > 1e-3
    other = TorchModel(tiny.build, train=lambda name: ".layers.1." in name)
    other.load_state_dict(model.state_dict())
    assert_near(other(tokens).logits, changed)
    arrays = model.trained_arrays()
    assert all(np.array_equal(arrays[n], p.detach().numpy()) for n, p in model.trained_weights())
    reader = tiny_decoder("llama").weights.layers[1].query.weight
    assert not np.array_equal(arrays[reader.name], reader.dense()), "the source was changed too"


def test_shared_weights() -> None:
    """A head takes the target's embedding; its gradient goes to what it trains itself."""
    tiny, tokens = tiny_decoder("llama"), torch.from_numpy(random_tokens(10, 1, 8))
    target = model_of("llama")
    width = tiny.spec.hidden_size
    own = dense_weight("own", np.eye(width, dtype=np.float32))

    def head(ops: Any) -> None:
        both = ops.add(ops.embed(ops.tokens(), tiny.weights.embedding), ops.features())
        ops.hidden_state(decoder_norm(ops, tiny.spec, ops.linear(both, own), None), 1)
        ops.logits(ops.linear(ops.take_rows(both, ops.output_rows()), tiny.weights.head.weight))

    model = TorchModel(head, features=width, train=lambda name: name == "own", share=target)
    name = tiny.weights.embedding.name
    assert model.find(name) is target.find(name)
    out = model(tokens, features=torch.ones(1, 8, width), hidden_states=[1])
    out.hidden_states[1].sum().backward()
    assert [weight for weight, each in model.trained_weights() if each.grad is not None] == ["own"]
    assert model.double().find("own").dtype == torch.float64
    assert target.find(name).dtype == torch.float32
    with pytest.raises(ValueError, match="is shared"):
        TorchModel(head, features=width, train=lambda name: True, share=target)


def test_quantised_weights(tmp_path: Path) -> None:
    """Blocks become the numbers that they stand for, to the last bit."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_llama().to_bytes())
    checkpoint = read_gguf(path)
    family = find_family(checkpoint.config)
    spec = family.read(checkpoint.config)
    weights = family.collect(spec, checkpoint.weights)
    tiny = TinyDecoder(tmp_path, spec, weights, oracle=None)  # type: ignore[arg-type]
    model = TorchModel(tiny.build)
    kinds = set()
    for name, weight in checkpoint.weights.items():
        kinds.add(weight.stored_as)
        np.testing.assert_array_equal(model.find(name).numpy(), weight.dense())
    assert {"Q4_0", "Q8_0", "F32"} <= kinds
    tokens, backend = random_tokens(11, 16), tiny.reference()
    ours = model(torch.from_numpy(tokens)[None]).logits[0]
    assert_near(ours, backend.step(Tree.chain(tokens), backend.new_cache()).logits)
    half = TorchModel(tiny.build, dtype=torch.bfloat16, train=lambda name: "norm" in name)
    rough = half(torch.from_numpy(tokens)[None]).logits[0]
    assert rough.dtype == torch.bfloat16
    assert all(each.dtype == torch.float32 for each in half.parameters())
    assert float((rough - ours).abs().max()) < 0.1 * float(ours.abs().max())


def test_misuse_is_said() -> None:
    tiny, tokens = tiny_decoder("llama"), torch.from_numpy(random_tokens(12, 1, 5))
    model = model_of("llama")
    with pytest.raises(ValueError, match=r"mask is \(4, 4\) for 5 rows"):
        model(tokens, mask=torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="no hidden state 9"):
        model(tokens, hidden_states=[1, 9])
    with pytest.raises(ValueError, match="needs tokens, features"):
        model()
    with pytest.raises(ValueError, match="reads tokens"):
        model(features=torch.ones(1, 5, 32))
    with pytest.raises(ValueError, match="reads features"):
        TorchModel(one_layer(tiny, 1))
    one, two = (dense_weight("twice", np.ones((n, 32), np.float32)) for n in (32, 16))
    with pytest.raises(ValueError, match=r"two weights are called twice"):
        TorchModel(
            lambda ops: ops.logits(ops.linear(ops.linear(ops.features(), one), two)), features=32
        )
