"""Failing writes, full disks, vanishing folders: one line, nothing lost, and the same command continues."""

import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import SHORT, files_below
from survival import Process, contents, differences, result_of, without_bar

import main
from deepcolor.data.dataset import LabDataModule
from deepcolor.training.trainer import Trainer

FLAGS = "--device cpu --network colorizer --activation sigmoid --lr 0.003 --weight-decay 0 --jobs 1 --epoch 1 2".split()


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed run."""
    output = tmp_path_factory.mktemp("whole")
    result_of(output, "--images", photos, *FLAGS)
    return output


@pytest.fixture
def command(photos: Path) -> Callable[..., int]:
    """Runs the same command in this process, and returns the exit code."""
    return lambda output, *flags: main.main(["--images", str(photos), "--output", str(output), *FLAGS, *flags])


def check_failed(code: int, stdout: str, stderr: str, reason: str) -> None:
    """Checks that every line is ours and names the reason. The exit code is 2 if another --output helps."""
    lines = without_bar(stderr).splitlines()
    assert "Traceback" not in stdout + stderr
    assert lines, stdout
    assert all(line.startswith("main.py: ") and reason in line for line in lines), lines
    assert code in (1, 2)


# --- Writes that fail --------------------------------------------------------------------------------


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes beyond this size of any file fail with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("size", "cached"), [(5_000, False), (1_000_000, False), (100, True), (20_000, True)])
def test_a_write_that_fails(
    command: Callable[..., int],
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    size: int,
    cached: bool,
) -> None:
    """Of the cache's index or records; or, where the images are cached, of the first file or of a checkpoint."""
    if cached:
        shutil.copytree(whole / ".cache", tmp_path / ".cache")
    with file_size_limit(size):
        code = command(tmp_path)
    check_failed(code, *capsys.readouterr(), "File too large")
    assert command(tmp_path) == 0
    assert differences(tmp_path, contents(whole)) == []


def test_a_write_that_fails_leaves_earlier_results(
    command: Callable[..., int], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    with file_size_limit(min(path.stat().st_size for path in whole.rglob("epoch_*.pt")) // 2):
        code = command(tmp_path, "--restart")
    check_failed(code, *capsys.readouterr(), "File too large")
    assert differences(tmp_path, contents(whole)) == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system that a test can fill."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no permission to mount a file system")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def leave_free(disk: Path, kilobytes: int) -> None:
    status = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(status.f_bavail * status.f_bsize - (kilobytes << 10)))


@pytest.mark.slow
@pytest.mark.parametrize(("kilobytes", "cached"), [(2_330, False), (2_700, False), (8, True)])
def test_a_disk_that_fills_up_under_the_real_program(
    command: Callable[..., int],
    photos: Path,
    whole: Path,
    disk: Path,
    tmp_path: Path,
    kilobytes: int,
    cached: bool,
) -> None:
    """The records of the cache take 2.3 MB."""
    if cached:
        shutil.copytree(whole / ".cache", disk / "out/.cache")
    leave_free(disk, kilobytes)
    with Process("--images", photos, *FLAGS, "--output", disk / "out", cwd=tmp_path / "logs") as process:
        process.finish()
        check_failed(process.code, process.stdout, process.stderr, "No space left")
    (disk / "ballast").unlink()
    assert command(disk / "out") == 0
    assert differences(disk / "out", contents(whole)) == []


# --- The output folder during training ---------------------------------------------------------------


