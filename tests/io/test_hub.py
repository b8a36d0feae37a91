"""Without a hub in reach its cache is asked, at once; with one, or a proxy, nothing changes."""

import shutil
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

import geffect
from geffect.io import hub
from geffect.io.hub import is_reachable, offline_if_unreachable
from tests.conftest import Command


@pytest.fixture
def port() -> int:
    """One that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture
def unreachable(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No hub, an empty cache of it, which is returned, and no proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    assert not constants.HF_HUB_OFFLINE


def test_a_host_that_listens_is_reachable_and_a_proxy_is_trusted(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert is_reachable(f"http://127.0.0.1:{server.getsockname()[1]}")
    assert not is_reachable(f"http://127.0.0.1:{port}")
    assert not is_reachable("https://no.such.host.invalid")
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": "http://proxy:3128"})
    assert is_reachable("https://no.such.host.invalid")


@pytest.mark.usefixtures("unreachable")
def test_only_what_is_not_here_is_asked_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def inside(name: str) -> bool:
        with offline_if_unreachable(name):
            return bool(constants.HF_HUB_OFFLINE)

    assert (inside("org/model"), inside(str(tmp_path))) == (True, False)
    monkeypatch.setattr(hub, "is_reachable", lambda address: True)
    assert not inside("org/model")


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize("flags", [["--model", "org/model"], ["--model", "model"], ["--tokenizer", "org/model"]])
def test_a_model_out_of_reach_is_refused_at_once_in_one_line(flags: list[str], start: Path, invoke: Command) -> None:
    """Without a second try: half a minute each."""
    given = ["--model", start] if flags[0] == "--tokenizer" else []
    ended = invoke("preview", "--data", "builtin:authors/forget[:1]", *given, *flags)
    assert ended.code == 2
    assert ended.err.count("\n") == 1 and "Retrying" not in ended.err, ended.err
    assert "couldn't connect" in ended.err and "Check the directory or hub id" in ended.err


def test_a_cached_model_is_loaded_without_the_hub(unreachable: Path, start: Path) -> None:
    place = unreachable / "models--org--model"
    shutil.copytree(start, place / "snapshots" / "0123")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0123", encoding="utf-8")
    loaded, own = (geffect.load_model(name, device="cpu") for name in ("org/model", str(start)))
    assert (loaded.source, loaded.sha256) == ("org/model", None)
    assert all(a.equal(b) for a, b in zip(loaded.model.parameters(), own.model.parameters(), strict=True))
    assert loaded.tokenizer.get_vocab() == own.tokenizer.get_vocab()
