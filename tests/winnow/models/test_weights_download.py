from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torchvision
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torchvision.datasets import CIFAR10

from tests.winnow.models.weight_caches import add_to_hub, lay_out_torchvision
from winnow import stall_limit
from winnow.data.sources import _open_cifar10
from winnow.errors import ArtifactError, DataError
from winnow.models.weights_download import download_hub_file, download_torchvision
from winnow.models.weights_lookup import find_weights


def test_weights_come_from_the_caches_in_the_home_folder(
    home: Path, hub: Path, torch_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """winnow gives its processes caches of their own, so the user's are looked up where the libraries keep them."""
    add_to_hub(home / ".cache/huggingface/hub", "timm/resnet18.a1_in1k", timm.create_model("resnet18"))
    assert find_weights("timm:resnet18.a1_in1k", "", tmp_path).file.is_relative_to(home)
    checkpoints = home / ".cache/torch/hub/checkpoints"
    checkpoints.mkdir(parents=True)
    lay_out_torchvision(checkpoints, torchvision.models.resnet18(weights=None), monkeypatch)
    assert find_weights("torchvision:resnet18", "", tmp_path).file.parent == checkpoints


@pytest.fixture
def stalling_server() -> Iterator[str]:
    """The address of a server that sends headers, and then nothing."""
    is_over = threading.Event()

    class Stalling(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.flush()
            is_over.wait(60)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Stalling) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        is_over.set()
        server.shutdown()


@pytest.mark.usefixtures("home", "torch_cache")
def test_a_download_that_stalls_is_an_error(
    stalling_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stall_limit, "STALL_SECONDS", 0.3)
    weights, images = tmp_path / "weights", tmp_path / "images"
    with pytest.raises(ArtifactError):
        download_torchvision(f"{stalling_server}/a.pth", weights / "a.pth", "00")
    assert list(weights.iterdir()) == []
    monkeypatch.setattr(CIFAR10, "url", f"{stalling_server}/cifar.tar.gz")
    with pytest.raises(DataError):
        _open_cifar10(images)
    assert socket.getdefaulttimeout() is None


@pytest.mark.usefixtures("home")
def test_a_download_from_the_hub_that_stalls_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    http_error = HfHubHTTPError.__bases__[0]  # of its HTTP library, which raises one for a read that takes too long

    def stall(*_: object, local_files_only: bool = False, **__: object) -> None:
        raise LocalEntryNotFoundError("none") if local_files_only else http_error("read timed out")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", stall)
    with pytest.raises(ArtifactError):
        download_hub_file("timm/x", "model.safetensors", tmp_path)
