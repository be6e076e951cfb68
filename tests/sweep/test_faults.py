"""Failing writes, full disks, vanishing folders: one line, nothing lost, and the same command continues."""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from helpers import SHORT, files_below
from survival import contents, differences, result_of, without_bar

import main
from deepcolor.training.trainer import Trainer

FLAGS = "--device cpu --network colorizer --activation sigmoid --lr 0.003 --weight-decay 0 --jobs 1 --epoch 1 2".split()
Check = Callable[..., None]


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed run."""
    output = tmp_path_factory.mktemp("whole")
    result_of(output, "--images", photos, *FLAGS)
    return output


@pytest.fixture
def check(photos: Path, whole: Path, capsys: pytest.CaptureFixture) -> Check:
    """Checks that the command fails with lines that name the reason, and that the same command continues after it."""

    def check(output: Path, fault: AbstractContextManager, reason: str, *flags: str) -> None:
        command = ["--images", str(photos), "--output", str(output), *FLAGS]
        before = contents(output)
        with fault:
            code = main.main([*command, *flags])
        said = capsys.readouterr()
        lines = without_bar(said.err).splitlines()
        assert "Traceback" not in said.out + said.err
        assert lines and all(line.startswith("main.py: ") and reason in line for line in lines), said
        assert code in (1, 2)  # 2 if another --output helps
        after = contents(output)
        assert {name: after.get(name) for name in before} == before
        assert main.main(command) == 0
        assert differences(output, contents(whole)) == []

    return check


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes beyond this size of any file fail with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("size", "earlier", "flags"),
    [
        pytest.param(5_000, "", [], id="index of the cache"),
        pytest.param(1_000_000, "", [], id="records of the cache", marks=pytest.mark.slow),
        pytest.param(100, ".cache", [], id="any file", marks=pytest.mark.slow),
        pytest.param(20_000, ".cache", [], id="a checkpoint", marks=pytest.mark.slow),
        pytest.param(20_000, ".", ["--restart"], id="a checkpoint beside an earlier one"),
    ],
)
def test_a_write_that_fails(check: Check, whole: Path, tmp_path: Path, size: int, earlier: str, flags: list) -> None:
    if earlier:
        shutil.copytree(whole / earlier, tmp_path / earlier, dirs_exist_ok=True)
    check(tmp_path, file_size_limit(size), "File too large", *flags)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system that a test can fill."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no permission to mount a file system")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


@contextmanager
def little_space(disk: Path, kilobytes: int) -> Iterator[None]:
    status = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(status.f_bavail * status.f_bsize - (kilobytes << 10)))
    yield
    (disk / "ballast").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(("kilobytes", "is_cached"), [(2_330, False), (2_700, False), (8, True)])
def test_a_full_disk(check: Check, whole: Path, disk: Path, kilobytes: int, is_cached: bool) -> None:
    """The records of the cache take 2.3 MB."""
    if is_cached:
        shutil.copytree(whole / ".cache", disk / "out/.cache")
    check(disk / "out", little_space(disk, kilobytes), "No space left")


@contextmanager
def before_the_second_epoch(happen: Callable[[], object]) -> Iterator[None]:
    original = Trainer.train_epoch

    def train_epoch(trainer: Trainer) -> None:
        if trainer.epoch == 1:
            happen()
        original(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", train_epoch)
        yield


def test_an_output_folder_that_is_removed(check: Check, tmp_path: Path) -> None:
    check(tmp_path / "out", before_the_second_epoch(lambda: shutil.rmtree(tmp_path / "out")), "")


def set_read_only(folder: Path, read_only: bool) -> None:
    """Takes away, or gives back, the permission to change any folder there; root's too."""
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        if os.geteuid() == 0:
            subprocess.run(["chattr", "+i" if read_only else "-i", place], check=True, capture_output=True)
        else:
            place.chmod(0o555 if read_only else 0o755)


def test_an_output_folder_that_becomes_read_only(check: Check, tmp_path: Path) -> None:
    @contextmanager
    def read_only() -> Iterator[None]:
        try:
            with before_the_second_epoch(lambda: set_read_only(tmp_path, True)):
                yield
        finally:
            set_read_only(tmp_path, False)

    try:
        set_read_only(tmp_path, True)
        set_read_only(tmp_path, False)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("root, and the file system has no immutable folders")
    check(tmp_path / "out", read_only(), "ermi")


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
