"""A small sweep, and colorize.py run in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers import lines_of

import colorize
import main
from deepcolor.training import checkpoint


@pytest.fixture(scope="session")
def sweep(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a sweep with four colorizers."""
    output = tmp_path_factory.mktemp("sweep")
    flags = "--device cpu --network colorizer --lr 0.003 --weight-decay 0 --epoch 1 3 --jobs 1 --seed 3"
    assert main.main(["--images", str(photos), "--output", str(output), *flags.split()]) == 0
    return output


@pytest.fixture(scope="session")
def change_checkpoint(sweep: Path) -> Callable[..., Path]:
    """Writes a colorizer checkpoint, changed by a function, to a path."""

    def write(change: Callable[[dict], object], path: Path) -> Path:
        content = torch.load(next((sweep / "checkpoints/colorizer_tanh").glob("*.pt")), weights_only=True)
        change(content)
        checkpoint.save(content, path)
        return path

    return write


@pytest.fixture(scope="session")
def vivid(change_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A colorizer that predicts colors far outside sRGB, where it is hardest to keep L*."""

    def saturate(content: dict) -> None:
        for name in [name for name in content["model"] if name.startswith("up.")][-2:]:  # the last layer
            content["model"][name] *= 100

    return change_checkpoint(saturate, tmp_path_factory.mktemp("vivid") / "vivid.pt")


@dataclass(frozen=True)
class Result:
    """How colorize.py ended, and what it printed."""

    code: int
    out: str
    lines: list[str]  # of stderr


@pytest.fixture
def run_colorize(sweep: Path, capsys: pytest.CaptureFixture) -> Callable[..., Result]:
    """Runs colorize.py in this process, with the best colorizer of the sweep unless --checkpoint is given."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        if "--checkpoint" not in arguments:
            arguments = (*arguments, "--checkpoint", sweep)
        try:
            code = colorize.main([*map(str, arguments), "--device", "cpu"])
        except SystemExit as stop:  # argparse
            code = stop.code
        captured = capsys.readouterr()
        return Result(code, captured.out, lines_of(captured.err, "colorize.py"))

    return run
