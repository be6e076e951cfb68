"""The output folder under attack: taken away, made read-only, shared by two runs, full of rests, or the power fails."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import files_below, only_line
from survival import Process, Undisturbed, kept, losses, wait_until, without_bar

import main
from deepcolor.training.trainer import Trainer

pytest_plugins = ["survival"]

FLAGS = "--device cpu --activation sigmoid --lr 0.003 --weight-decay 0 --batch-size 8 --jobs 1 --epoch 1 2".split()


@pytest.fixture
def sweep(photos: Path) -> Callable[[Path], int]:
    """Both networks, two snapshots, in this process."""
    return lambda output: main.main(["--images", str(photos), "--output", str(output), *FLAGS])


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the same command, undisturbed."""
    output = tmp_path_factory.mktemp("whole")
    assert main.main(["--images", str(photos), "--output", str(output), *FLAGS]) == 0
    return output


@pytest.fixture
def in_mid_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Has something happen once, before the second epoch of the Colorizer."""
    original = Trainer.train_epoch

    def arrange(happen: Callable[[], object]) -> None:
        left = [happen]

        def train_epoch(trainer: Trainer) -> None:
            if left and trainer.training_run.network == "colorizer" and trainer.epoch == 1:
                left.pop()()
            original(trainer)

        monkeypatch.setattr(Trainer, "train_epoch", train_epoch)

    return arrange


def test_an_output_folder_that_is_removed_in_mid_run(
    sweep: Callable[[Path], int],
    whole: Path,
    tmp_path: Path,
    in_mid_run: Callable[[Callable[[], object]], None],
    capsys: pytest.CaptureFixture,
) -> None:
    """Whatever the program makes of it, it does not call it done with half of the results."""
    in_mid_run(lambda: shutil.rmtree(tmp_path / "out"))
    code = sweep(tmp_path / "out")
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    if code == 0:
        assert losses(tmp_path / "out", kept(whole)) == []
    else:
        assert code == 1
        assert "main.py: " in without_bar(said.err)
    assert sweep(tmp_path / "out") == 0
    assert losses(tmp_path / "out", kept(whole)) == []


def close(folder: Path, closed: bool) -> None:
    """Takes away, or gives back, the permission to change any folder there; root's as well."""
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        if os.geteuid() == 0:
            subprocess.run(["chattr", "+i" if closed else "-i", place], check=True, capture_output=True)
        else:
            place.chmod(0o555 if closed else 0o755)


@pytest.fixture
def lockable(tmp_path: Path) -> Iterator[Path]:
    """A folder that can be made read-only even for root, and is writable again at the end."""
    place = tmp_path / "lockable"
    place.mkdir()
    try:
        close(place, True)
        close(place, False)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("root, and no file system that knows immutable folders")
    yield place
    close(place, False)


def test_an_output_folder_that_becomes_read_only_in_mid_run(
    sweep: Callable[[Path], int],
    whole: Path,
    lockable: Path,
    in_mid_run: Callable[[Callable[[], object]], None],
    capsys: pytest.CaptureFixture,
) -> None:
    in_mid_run(lambda: close(lockable, True))
    code = sweep(lockable / "out")
    said = capsys.readouterr()
    assert code == 1
    lines = without_bar(said.err).splitlines()
    assert lines
    assert all(line.startswith("main.py: ") and "ermi" in line for line in lines), lines
    assert "Traceback" not in said.out
    early = {name: content for name, content in kept(lockable / "out").items() if name.endswith((".pt", ".png"))}
    assert early
    close(lockable, False)
    assert sweep(lockable / "out") == 0
    after = kept(lockable / "out")
    assert {name: after[name] for name in early} == early
    assert losses(lockable / "out", kept(whole)) == []


def test_a_second_run_on_the_same_output_says_so_and_stops(
    undisturbed: Undisturbed, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = [*undisturbed.command, "--output", str(tmp_path / "out")]
    with Process(*command, cwd=tmp_path / "logs") as first:
        assert wait_until(lambda: list((tmp_path / "out").rglob("epoch_4_*.pt")))
        assert main.main(command) == 2
        line = only_line(capsys.readouterr().err)
        assert "another run" in line
        assert "--output" in line
        assert not first.ended()
        assert first.finish() == 0, first.stderr
    assert losses(tmp_path / "out", undisturbed.files) == []


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_what_a_killed_run_left_half_written_is_no_result(
    sweep: Callable[[Path], int], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture, share: float
) -> None:
    """A temporary file beside each result, as `write_atomically` names it, of which some share was written."""
    shutil.copytree(whole, tmp_path / "out")
    for name in kept(whole):
        path = tmp_path / "out" / name
        content = path.read_bytes()
        path.with_name(f".{path.stem[-8:]}.part{path.suffix}").write_bytes(content[: int(share * len(content))])
    assert main.main(["--output", str(tmp_path / "out"), "--report"]) == 0
    said = capsys.readouterr()
    assert "left out" not in said.out + said.err
    assert losses(tmp_path / "out", kept(whole)) == []


def test_a_file_is_on_the_disk_before_it_gets_its_name(
    sweep: Callable[[Path], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power loss cannot undo: content, then name, then the folder that holds the name."""
    synced: set[int] = set()
    pending: dict[int, str] = {}  # inode of a folder -> the file that was given its name there
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
    assert sweep(tmp_path / "out") == 0
    assert len(synced) > 20
    assert not pending


def test_nothing_but_the_output_folder_is_written(sweep: Callable[[Path], int], photos: Path, tmp_path: Path) -> None:
    before = files_below(photos)
    (tmp_path / "beside").mkdir()
    assert sweep(tmp_path / "out") == 0
    assert files_below(photos) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside", "out"]
