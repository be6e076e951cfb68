"""Helpers for tests that start the real program with torchrun."""

import re
from pathlib import Path

from helpers import ROOT
from survival import MAIN, Process

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def torchrun(*arguments: object, cwd: Path, program: Path = MAIN) -> Process:
    """Starts `torchrun --nproc-per-node=2 main.py ...`. Its ranks are in process groups of their own: see `ranks`."""
    return Process(*TORCHRUN, program, *arguments, cwd=cwd, program=Path("-m"))


def ranks(process: Process) -> list[int]:
    """Returns the pids of the ranks in order: torchrun starts one after the other."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    return sorted(int(pid) for children in tasks for pid in children.read_text().split())


def own_lines(process: Process) -> list[str]:
    """Returns the lines that the program wrote to stderr, without torchrun's report. Fails if it wrote a traceback.

    torchrun's report contains tracebacks too, of a virtual environment that can be inside the project's folder.
    """
    assert not re.search(rf'File "{re.escape(str(ROOT))}/(?!\.venv/)', process.stderr)
    return [line for line in process.stderr.splitlines() if "main.py: " in line]


def exit_codes(process: Process) -> list[int]:
    """Returns the exit codes of the ranks that failed, sorted, from torchrun's report."""
    return sorted(int(code) for code in re.findall(r"exitcode  : (-?\d+)", process.stderr))


def program(folder: Path, changes: str) -> Path:
    """Writes a main.py that executes `changes` before it starts, and returns its path."""
    path = folder / "main.py"
    path.write_text(
        f"import os, sys, time\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"import main\nfrom deepcolor.training.distributed import launch\n{changes}\n"
        "sys.exit(launch(lambda context: main.main(context=context)))\n"
    )
    return path