@pytest.fixture
def during_training(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Has something happen once, before the second epoch."""
    original = Trainer.train_epoch

    def arrange(happen: Callable[[], object]) -> None:
        left = [happen]

        def train_epoch(trainer: Trainer) -> None:
            if left and trainer.epoch == 1:
                left.pop()()
            original(trainer)

        monkeypatch.setattr(Trainer, "train_epoch", train_epoch)

    return arrange


def test_an_output_folder_that_is_removed(
    command: Callable[..., int],
    whole: Path,
    tmp_path: Path,
    during_training: Callable[[Callable[[], object]], None],
    capsys: pytest.CaptureFixture,
) -> None:
    during_training(lambda: shutil.rmtree(tmp_path / "out"))
    assert command(tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert "main.py: " in without_bar(said.err)
    assert command(tmp_path / "out") == 0
    assert differences(tmp_path / "out", contents(whole)) == []


def set_read_only(folder: Path, read_only: bool) -> None:
    """Takes away, or gives back, the permission to change any folder there; root's too."""
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        if os.geteuid() == 0:
            subprocess.run(["chattr", "+i" if read_only else "-i", place], check=True, capture_output=True)
        else:
            place.chmod(0o555 if read_only else 0o755)


@pytest.fixture
def lockable(tmp_path: Path) -> Iterator[Path]:
    """A folder that can be made read-only, and is writable again at the end."""
    place = tmp_path / "lockable"
    place.mkdir()
    try:
        set_read_only(place, True)
        set_read_only(place, False)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("root, and the file system has no immutable folders")
    yield place
    set_read_only(place, False)


def test_an_output_folder_that_becomes_read_only(
    command: Callable[..., int],
    whole: Path,
    lockable: Path,
    during_training: Callable[[Callable[[], object]], None],
    capsys: pytest.CaptureFixture,
) -> None:
    during_training(lambda: set_read_only(lockable, True))
    code = command(lockable / "out")
    check_failed(code, *capsys.readouterr(), "ermi")
    early = {name: content for name, content in contents(lockable / "out").items() if "epoch_" in name}
    assert early
    set_read_only(lockable, False)
    assert command(lockable / "out") == 0
    after = contents(lockable / "out")
    assert {name: after[name] for name in early} == early
    assert differences(lockable / "out", contents(whole)) == []


# --- What is on the disk -------------------------------------------------------------------------------


def test_half_written_files_of_a_killed_process_are_no_results(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Temporary files beside each result, named as by `write_atomically`, with nothing, half or all of its content."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for name in contents(whole):
        path = tmp_path / name
        content = path.read_bytes()
        for share in (0, 0.5, 1):
            part = path.with_name(f".{share}{path.stem[-8:]}.part{path.suffix}")
            part.write_bytes(content[: int(share * len(content))])
    assert main.main(["--output", str(tmp_path), "--report"]) == 0
    said = capsys.readouterr()
    assert "left out" not in said.out + said.err
    assert differences(tmp_path, contents(whole)) == []


def test_a_file_is_on_the_disk_before_it_gets_its_name(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What survives a power failure: the content, then the name, then the folder with the name."""
    synced: set[int] = set()
    pending: dict[int, str] = {}  # inode of a folder -> a file that was renamed into it
    original_sync, original_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        original_sync(handle)
        inode = os.fstat(handle).st_ino
        synced.add(inode)
        pending.pop(inode, None)

    def replace(source: Path, target: Path) -> None:
        assert os.stat(source).st_ino in synced, f"{target} was named before it was on the disk"
        original_replace(source, target)
        pending[os.stat(Path(target).parent).st_ino] = str(target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    result_of(tmp_path, "--images", photos, *FLAGS)
    assert len(synced) > 20
    assert not pending


def test_only_the_output_folder_is_written(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_below(photos)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result_of(tmp_path / "out", "--images", photos, *SHORT)
    assert files_below(photos) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "out"]
    assert list((tmp_path / "here").iterdir()) == []


# --- The cache of decoded images ---------------------------------------------------------------------


def pixels(data: LabDataModule) -> tuple:
    """Returns everything that training is given."""
    subsets = (data.train, data.val, data.test)
    return data.fingerprint, [(s.names, s.statistics.tolist(), s.records[s.rows].numpy().tobytes()) for s in subsets]


def test_a_damaged_cache_never_gives_wrong_pixels(photos: Path, tmp_path: Path) -> None:
    """Cuts, flipped bits and other digits, anywhere in the index and in the records."""
    right = pixels(LabDataModule.load(photos, tmp_path))
    draw = random.Random(0)
    files = [path for path in (tmp_path / ".cache").rglob("*.*") if path.is_file()]
    undamaged = {path: path.read_bytes() for path in files}
    assert sorted(path.suffix for path in files) == [".lab", ".txt"]
    wrong = []
    for number in range(40):
        path = files[number % 2]
        content = bytearray(undamaged[path])
        at = draw.randrange(len(content))
        if number % 8 < 2:
            del content[at:]
        elif path.suffix == ".txt" and number % 4 == 0:  # another digit: still a file of numbers
            at = draw.choice([at for at, byte in enumerate(content) if chr(byte).isdigit()])
            content[at] = ord(str((int(chr(content[at])) + draw.randrange(1, 10)) % 10))
        else:
            content[at] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        if pixels(LabDataModule.load(photos, tmp_path)) != right:
            wrong.append((path.name, at))
        for path, content in undamaged.items():
            path.write_bytes(content)
    assert not wrong


def test_a_damaged_cache_is_reported_in_one_line(
    whole: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (records,) = (tmp_path / ".cache").rglob("*.lab")
    records.write_bytes(records.read_bytes()[:100_000])
    result_of(tmp_path, "--images", photos, *FLAGS)
    assert sum("cache" in line for line in capsys.readouterr().out.splitlines()) == 1
    result_of(tmp_path, "--images", photos, *FLAGS)
    assert "cache" not in "".join(capsys.readouterr())
