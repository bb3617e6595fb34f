"""Predictors of the KV cache on tiny models of every family: built, fitted, interrupted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny.decoders import TinyDecoder, tiny_decoder  # noqa: E402
from tiny.family_configs import CONFIGS  # noqa: E402

from quickdraft.drafters.train.own_maps import own_maps  # noqa: E402
from quickdraft.drafters.train.prediction_quality import Continuations, measure  # noqa: E402
from quickdraft.drafters.train.predictor import (  # noqa: E402
    Fitted,
    Plan,
    fit_predictor,
    pruned_auxiliary,
)
from quickdraft.drafters.train.predictor_distil import (  # noqa: E402
    Losses,
    PredictorTrainee,
    prepare_distillation,
    trained_tensors,
)
from quickdraft.drafters.train.text import Rows  # noqa: E402
from quickdraft.errors import Cancelled, OptionError  # noqa: E402
from quickdraft.export.checkpoints.base import WeightMap  # noqa: E402
from quickdraft.export.emitters.torch import TorchModel  # noqa: E402
from quickdraft.export.layer_maps import Features, Sources, pruned_sources  # noqa: E402
from quickdraft.export.prediction import (  # noqa: E402
    PredictionSettings,
    Pruned,
    attach,
    read_prediction,
)
from quickdraft.export.predictor_graph import Prediction, build_predictor  # noqa: E402
from quickdraft.export.trained import Target, Trained  # noqa: E402
from quickdraft.export.weights import dense_weight  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


@functools.cache
def target_of(name: str) -> Target:
    torch.set_num_threads(1)
    tiny: TinyDecoder = tiny_decoder(name)
    return Target(tiny.spec, tiny.weights)


def random_rows(count: int = 12, held: int = 4, length: int = 24, seed: int = 0) -> Rows:
    tokens = np.random.default_rng(seed).integers(4, 300, (count, length)).astype(np.int32)
    return Rows(tokens[held:], tokens[:held], f"random-{seed}")


def settings_of(
    keep: tuple[int, ...], features: Features, sources: Sources, first: int = 0
) -> PredictionSettings:
    return PredictionSettings("tiny", Pruned("pruned", keep), features, sources, first, "test")


def prediction_of(
    target: Target, settings: PredictionSettings, tensors: dict[str, Any]
) -> Prediction:
    weights = {name: dense_weight(name, np.asarray(v)) for name, v in tensors.items()}
    return read_prediction(settings, WeightMap(weights), target)


def rows_of(target: Target, prediction: Prediction, tokens: np.ndarray) -> tuple[Any, Any]:
    """What the predictor writes, and what the target would."""
    spec, layers = target.spec, target.weights.layers
    model = TorchModel(tiny_build(target))
    predictor = TorchModel(lambda ops: build_predictor(ops, prediction, spec, layers), share=model)
    ids = torch.tensor(tokens, dtype=torch.int64)
    with torch.no_grad():
        return predictor(ids).staged, model(ids, keys=True).keys


def tiny_build(target: Target) -> Callable[[Any], None]:
    from quickdraft.export.architectures.decoder import build_decoder

    return lambda ops: build_decoder(ops, target.spec, target.weights)


def identity_maps(target: Target, sources: Sources) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for index, (source,) in enumerate(sources):
        width = target.spec.layers[index].num_kv_heads * target.spec.head_dim
        for name in ("key", "value"):
            tensors[f"map.{index}.{source}.{name}"] = np.eye(width, dtype=np.float32)
            tensors[f"map.{index}.{name}_bias"] = np.zeros(width, np.float32)
    return tensors


@pytest.mark.parametrize("features", ["hidden", "kv"])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_target_as_its_own_auxiliary_predicts_itself(name: str, features: Features) -> None:
    target = target_of(name)
    count = len(target.spec.layers)
    keep = tuple(range(count))
    sources = pruned_sources(features, count, keep, count - 1)
    maps = own_maps if features == "hidden" else identity_maps
    prediction = prediction_of(target, settings_of(keep, features, sources), maps(target, sources))
    assert prediction.computed == count - 1
    staged, exact = rows_of(target, prediction, random_rows().training)
    assert set(staged) == set(range(count))
    for layer, rows in exact.items():
        torch.testing.assert_close(staged[layer].key, rows.key, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(staged[layer].value, rows.value, atol=1e-4, rtol=1e-4)


def plan_of(name: str, keep: tuple[int, ...], features: Features = "hidden") -> Plan:
    target = target_of(name)
    count = len(target.spec.layers)
    sources = pruned_sources(features, count, keep, len(keep) - 1)
    return Plan(target, *pruned_auxiliary(target, keep), keep, features, sources, 1)


def fit(plan: Plan, rows: Rows, folder: Path, **options: Any) -> Fitted:
    return fit_predictor(plan, rows, folder, identity={"text": rows.sha256}, **options)


def measured(plan: Plan, fitted: dict[str, Any] | Any, rows: Rows) -> Continuations:
    assert plan.keep is not None
    settings = settings_of(plan.keep, plan.features, plan.sources, plan.exact_first)
    prediction = prediction_of(plan.target, settings, fitted)
    return measure(plan.target, prediction, rows.held_out, prefix=12, exact_first=1)


def error_of(plan: Plan, tensors: Any, rows: Rows) -> float:
    """Of held-out keys and values, relative, over all layers."""
    assert plan.keep is not None
    settings = settings_of(plan.keep, plan.features, plan.sources, plan.exact_first)
    prediction = prediction_of(plan.target, settings, tensors)
    staged, exact = rows_of(plan.target, prediction, rows.held_out)
    wrong = [
        float(((getattr(staged[i], kind) - getattr(exact[i], kind)) ** 2).sum())
        / float((getattr(exact[i], kind) ** 2).sum())
        for i in exact
        for kind in ("key", "value")
    ]
    return float(np.mean(wrong))


@pytest.mark.parametrize("features", ["hidden", "kv"])
@pytest.mark.parametrize(
    "name", ["llama", "qwen3", "gemma2", "gemma3", "olmo2", "gpt2", "openelm", "stablelm"]
)
def test_a_fit_is_nearer_than_leaving_layers_out(
    name: str, features: Features, tmp_path: Path
) -> None:
    plan = plan_of(name, (0, 2), features)
    rows = random_rows(160, 16)
    fitted = fit(plan, rows, tmp_path)
    if features == "hidden":
        other = own_maps(plan.target, plan.sources)
    else:
        other = {n: 0 * v for n, v in fitted.tensors.items() if n.startswith("map")}
    assert 0 < error_of(plan, fitted.tensors, rows) < error_of(plan, other, rows)
    # Layers whose stream is exact are predicted exactly.
    assert max(fitted.report["maps"][f"0.{kind}"] for kind in ("key", "value")) < 1e-3


def test_continuations_are_worse_the_less_is_exact(tmp_path: Path) -> None:
    plan, rows = plan_of("llama", (0, 2)), random_rows(160, 16)
    found = measured(plan, fit(plan, rows, tmp_path).tensors, rows)
    naive = measured(plan, own_maps(plan.target, plan.sources), rows)
    assert 0 < found.divergence < naive.divergence
    assert found.agreement > 0.5
    whole = plan_of("llama", (0, 1, 2))
    itself = measured(whole, own_maps(whole.target, whole.sources), rows)
    assert itself.predicted == pytest.approx(itself.exact, abs=1e-4)
    assert itself.auxiliary == pytest.approx(itself.exact, abs=1e-4)
    assert itself.agreement == 1.0
    assert (found.exact, found.without) == (itself.exact, itself.without)


def test_first_layers_need_no_bridge_and_are_exact(tmp_path: Path) -> None:
    plan = plan_of("gemma3", (0, 1, 2))
    fitted = fit(plan, random_rows(60, 8), tmp_path)
    assert {name.split(".")[1] for name in fitted.tensors if name.startswith("bridge")} == {"2"}
    errors = fitted.report["maps"]
    for layer in range(3):
        assert max(errors[f"{layer}.key"], errors[f"{layer}.value"]) < 1e-3
    assert errors["3.value"] > 1e-3


def test_an_interrupted_fit_ends_as_another(tmp_path: Path) -> None:
    plan, rows = plan_of("llama", (0, 2)), random_rows(60, 8)
    whole = fit(plan, rows, tmp_path / "whole")
    for attempt in range(1, 200):
        asked = iter([False] * attempt)
        try:
            parts = fit(plan, rows, tmp_path / "parts", stop=lambda it=asked: next(it, True))
            break
        except Cancelled:
            continue
    else:
        pytest.fail("the fit never ends")
    assert set(parts.tensors) == set(whole.tensors)
    for name, values in whole.tensors.items():
        np.testing.assert_array_equal(parts.tensors[name], values)
    assert parts.report == whole.report


def test_another_fit_does_not_go_on_from_here(tmp_path: Path) -> None:
    plan = plan_of("llama", (0, 2))
    with pytest.raises(Cancelled):
        fit(plan, random_rows(), tmp_path, stop=lambda: True)
    with pytest.raises(OptionError, match="unfinished fit"):
        fit(plan, random_rows(seed=1), tmp_path)


def test_parts_of_a_file(tmp_path: Path) -> None:
    plan, rows = plan_of("qwen3", (0, 2)), random_rows(60, 8)
    fitted = fit(plan, rows, tmp_path)
    assert plan.keep is not None
    settings = settings_of(plan.keep, "hidden", plan.sources, 4)
    from quickdraft import strict_json

    weights = WeightMap({n: dense_weight(n, np.asarray(v)) for n, v in fitted.tensors.items()})
    trained = Trained("predictor", "x", strict_json.encode(settings), weights, {"seconds": 3})
    auxiliary, predictor = attach(trained, plan.target)
    assert (auxiliary.role, auxiliary.name) == ("auxiliary", "auxiliary-tiny")
    assert auxiliary.spec.num_layers == 2
    assert predictor.spec.num_layers == 1
    assert predictor.target == plan.target.spec.model_spec()
    assert predictor.details["auxiliary"] == "auxiliary-tiny"
    assert predictor.details["exact_first"] == 4


@pytest.mark.parametrize("train_layers", [False, True])
def test_training_by_gradient(train_layers: bool, tmp_path: Path) -> None:
    from quickdraft.drafters.train.loop import LoopOptions, train

    plan, rows = plan_of("qwen3", (0, 2)), random_rows(320, 16)
    assert plan.keep is not None
    settings = settings_of(plan.keep, "hidden", plan.sources, 1)
    start = own_maps(plan.target, plan.sources)

    def run(file: Path | None, stop: Callable[[], bool] = lambda: False) -> Any:
        module = prepare_distillation(
            plan.target,
            settings,
            start,
            losses=Losses(answer=0, auxiliary=0.1, cache=0.1, divergence=10),
            train_layers=train_layers,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        trainee = PredictorTrainee(module, rows, 4, seed=1)
        options = LoopOptions(steps=30, rate=3e-3, device="cpu", evaluations=2)
        return module, train(trainee, options, file=file, stop=stop)

    module, outcome = run(None)
    before, after = outcome.history.held_out[0].figures, outcome.history.held_out[-1].figures
    assert after["divergence"] < before["divergence"]
    assert (after["auxiliary"] < before["auxiliary"]) == train_layers
    tensors = trained_tensors(module, settings)
    assert set(start) <= set(tensors)
    assert ("auxiliary.1.query.weight" in tensors) == train_layers
    # What was trained is what a file of it computes.
    found = measured(plan, tensors, rows)
    assert found.divergence == pytest.approx(after["divergence"], rel=0.05)

    asked = iter([False] * 11)
    run(tmp_path / "state", lambda: next(asked, True))
    again, _ = run(tmp_path / "state")
    for name, values in trained_tensors(again, settings).items():
        np.testing.assert_array_equal(values, tensors[name])
