"""Names of the hub are handed to huggingface_hub, and its failures become ours. No network."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from quickdraft.errors import DownloadError, ModelNotFound, QuickdraftError, StorageError
from quickdraft.models import hub
from quickdraft.models.admission import Provenance
from quickdraft.models.hub import HubName, parse_hub_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("owner/name", HubName("owner/name", None, None)),
        ("owner/name@main", HubName("owner/name", "main", None)),
        ("owner/name@refs/pr/1", HubName("owner/name", "refs/pr/1", None)),
        ("owner/n-1.5B:q4.gguf", HubName("owner/n-1.5B", None, "q4.gguf")),
        ("owner/name@v1:sub/q4.gguf", HubName("owner/name", "v1", "sub/q4.gguf")),
        ("name", None),
        ("owner/name/more", None),
        ("owner/name:file.bin", None),
        ("owner/name:../x.gguf", None),
        ("owner/name@../x", None),
        ("../name", None),
        ("/name", None),
        ("owner/", None),
        ("owner/name\n", None),
        ("öwner/name", None),
        ("", None),
    ],
)
def test_names_are_taken_apart(name: str, parsed: HubName | None) -> None:
    assert parse_hub_name(name) == parsed


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for the download: a snapshot with a config and one weight file."""
    calls: list[dict[str, Any]] = []

    def download(repo: str, **options: Any) -> str:
        calls.append({"repo": repo, **options})
        for name in options["tqdm_class"](["config.json", "q4.gguf"], total=2):
            (tmp_path / name).write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def test_a_folder_is_asked_for_by_patterns(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = hub.fetch(HubName("o/n", "v1", None), progress=lambda *report: seen.append(report))
    assert path == tmp_path
    assert (asked[0]["repo"], asked[0]["revision"]) == ("o/n", "v1")
    assert {"*.safetensors", "*.spm"} <= set(asked[0]["allow_patterns"])
    assert not any(pattern.endswith(".bin") for pattern in asked[0]["allow_patterns"])
    assert seen == [("fetch", 1, 2), ("fetch", 2, 2)]


def test_a_gguf_file_is_asked_for_alone(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    assert hub.fetch(HubName("o/n", None, "q4.gguf"), offline=True) == tmp_path / "q4.gguf"
    assert asked[0]["allow_patterns"] == ["q4.gguf", "README.md"]
    assert asked[0]["local_files_only"] is True


def test_bars_are_restored(asked: list[dict[str, Any]]) -> None:
    before = huggingface_hub.utils.are_progress_bars_disabled()
    hub.fetch(HubName("o/n", None, None))
    assert huggingface_hub.utils.are_progress_bars_disabled() == before


def test_a_repository_without_a_config_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **o: str(tmp_path))
    with pytest.raises(ModelNotFound, match=r"has no config\.json; .* o/n:FILE\.gguf"):
        hub.fetch(HubName("o/n", None, None))
    with pytest.raises(ModelNotFound, match=r"has no sub/q\.gguf$"):
        hub.fetch(HubName("o/n", None, "sub/q.gguf"))


def _http(kind: type[Exception]) -> Exception:
    # The library changed its HTTP client between versions; of a response it reads only these.
    response = SimpleNamespace(status_code=404, headers={}, request=None)
    return kind("404 not found\nmore", response=response)  # type: ignore[call-arg]


FAILURES: dict[str, tuple[Exception, type[QuickdraftError], str]] = {
    "missing": (_http(errors.RepositoryNotFoundError), ModelNotFound, "hub has no model 'o/n'"),
    "gated": (_http(errors.GatedRepoError), DownloadError, "is gated: accept its terms"),
    "revision": (_http(errors.RevisionNotFoundError), ModelNotFound, "no revision 'v9'"),
    "server": (_http(errors.HfHubHTTPError), DownloadError, "could not be fetched: 404 not found"),
    "offline": (errors.OfflineModeIsEnabled("off"), DownloadError, "hub cannot be reached: off"),
    "uncached": (errors.LocalEntryNotFoundError("no"), DownloadError, "not in the cache"),
    "bad-name": (errors.HFValidationError("bad"), ModelNotFound, "cannot be a name on the hub"),
    "transport": (
        errors.HfHubHTTPError.__bases__[0]("no route"),
        DownloadError,
        "could not be fetched: no route",
    ),
    "connection": (ConnectionError("down"), DownloadError, "could not be fetched: down"),
    "disk": (
        OSError(errno.ENOSPC, "No space left on device", "blob"),
        StorageError,
        "could not write blob: No space left on device",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures_are_translated(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    failure, kind, expected = FAILURES[case]

    def fail(*arguments: Any, **options: Any) -> str:
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(kind) as caught:
        hub.fetch(HubName("o/n", "v9", None))
    assert type(caught.value) is kind
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_snapshot_of_the_real_cache_is_found_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--o--n"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(COMMIT)
    (repo / "snapshots" / COMMIT).mkdir(parents=True)
    (repo / "snapshots" / COMMIT / "config.json").write_text("{}")
    assert hub.fetch(HubName("o/n", None, None), offline=True) == repo / "snapshots" / COMMIT
    with pytest.raises(DownloadError, match=r"not in the cache .* was not asked \(offline\)$"):
        hub.fetch(HubName("o/other", None, None), offline=True)


@pytest.mark.parametrize("file", [None, "q4.gguf", "sub/q4.gguf"])
def test_provenance_names_the_repository_and_the_commit(tmp_path: Path, file: str | None) -> None:
    snapshot = tmp_path / COMMIT
    snapshot.mkdir()
    (snapshot / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# A model\n")
    checkpoint = snapshot / file if file else snapshot
    found = hub.provenance(HubName("o/n", "main", file), checkpoint)
    assert found == Provenance(f"o/n:{file}" if file else "o/n", COMMIT, "mit")


def test_a_folder_that_is_no_snapshot_has_no_revision(tmp_path: Path) -> None:
    assert hub.provenance(HubName("o/n", "v1", None), tmp_path) == Provenance("o/n", None, None)
