"""Damaged files of an earlier run: noticed, said in one line, made again, and never a silent wrong result."""

import random
import shutil
import signal
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import TASKS, Silent, manager, picture, plain, train, write
from survival import figure, kept, losses

import main
from deepcolor.data.dataset import LabDataModule
from deepcolor.training.trainer import Interrupted

pytest_plugins = ["survival"]

FLAGS = "--device cpu --network regressor --lr 0.003 --weight-decay 0 --batch-size 8 --jobs 1 --epoch 2 4".split()
CONFIG_FIELDS = {"batch_size": 4}  # 5 steps an epoch


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def flip_a_weight(path: Path) -> None:
    """One bit of the stored numbers, which leaves the file readable."""
    with zipfile.ZipFile(path) as archive:
        tensors = [info for info in archive.infolist() if "/data/" in info.filename]
    largest = max(tensors, key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    name_length, extra_length = struct.unpack_from("<HH", content, largest.header_offset + 26)
    content[largest.header_offset + 30 + name_length + extra_length + largest.file_size // 2 + 3] ^= 1
    path.write_bytes(content)


# --- The saved state -------------------------------------------------------------------------------


@pytest.fixture
def two_states(data: LabDataModule, tmp_path: Path) -> tuple[Path, Path]:
    """A training that was interrupted twice: the state after 2.6 epochs, and the one before, after 1.4 epochs."""
    for at in (1.4, 2.6):
        with pytest.raises(Interrupted):
            manager(TASKS[1], data, tmp_path / "out", (4,), Silent(at, signal.SIGTERM), **CONFIG_FIELDS).train()
    newest, previous = sorted((tmp_path / "out").rglob(".state/*.pt"), key=lambda path: len(path.name))
    return newest, previous


@pytest.fixture(scope="module")
def model(data: LabDataModule, tmp_path_factory: pytest.TempPathFactory) -> object:
    """The model of the same training, undisturbed."""
    return plain(train(TASKS[1], data, tmp_path_factory.mktemp("model"), 4, **CONFIG_FIELDS))


@pytest.mark.parametrize("damage", [cut, flip_a_weight, Path.unlink], ids=["cut", "flipped", "lost"])
@pytest.mark.parametrize("which", ["newest", "previous", "both"])
def test_a_damaged_state_falls_back_to_the_one_before(
    data: LabDataModule,
    tmp_path: Path,
    two_states: tuple[Path, Path],
    model: object,
    damage: Callable[[Path], object],
    which: str,
) -> None:
    damaged = {"newest": two_states[:1], "previous": two_states[1:], "both": two_states}[which]
    for path in damaged:
        damage(path)
    progress = Silent()
    assert plain(train(TASKS[1], data, tmp_path / "out", 4, progress=progress, **CONFIG_FIELDS)) == model
    begun_at = {"newest": 1.4, "previous": 2.6, "both": 0.2}[which]  # a first step is a fifth of an epoch
    assert progress.advances[0] == pytest.approx(begun_at, abs=0.01)
    if which != "previous" and damage is not Path.unlink:
        said = [line for line in progress.said if "damaged" in line]
        assert len(said) == len(damaged)
        assert all(any(str(path) in line for line in said) for path in damaged)


# --- A finished model ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    assert main.main(["--images", str(photos), "--output", str(output), *FLAGS]) == 0
    return output


def to_text(path: Path) -> None:
    path.write_text("I was a model once")


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_picture(path: Path) -> None:
    write(path.with_suffix(".png"), picture(1)).rename(path)


def to_list(path: Path) -> None:
    torch.save([1, 2, 3], path)


def to_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "nothing to see")


def to_other_training(path: Path) -> None:
    torch.save({**torch.load(path), "fingerprint": {"network": "colorizer"}}, path)


def to_other_epoch(path: Path) -> None:
    """As when somebody copies one file over the other."""
    other = next(other for other in path.parent.glob("epoch_*.pt") if other != path)
    shutil.copy(other, path)


@pytest.mark.parametrize("epoch", [2, 4])
@pytest.mark.parametrize(
    "damage",
    [cut, flip_a_weight, to_text, to_folder, to_picture, to_list, to_archive, to_other_training, to_other_epoch],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_model_is_named_and_made_again(
    photos: Path,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    damage: Callable[[Path], object],
    epoch: int,
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    (path,) = (tmp_path / "out").rglob(f"epoch_{epoch}_*.pt")
    damage(path)
    code = main.main(["--images", str(photos), "--output", str(tmp_path / "out"), *FLAGS])
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    if damage is to_folder:  # which might be somebody's, and is not removed
        assert code == 1
        assert path.name in said.out + said.err
        path.rmdir()
        code = main.main(["--images", str(photos), "--output", str(tmp_path / "out"), *FLAGS])
    assert code == 0
    assert any(word in said.out for word in (path.name, "anew"))
    assert losses(tmp_path / "out", kept(whole)) == []


# --- The cache -------------------------------------------------------------------------------------


@pytest.fixture
def cached(photos: Path, tmp_path: Path) -> Callable[[], LabDataModule]:
    """Reads the photographs through a cache that stands already."""
    LabDataModule.load(photos, tmp_path / "out")
    return lambda: LabDataModule.load(photos, tmp_path / "out")


def pixels(data: LabDataModule) -> tuple:
    """Everything that training is given."""
    subsets = (data.train, data.val, data.test)
    return data.fingerprint, [(s.names, s.statistics.tolist(), s.records[s.rows].numpy().tobytes()) for s in subsets]


def test_a_damaged_cache_never_gives_wrong_pixels(
    data: LabDataModule, cached: Callable[[], LabDataModule], tmp_path: Path
) -> None:
    """Cuts, flipped bits, swapped digits, anywhere in the index and in the records."""
    right = pixels(data)
    draw = random.Random(0)
    files = [path for path in (tmp_path / "out/.cache").rglob("*.*") if path.is_file()]
    wholes = {path: path.read_bytes() for path in files}
    assert sorted(path.suffix for path in files) == [".lab", ".txt"]
    wrong = []
    for number in range(80):
        path = files[number % 2]
        content = bytearray(wholes[path])
        at = draw.randrange(len(content))
        if number % 8 < 2:
            del content[at:]
        elif path.suffix == ".txt" and number % 4 == 0:  # another digit: still a file of numbers
            at = draw.choice([at for at, byte in enumerate(content) if chr(byte).isdigit()])
            content[at] = ord(str((int(chr(content[at])) + draw.randrange(1, 10)) % 10))
        else:
            content[at] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        try:
            if pixels(cached()) != right:
                wrong.append((path.name, at))
        except Exception as error:
            wrong.append((path.name, at, repr(error)))
        for path, whole in wholes.items():
            path.write_bytes(whole)
    figure(f"Damaged caches: {number + 1} tried, {len(wrong)} gave wrong pixels or an error")
    assert not wrong


def test_a_damaged_cache_is_said_in_one_line(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["--images", str(photos), "--output", str(tmp_path / "out"), *FLAGS]
    assert main.main(command) == 0
    assert "cache" not in "".join(capsys.readouterr())
    cut(next((tmp_path / "out/.cache").rglob("*.lab")))
    assert main.main(command) == 0
    said = capsys.readouterr()
    assert len([line for line in (said.out + said.err).splitlines() if "cache" in line]) == 1
