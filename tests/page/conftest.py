"""A small sweep, and its page in a process of its own."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import ROOT

import main


@pytest.fixture(scope="session")
def sweep(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a sweep with four colorizers and two regressors."""
    output = tmp_path_factory.mktemp("sweep")
    flags = "--device cpu --lr 0.003 --weight-decay 0 --epoch 1 3 --jobs 1 --seed 3"
    assert main.main(["--images", str(photos), "--output", str(output), *flags.split()]) == 0
    return output


@pytest.fixture(scope="session")
def start_page() -> Iterator[Callable[[Path], str]]:
    """Starts app.py for an output folder, and returns its address."""
    if find_spec("gradio") is None:
        pytest.skip("needs the package gradio (requirements-extra.txt)")
    processes = []

    def start(output: Path) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, str(ROOT / "app.py"), "--output", str(output), "--port", str(port)]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=output)
        processes.append(process)
        line = process.stdout.readline()
        assert f"http://127.0.0.1:{port}" in line, line
        return f"http://127.0.0.1:{port}"

    yield start
    for process in processes:
        process.terminate()
        assert process.wait(timeout=20) == 143


@pytest.fixture(scope="session")
def page(start_page: Callable[[Path], str], sweep: Path) -> str:
    return start_page(sweep)
