"""Bad input: one line that says what is wrong, exit code 2, and earlier results are unchanged."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import SHORT, picture, without_privileges, write

import main

IMPOSSIBLE = {
    "--epoch": ["0", "100 -5", "1.5", ""],
    "--lr": ["-1", "0", "nan", "inf", "fast"],
    "--weight-decay": ["-0.1", "nan"],
    "--feature-maps": ["3,4", "0", "shallow", "3,3,3,3,3,-3"],
    "--batch-size": ["0"],
    "--copies": ["0"],
    "--seed": ["-1"],
    "--optimizer": ["lion"],
    "--dropout": ["1", "-0.1"],
    "--schedule": ["linear"],
    "--warmup-steps": ["-1"],
    "--crop-area": ["0"],
    "--precision": ["fp8"],
    "--activation": ["relu6"],
    "--network": ["transformer"],
    "--device": ["tpu"],
    "--recipe": ["worst"],
    "--jobs": ["0", "many"],
    "--epochs": ["3"],
    "--part": ["0/2"],
    "stray": [""],
}


@pytest.mark.parametrize("given", [f"{flag} {value}" for flag, values in IMPOSSIBLE.items() for value in values])
def test_a_flag_with_an_impossible_value(fails: Callable[..., str], photos: Path, untouched: Path, given: str) -> None:
    line = fails("--images", photos, "--output", untouched, "--device", "cpu", *given.split())
    name = given.split()[0].removeprefix("--").replace("copies", "augment_repeats")
    assert name.replace("-", "_") in line.replace("-", "_")


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_gpu_that_is_missing(
    fails: Callable[..., str], photos: Path, untouched: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(getattr(torch, name), "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    line = fails("--images", photos, "--output", untouched, *SHORT, "--device", name)
    assert "GPU" in line and "cpu" in line


@pytest.mark.parametrize(
    ("images", "word"), [("nowhere", "nowhere"), ("photo.png", "folder"), ("x" * 300, "--images")], ids=len
)
def test_an_images_folder_that_is_none(
    fails: Callable[..., str], untouched: Path, tmp_path: Path, images: str, word: str
) -> None:
    """It is missing, it is a file, or its name is too long."""
    write(tmp_path / "photo.png", picture(0))
    assert word in fails("--images", tmp_path / images, "--output", untouched, *SHORT)


@pytest.mark.parametrize("names", [[], ["notes.txt"], ["broken.png"], ["broken.png", "sub/empty.jpg"]], ids=str)
def test_no_readable_image(fails: Callable[..., str], untouched: Path, tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "images").mkdir()
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_text("no picture")
    line = fails("--images", tmp_path / "images", "--output", untouched, *SHORT)
    assert "no readable image" in line and "--images" in line


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_images_than_subsets(fails: Callable[..., str], untouched: Path, tmp_path: Path, count: int) -> None:
    for number in range(count):
        write(tmp_path / "images" / f"{number}.png", picture(number))
    line = fails("--images", tmp_path / "images", "--output", untouched, *SHORT)
    assert str(count) in line and "3" in line


@pytest.fixture
def closed_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of photographs whose permissions a test changes. They are restored at the end."""
    for number in range(3):
        write(tmp_path / "closed/images" / f"{number}.png", picture(number))
    yield tmp_path / "closed"
    (tmp_path / "closed").chmod(0o755)
    (tmp_path / "closed/images").chmod(0o755)


@pytest.mark.parametrize("closed", ["closed/images", "closed"])
def test_an_images_folder_without_permission(fails: Callable[..., str], closed_folder: Path, closed: str) -> None:
    (closed_folder.parent / closed).chmod(0)
    with without_privileges():
        line = fails("--images", closed_folder / "images", "--output", closed_folder.parent / "out", *SHORT)
    assert str(closed_folder / "images") in line and "ermission" in line


def test_an_image_without_permission_is_left_out(closed_folder: Path, capsys: pytest.CaptureFixture) -> None:
    write(closed_folder / "images/secret.png", picture(9)).chmod(0)
    output = closed_folder.parent / "out"
    with without_privileges():
        code = main.main(["--images", str(closed_folder / "images"), "--output", str(output), *SHORT])
    assert code == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "secret.png" in line)
    assert "ermission" in line


def test_an_output_folder_without_permission(fails: Callable[..., str], closed_folder: Path) -> None:
    (closed_folder / "images").chmod(0o555)
    with without_privileges():
        line = fails("--images", closed_folder / "images", "--output", closed_folder / "images/out", *SHORT)
    assert "--output" in line


@pytest.mark.parametrize("below", ["file", "file/out", "x" * 300])
def test_an_output_folder_that_cannot_be_created(
    fails: Callable[..., str], photos: Path, tmp_path: Path, below: str
) -> None:
    (tmp_path / "file").write_text("mine")
    assert "--output" in fails("--images", photos, "--output", tmp_path / below, *SHORT)
    assert (tmp_path / "file").read_text() == "mine"
