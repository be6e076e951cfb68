"""Ranks of the real program, as torchrun starts them or by hand, and what they say."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from helpers import ROOT
from survival import MAIN, Process

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def torchrun(*arguments: object, cwd: Path, program: Path = MAIN) -> Process:
    """`torchrun --nproc-per-node=2 main.py …`, whose ranks are sessions of their own: see `ranks`."""
    return Process(*TORCHRUN, program, *arguments, cwd=cwd, program=Path("-m"))


def ranks(process: Process) -> dict[int, int]:
    """rank -> process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            parent = int(path.with_name("stat").read_text().rpartition(")")[2].split()[1])
            variables = dict(entry.partition("=")[::2] for entry in path.read_text().split("\0"))
        except (OSError, ValueError):  # it has just ended, or is not ours
            continue
        if parent == process.pid and "RANK" in variables:
            found[int(variables["RANK"])] = int(path.parent.name)
    return found


def own_lines(process: Process) -> list[str]:
    """What the program itself wrote to stderr: torchrun adds a report of its own, which has a traceback."""
    assert f'File "{ROOT}' not in process.stderr
    return [line for line in process.stderr.splitlines() if "main.py: " in line]


def program(path: Path, changes: str) -> Path:
    """main.py as torchrun starts it, but for some changes."""
    head = f"import os, sys, time\nsys.path.insert(0, {str(ROOT)!r})\nimport main\nfrom Distributed import launch\n"
    path.write_text(f"{head}{changes}\nsys.exit(launch(lambda context: main.main(context=context)))\n")
    return path


def by_hand(*arguments: object, cwd: Path, program: Path = MAIN) -> list[subprocess.CompletedProcess]:
    """What two ranks come to that are started without torchrun, which hides their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, program, *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, **context, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in ("0", "1")
    ]
    said = [[stream.decode() for stream in process.communicate(timeout=120)] for process in started]
    return [subprocess.CompletedProcess(p.args, p.returncode, *texts) for p, texts in zip(started, said)]
