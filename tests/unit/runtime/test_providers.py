"""Execution providers of ONNX Runtime: found by name, told options, and held to what they take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny.models import write_tiny_model

import quickdraft
from quickdraft.errors import BackendError, DeviceError, OptionError
from quickdraft.runtime.backends import ort_session, providers

PROMPT = [1, 5, 9, 5, 9, 5]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("providers") / "tiny"
    write_tiny_model(folder)
    return folder


@dataclass
class FakeOrt:
    """An onnxruntime with other providers. entries: of get_ep_devices, as (provider, hardware)."""

    built_in: tuple[str, ...] = ("CPUExecutionProvider",)
    entries: tuple[tuple[str, str], ...] = ()
    __version__: str = "9.9"

    def get_available_providers(self) -> list[str]:
        return list(self.built_in)

    def get_ep_devices(self) -> list[Any]:
        def entry(name: str, hardware: str) -> Any:
            kind = SimpleNamespace(name=hardware)
            return SimpleNamespace(ep_name=name, device=SimpleNamespace(type=kind))

        return [entry(*pair) for pair in self.entries]


class Options:
    def __init__(self) -> None:
        self.added: list[str] = []
        self.entries: dict[str, str] = {}

    def add_provider_for_devices(self, entries: list[Any], options: dict[str, str]) -> None:
        said = "".join(f" {key}={value}" for key, value in options.items())
        self.added += [f"{entry.ep_name} {entry.device.type.name}{said}" for entry in entries]

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key.removeprefix("session.")] = value


OPENVINO = "OpenVINOExecutionProvider"


@pytest.mark.parametrize(
    ("device", "named", "added"),
    [
        ("CPU", ["CPUExecutionProvider"], []),
        ("CPU,arena=1", [("CPUExecutionProvider", {"arena": "1"})], []),
        ("DirectML", ["DmlExecutionProvider"], []),
        ("DirectML,device_id=1,fallback=yes", [("DmlExecutionProvider", {"device_id": "1"})], []),
        ("OpenVINO", None, [f"{OPENVINO} NPU"]),
        ("OpenVINO.GPU", None, [f"{OPENVINO} GPU"]),
        ("OpenVINO.GPU,cache_dir=a=b", None, [f"{OPENVINO} GPU cache_dir=a=b"]),
    ],
)
def test_providers_by_name(
    device: str, named: list[Any] | None, added: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tuple((OPENVINO, hardware) for hardware in ("CPU", "NPU", "GPU"))
    fake = FakeOrt(("DmlExecutionProvider", "CPUExecutionProvider"), found)
    monkeypatch.setattr(ort_session, "ort", fake)
    options = Options()
    assert providers.use(options, device) == named
    assert options.added == added


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("QNN", "9.9 has no QNNExecutionProvider here.*pip install onnxruntime-qnn"),
        ("DirectML", "pip install onnxruntime-directml"),
        ("OpenVINO.NPU", "finds no NPU here; it finds: CPU"),
        ("CUDA", r"no device 'CUDA'; write a provider \(CPU, CoreML"),
        ("OpenVINO.TPU", "no device"),
        ("CPU.", "no device"),
    ],
)
def test_missing_providers(device: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_session, "ort", FakeOrt(entries=((OPENVINO, "CPU"),)))
    monkeypatch.setattr(providers, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=message):
        providers.use(Options(), device)


@pytest.mark.parametrize(
    "device",
    ["QNN,", "QNN,x", "QNN,=1", "QNN,a=1,a=2", "QNN,fallback=maybe", "CPU,fallback=no"],
)
def test_options_of_providers_are_checked(device: str) -> None:
    with pytest.raises(OptionError, match=r"device is '.*fallback"):
        providers.parse_device(device)


class Session:
    """Nodes by provider, as onnxruntime tells them."""

    def __init__(self, **nodes: str) -> None:
        self.nodes = nodes

    def get_provider_graph_assignment_info(self) -> list[Any]:
        def part(name: str, ops: str) -> Any:
            nodes = [SimpleNamespace(op_type=op) for op in ops.split()]
            return SimpleNamespace(ep_name=name, get_nodes=lambda: nodes)

        return [part(f"{name}ExecutionProvider", ops) for name, ops in self.nodes.items()]


def test_what_a_provider_leaves_to_the_processor_is_said() -> None:
    told = providers.fallen_back
    assert told([Session(QNN="Add Mul"), Session(QNN="Add")], "QNN") is None
    assert told([Session(CPU="Add Mul")], "CPU") is None
    mixed = Session(QNN="MatMul Add Add", CPU="Gather Shape Gather A B C")
    expected = "QNN runs 4 of 10 nodes, and the processor runs the others (2 Gather, 1 Shape, "
    assert expected in str(told([mixed, Session(QNN="Add")], "QNN"))
    with pytest.raises(DeviceError, match="QNNExecutionProvider takes none of the 2 nodes"):
        told([mixed, Session(CPU="Add Mul")], "QNN")


@pytest.mark.parametrize(("device", "forbidden"), [("", True), (",fallback=yes", False)])
def test_an_onnxruntime_that_does_not_count_may_not_fall_back(
    device: str, forbidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_session, "ort", FakeOrt(("DmlExecutionProvider",)))
    options = Options()
    providers.use(options, f"DirectML{device}")
    assert ("disable_cpu_ep_fallback" in options.entries) == forbidden
    told = providers.fallen_back([], f"DirectML{device}")
    assert (told is None) if forbidden else ("does not tell" in str(told))


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider of this onnxruntime that takes no node of ours."""
    azure = providers.Provider("AzureExecutionProvider", "")
    if azure.name not in ort_session.require().get_available_providers():
        pytest.skip("this onnxruntime has no such provider")
    monkeypatch.setitem(providers.PROVIDERS, "DirectML", azure)


@pytest.mark.usefixtures("idle")
def test_a_provider_that_takes_no_node_is_refused(bundle: Path) -> None:
    with pytest.raises(DeviceError, match=r"takes none of the \d+ nodes"):
        quickdraft.load(bundle, backend="onnxruntime:DirectML", drafter="none")
    with pytest.raises(BackendError, match="fallback to CPU EP has been explicitly disabled"):
        quickdraft.load(bundle, backend="onnxruntime:DirectML,fallback=no", drafter="none")


@pytest.mark.usefixtures("idle")
def test_what_falls_back_stands_in_the_result(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Session(Azure="MatMul", CPU="Gather").get_provider_graph_assignment_info()
    session = ort_session.require().InferenceSession
    monkeypatch.setattr(session, "get_provider_graph_assignment_info", lambda self: ours)
    with quickdraft.load(bundle, backend="onnxruntime:DirectML", drafter="none") as model:
        result = model.generate(PROMPT, max_new_tokens=2)
    assert "DirectML runs 1 of 2 nodes" in str(result.to_dict()["degraded"])


def test_a_provider_is_refused_where_the_model_is_opened(bundle: Path) -> None:
    with pytest.raises(DeviceError, match="CoreMLExecutionProvider"):
        quickdraft.load(bundle, backend="onnxruntime:CoreML", drafter="none")
    with quickdraft.load(bundle, backend="onnxruntime:CPU", drafter="none") as model:
        assert model.backend.guarantee in ("bit_identical", "same_distribution")
