"""README.md and docs/: the commands run, the links lead somewhere, the tables of flags are those of the parsers."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import fields
from pathlib import Path

import pytest
from helpers import ROOT, picture, write

import colorize
import Constants
import main
from deepcolor.training.config import TrainConfig
from utils import format_value

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data/README.md"]
COMMANDS = [
    line
    for page in PAGES
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.S)
    for line in block.splitlines()
]
# Without its options. It copies the script to a folder of its own, as Slurm does.
SBATCH = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
cp "$1" "$(dirname "$0")/slurm_script"
shift
exec bash "$(dirname "$0")/slurm_script" "$@"
"""
# What makes every command short: file -> constants and their values.
SMALL = {
    "Constants.py": {
        "LEARNING_RATES": [0.001],
        "EPOCHS": [1, 2],
        "WEIGHT_DECAYS": [0],
        "STUDY_FEATURE_MAPS": [3, 5],
        "FINE_TUNING": {**Constants.FINE_TUNING, "epoch": [1]},
    },
    "deepcolor/data/sample_photos.py": {"PHOTOGRAPHS": ["astronaut.png"]},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after cloning, with a grid and images that take seconds, some photographs and an sbatch."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git", ".venv", ".cache", "*.pt"))
    shutil.copy(Constants.PRETRAINED, folder / "pretrained")
    shutil.rmtree(folder / "data" / "train")
    for path, constants in SMALL.items():
        text = (folder / path).read_text()
        for name, values in constants.items():
            assert len(re.findall(rf"^{name} = ", text, re.M)) == 1
            text += f"{name} = {values}\n"
        (folder / path).write_text(text)
    for number in range(10):
        write(folder / "my_photos" / f"{number}.jpg", picture(number))
    write(folder / "grandma.jpg", picture(10, 300, 200))
    sbatch = folder / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(SBATCH)
    sbatch.chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_a_command_works(command: str, project: Path) -> None:
    """In the order of the pages. pip finds all requirements installed, and pytest only collects."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PYTEST_"))},
        "PATH": f"{project / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": sysconfig.get_paths()["purelib"],
        "PIP_NO_INDEX": "1",
        "PYTEST_ADDOPTS": "--collect-only -n0",
    }
    done = subprocess.run(
        ["bash", "-c", command], cwd=project, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def flag_rows(page: str) -> list[list[str]]:
    """Returns the cells of every row of a table on the page that starts with a flag."""
    rows = re.findall(r"^\| (`--.*) \|$", (ROOT / page).read_text(), re.M)
    return [re.split(r"(?<!\\)\|", row) for row in rows]


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    flags = [flag for action in parser._actions for flag in action.option_strings]
    return sorted(flag for flag in flags if flag not in ("-h", "--help"))


@pytest.mark.parametrize(("page", "program"), [("docs/training.md", main), ("docs/colorize.md", colorize)])
def test_the_table_of_flags_is_that_of_the_parser(page: str, program: object) -> None:
    listed = [flag for first, *_ in flag_rows(page) for flag in re.findall("--[a-z-]+", first)]
    assert sorted(listed) == flags_of(program.parser())


def test_the_table_of_hyperparameters_has_their_defaults() -> None:
    defaults = {re.search("--[a-z-]+", row[0])[0]: row[-1].strip(" `") for row in flag_rows("docs/training.md")}
    for field in fields(TrainConfig):
        flag = field.metadata["flag"] or f"--{field.name.replace('_', '-')}"
        expected = {"lr": "Table 1", "weight_decay": "Table 1", "precision": "auto"}
        assert defaults[flag] == expected.get(field.name, format_value(field.default)), flag


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_to_files(page: Path) -> None:
    text = page.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    missing = [link for link in links if not link.startswith("https://") and not (page.parent / link).exists()]
    paths = re.findall(r"`((?:deepcolor|tests|benchmarks|docs)/[\w/.]*)`", text)
    assert missing + [path for path in paths if not (ROOT / path).exists()] == []
