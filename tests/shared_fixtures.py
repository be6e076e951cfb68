"""Fixtures: made photographs, the command line as a user starts it, and one run that many tests look at."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import ROOT, SHORT, TEST_PHOTOS, only_line, picture, visible_files, write
from PIL import Image

import main
from deepcolor.data.dataset import LabDataModule

torch.set_num_threads(1)  # as the program does for networks of so few maps: sums depend on it in the last bit


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/, val/ and test/. The test pictures need no resampling, only a crop."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(14):
        write(folder / "train" / f"t{number:02}.png", picture(number, 128 + 9 * number, 240 - 7 * number))
    rgb = Image.fromarray(picture(14, 140, 160))
    rgb.save(folder / "train" / "photo.jpg", quality=90)
    rgb.rotate(90).convert("L").save(folder / "train" / "gray.png")
    rgb.rotate(180).convert("P").save(folder / "train" / "palette.png")
    for number in range(3):
        write(folder / "val" / f"v{number}.png", picture(20 + number, 150, 130))
    for number, (name, size) in enumerate(TEST_PHOTOS.items()):
        write(folder / "test" / name, picture(30 + number, *size))
    return folder


@pytest.fixture(scope="session")
def data(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> LabDataModule:
    """The same photographs, ready for training in this process."""
    return LabDataModule.load(photos, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def start_main() -> Callable[..., subprocess.Popen]:
    """Starts `python main.py` as a user would, without waiting for it."""

    def start(*arguments: object, cwd: Path, program: Path = ROOT / "main.py") -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, str(program), *map(str, arguments)],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )

    return start


@pytest.fixture(scope="session")
def run_main(start_main: Callable[..., subprocess.Popen]) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `python main.py` to its end."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess:
        process = start_main(*arguments, **options)
        try:
            stdout, stderr = process.communicate(timeout=150)
        finally:
            process.kill()
        # Not as text from the start, which would take the carriage returns of a progress bar for ends of lines.
        return subprocess.CompletedProcess(process.args, process.returncode, stdout.decode(), stderr.decode())

    return run


@pytest.fixture
def fails(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs the program in this process, which must end with exit code 2 and one line; returns the line."""

    def call(*arguments: object) -> str:
        try:
            code = main.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = stop.code
        assert code == 2
        return only_line(capsys.readouterr().err)

    return call


@pytest.fixture(scope="session")
def earlier(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that went well."""
    output = tmp_path_factory.mktemp("earlier")
    assert main.main(["--images", str(photos), "--output", str(output), *SHORT]) == 0
    return output


@pytest.fixture
def untouched(earlier: Path) -> Iterator[Path]:
    """The same, and no test may lose or change a file of it."""
    before = visible_files(earlier)
    yield earlier
    after = visible_files(earlier)
    assert {path: after.get(path) for path in before} == before


@pytest.fixture(scope="session")
def faces_dir() -> Path:
    """A folder of real photographs of faces, for those who have one."""
    folder = os.environ.get("FACES_DIR")
    if not folder:
        pytest.skip("FACES_DIR names no folder of photographs of faces")
    return Path(folder)
