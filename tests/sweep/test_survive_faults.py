"""Faults of the disk: full, written no further than so many bytes, read-only, gone. Said in one line, nothing lost."""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import SHORT
from survival import Process, Undisturbed, kept, losses, without_bar

import main

pytest_plugins = ["survival"]

FLAGS = "--device cpu --activation sigmoid --lr 0.003 --weight-decay 0 --batch-size 8 --jobs 1".split()


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the command of `again`, undisturbed."""
    output = tmp_path_factory.mktemp("whole")
    assert main.main(["--images", str(photos), "--output", str(output), *FLAGS, "--epoch", "1", "2"]) == 0
    return output


@pytest.fixture
def again(photos: Path, tmp_path: Path) -> Callable[..., int]:
    """Both networks, two snapshots, in this process."""

    def run(output: Path = tmp_path / "out", epochs: str = "1 2") -> int:
        return main.main(["--images", str(photos), "--output", str(output), *FLAGS, "--epoch", *epochs.split()])

    return run


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """A write fails, with EFBIG, at this byte of any file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def failed(code: int, said: object, reason: str, codes: tuple[int, ...] = (1,)) -> None:
    """It ended with code 1, and every line on stderr is one of ours that names the reason."""
    lines = without_bar(said.err).splitlines()
    assert "Traceback" not in said.out + said.err
    assert lines, said.out
    assert all(line.startswith("main.py: ") for line in lines), lines
    assert all(reason in line for line in lines), lines
    assert code in codes, lines


@pytest.mark.parametrize("size", [5_000, 1_000_000])
def test_a_cache_that_cannot_be_written(
    again: Callable[..., int], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture, size: int
) -> None:
    """Its index, or its records. Another --output may help: 2 is a fitting code as well."""
    with files_no_longer_than(size):
        code = again()
    failed(code, capsys.readouterr(), "File too large", codes=(1, 2))
    assert again() == 0
    assert losses(tmp_path / "out", kept(whole)) == []


@pytest.mark.parametrize("size", [100, 20_000, 60_000])
def test_a_write_that_fails_at_the_nth_byte(
    again: Callable[..., int], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture, size: int
) -> None:
    shutil.copytree(whole / ".cache", tmp_path / "out/.cache")
    with files_no_longer_than(size):
        code = again()
    failed(code, capsys.readouterr(), "File too large")
    assert again() == 0
    assert losses(tmp_path / "out", kept(whole)) == []


def test_a_write_that_fails_leaves_what_was_there(
    again: Callable[..., int], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert again(epochs="1") == 0
    before = kept(tmp_path / "out")
    largest = max(path.stat().st_size for path in (tmp_path / "out/checkpoints").rglob("*.pt"))
    with files_no_longer_than(largest // 2):
        code = again()
    failed(code, capsys.readouterr(), "File too large")
    assert {name: content for name, content in kept(tmp_path / "out").items() if name in before} == before
    assert again() == 0
    assert losses(tmp_path / "out", kept(whole)) == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which a test can fill up."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no permission to mount a file system")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def leave_free(disk: Path, kilobytes: int) -> None:
    """Fills the disk up to that."""
    status = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(status.f_bavail * status.f_bsize - (kilobytes << 10)))


@pytest.mark.parametrize("kilobytes", [2_330, 2_700])
def test_a_full_disk(
    again: Callable[..., int], whole: Path, disk: Path, capsys: pytest.CaptureFixture, kilobytes: int
) -> None:
    """The records of the cache take 2.3 MB of what is free."""
    leave_free(disk, kilobytes)
    failed(again(disk / "out"), capsys.readouterr(), "No space left", codes=(1, 2))
    (disk / "ballast").unlink()
    assert again(disk / "out") == 0
    assert losses(disk / "out", kept(whole)) == []


def test_a_disk_that_is_full_from_the_first_checkpoint_on(
    again: Callable[..., int], photos: Path, disk: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main.main(["--images", str(photos), "--output", str(disk / "out"), *SHORT]) == 0
    shutil.rmtree(disk / "out/checkpoints")
    capsys.readouterr()
    leave_free(disk, 8)
    failed(again(disk / "out"), capsys.readouterr(), "No space left")


def test_a_disk_that_fills_up_under_the_real_program(undisturbed: Undisturbed, disk: Path, tmp_path: Path) -> None:
    leave_free(disk, 2_700)
    command = [*undisturbed.command, "--output", str(disk / "out")]
    with Process(*command, cwd=tmp_path / "logs") as process:
        assert process.finish() == 1, process.stdout
        lines = process.stderr.splitlines()
        assert lines
        assert all("No space left" in line for line in lines), lines
        assert "Traceback" not in process.stdout
    (disk / "ballast").unlink()
    assert main.main(command) == 0
    assert losses(disk / "out", undisturbed.files) == []
