from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from winnow import errors
from winnow.errors import ArtifactError, MissingExtra, WinnowError
from winnow.hardware import cores, cpu_flags
from winnow.records import (
    RECORD,
    Gate,
    Machine,
    StepRecord,
    Verdict,
    describe_files,
    publish,
    quality_as_served,
    read_json,
    read_record,
    record_digest,
    sha256_of,
    this_machine,
    write_json,
    write_record,
)


def record(**changes: object) -> StepRecord:
    return StepRecord(**{"step": "s", "name": "n", "parameters": {}, "inputs": {}, "metrics": {"a/b": 0.1}, **changes})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"abc")
    machine = Machine(cpu="c", flags=("avx2",), threads=2, memory_gb=1.5, gpu="", system="s", versions={"numpy": "2"})
    written = record(
        details={"table": [1, {"ü": None}]},
        warnings=("w",),
        artifacts=describe_files(tmp_path, "a.bin"),
        machine=machine,
    )
    write_record(tmp_path, written)
    assert read_record(tmp_path) == written
    assert written.artifacts[0].sha256 == hashlib.sha256(b"abc").hexdigest() == sha256_of(tmp_path / "a.bin")
    assert written.artifacts[0].bytes == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", RECORD]


def test_same_record_same_bytes_and_digest(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_record(tmp_path / name, record(metrics={"x": 1 / 3}))
        digests.add(record_digest(tmp_path / name))
    write_record(tmp_path / "two", record(metrics={"x": 1 / 3 + 1e-16}))
    assert len(digests) == 1
    assert record_digest(tmp_path / "two") not in digests


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"record\.json is missing; run the step"),
        ('{"format": 1, "step":', r"record\.json is damaged"),
        (b"\xff\xfe\x00", r"record\.json is damaged"),
        ("[]", r"damaged \(at the top"),
        ('{"step": "s"}', "another version of winnow"),
        ('{"format": 99}', "another version of winnow"),
        ('{"format": 1, "step": "s"}', r"damaged \(at name: Field required"),
        (json.dumps(record().model_dump(mode="json") | {"metrics": {"x": "fast"}}), r"damaged \(at metrics\.x"),
        (json.dumps(record().model_dump(mode="json") | {"odd": 1}), r"damaged \(at odd"),
    ],
)
def test_a_bad_record_says_what_to_do(tmp_path: Path, text: str | bytes | None, message: str) -> None:
    if text is not None:
        (tmp_path / RECORD).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArtifactError, match=message):
        read_record(tmp_path)
    if text is None:
        with pytest.raises(ArtifactError, match=message):
            record_digest(tmp_path)


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"ä": [1, 2.5]})
    assert read_json(path) == {"ä": [1, 2.5]}
    assert "ä" in path.read_text(encoding="utf-8")
    for bad in (float("nan"), {"s": {1, 2}}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, bad)
    assert read_json(path) == {"ä": [1, 2.5]}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is written to the disk and of what is renamed, in order; both are done, too."""
    done: list[str] = []
    flush, replace = os.fsync, Path.replace

    def flushed(number: int) -> None:
        done.append(f"flush {Path(f'/proc/self/fd/{number}').readlink().name}")
        flush(number)

    def replaced(path: Path, target: Path) -> Path:
        done.append(f"rename {path.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", replaced)
    return done


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, calls: list[str]) -> None:
    """A power cut between the two would leave an empty file under the right name."""
    write_json(tmp_path / "x.json", [1])
    name = f".x.json.{os.getpid()}.tmp"
    assert calls == [f"flush {name}", f"rename {name}"]
    calls.clear()
    with publish(tmp_path / "out") as folder:
        (folder / "images.npy").write_bytes(b"1")
    name = f".out.{os.getpid()}.tmp"
    assert calls == ["flush images.npy", f"flush {name}", f"rename {name}"]


@pytest.mark.parametrize("before", [True, False], ids=["replaces", "makes"])
def test_publish(tmp_path: Path, before: bool) -> None:
    out = tmp_path / "deep" / "out"
    if before:
        out.mkdir(parents=True)
        (out / "old").touch()
    with publish(out) as folder:
        (folder / "new").write_text("x")
        assert folder.parent == out.parent
        assert not (out / "new").exists()
        assert (out / "old").exists() == before
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_publish_leaves_no_trace_of_a_failure(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()

    def fail() -> None:
        with publish(out) as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


def test_publish_sweeps_up_after_a_killed_process_only(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    left, running = (tmp_path / f".out.{process}.tmp" for process in (dead.pid, os.getppid()))
    others = [tmp_path / f".out-int8.{dead.pid}.tmp", tmp_path / ".out.notes.tmp"]
    for folder in (left, running, *others):
        folder.mkdir()
        (folder / "images.npy").touch()
    with publish(tmp_path / "out"):
        pass
    assert not left.exists()
    assert all((folder / "images.npy").exists() for folder in (running, *others))


def test_what_a_killed_process_left_of_a_file_goes_with_the_next(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    left, running, other = (
        tmp_path / name
        for name in (f".a[1].json.{dead.pid}.tmp", f".a[1].json.{os.getppid()}.tmp", f".b.json.{dead.pid}.tmp")
    )
    for path in (left, running, other):
        path.touch()
    write_json(tmp_path / "a[1].json", [1])
    assert sorted(tmp_path.iterdir()) == sorted([running, other, tmp_path / "a[1].json"])


def test_publish_keeps_the_old_where_the_new_cannot_take_its_place(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()

    def fail() -> None:
        with publish(out) as folder:
            folder.rmdir()  # so that there is nothing to rename

    with pytest.raises(FileNotFoundError):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


KILLED = """
import os, signal, sys
from pathlib import Path
from winnow.records import publish

