"""Every command of the README works, in its order, in a fresh copy of the project."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from helpers import ROOT, picture, write

README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]
# Without its options; tests/test_slurm.py has the real one, which copies the script to a folder of its own as well.
SBATCH = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
cp "$1" "$(dirname "$0")/slurm_script"
shift
exec bash "$(dirname "$0")/slurm_script" "$@"
"""
SMALL = {"LEARNING_RATES": [0.001], "EPOCHS": [1, 2], "WEIGHT_DECAYS": [0]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as a user has it after cloning, but for a grid that takes seconds; some photographs; an sbatch."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git", ".venv", ".cache", "*.pt"))
    shutil.rmtree(folder / "data" / "train")
    constants = folder / "Constants.py"
    text = constants.read_text()
    for name, values in SMALL.items():
        text, count = re.subn(rf"^{name} = .*$", f"{name} = {values}", text, flags=re.M)
        assert count == 1
    constants.write_text(text)
    for number in range(10):
        write(folder / "my_photos" / f"{number}.jpg", picture(number))
    write(folder / "grandma.jpg", picture(10, 300, 200))
    sbatch = folder / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(SBATCH)
    sbatch.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def environment(project: Path) -> dict[str, str]:
    """Where pip finds everything that the requirements ask for installed already, and pytest only collects."""
    site = sysconfig.get_paths()["purelib"]
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PYTEST_"))},
        "PATH": f"{project / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": site,
        "PIP_NO_INDEX": "1",
        "PYTEST_ADDOPTS": "--collect-only",
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_works(command: str, project: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-c", command], cwd=project, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("program", ["main.py", "colorize.py"])
def test_the_readme_names_every_flag(program: str) -> None:
    usage = subprocess.run([sys.executable, program, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    flags = set(re.findall(r"--[a-z-]+", usage.stdout)) - {"--help"}
    assert flags <= set(re.findall(r"--[a-z-]+", README))
    assert flags


def test_the_pictures_and_files_that_the_readme_shows_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).is_file(), link