rename = Path.replace

def killed(self, target):
    if not self.name.endswith(".old.tmp") and self.suffix == ".tmp":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)

Path.replace = killed
with publish(Path(sys.argv[1])) as folder:
    (folder / "new").touch()
"""


@pytest.mark.parametrize("ends_well", [True, False])
def test_publish_brings_back_what_a_killed_process_had_set_aside(tmp_path: Path, ends_well: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    result = subprocess.run([sys.executable, "-c", KILLED, str(out)], cwd=Path.cwd(), check=False)
    assert result.returncode < 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp", ".tmp"]  # which DVC does not look at

    def again() -> None:
        with publish(out) as folder:
            assert (out / "old").exists()
            (folder / "newer").touch()
            if not ends_well:
                raise KeyboardInterrupt

    if ends_well:
        again()
    else:
        with pytest.raises(KeyboardInterrupt):
            again()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "newer" if ends_well else "old"]


def test_records_are_frozen_and_closed() -> None:
    gate = Gate(name="size", passed=True, reason="0.4 <= 0.5")
    with pytest.raises(ValidationError):
        gate.passed = False  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Verdict(candidate="x", passed=True, gates=(gate,), on_front=True, extra=1)  # type: ignore[call-arg]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine() -> None:
    machine = this_machine(gpu="card")
    assert machine == this_machine(gpu="card") != this_machine()
    assert machine.threads == cores()
    assert machine.memory_gb > 0.1
    assert machine.cpu
    assert {"torch", "numpy"} <= set(machine.versions)
    assert set(machine.flags) <= cpu_flags()
    told = Path("/proc/cpuinfo").read_text()
    assert all(f" {flag}" in told for flag in machine.flags)


def test_every_error_is_a_value_error_of_ours() -> None:
    tree = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(tree) == 6
    assert all(issubclass(kind, WinnowError) and issubclass(kind, ValueError) for kind in tree)
    assert all(kind.__name__ in str(errors.__doc__) for kind in tree)
    for error in (MissingExtra("openvino", "runtimes"), errors.ConfigError("x")):  # workers send them
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))
    assert "pip install 'winnow-vision[runtimes]'" in str(MissingExtra("openvino", "runtimes"))


def test_a_selection_of_another_version_says_so() -> None:
    record = StepRecord(step="select", name="select", parameters={}, inputs={}, metrics={}, details={})
    with pytest.raises(ArtifactError, match=r"no quality of dense: another version of winnow wrote it; winnow run"):
        quality_as_served(record, "dense")
