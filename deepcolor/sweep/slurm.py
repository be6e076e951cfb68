"""What a cluster's scheduler adds: a sweep divided into parts, and a job that goes back into the queue."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from deepcolor.common import signals
from deepcolor.training.config import TrainingRun

_SECONDS_TO_REQUEUE = 60  # what the scheduler may take to answer


@dataclass(frozen=True)
class Part:
    """One of `count` parts of a plan, from 0 on: the training runs whose number is `number` modulo `count`."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """ "2/5" -> Part(2, 5). Raises ValueError for anything else."""
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
        if found is None or int(found[1]) >= int(found[2]):
            raise ValueError(f"I/N with 0 <= I < N, such as 0/4; not '{text}'")
        return cls(int(found[1]), int(found[2]))

    def of(self, numbered: Mapping[int, TrainingRun]) -> dict[int, TrainingRun]:
        """This part of a plan: number -> training run. Every training run is in exactly one of the parts."""
        return {number: each for number, each in numbered.items() if number % self.count == self.number}

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def requeued() -> bool:
    """Whether this process belongs to a job that Slurm has started again: what is there, the job itself has left."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")


def end_stopped(number: int, first: bool = True) -> int:
    """Says how a run goes on that a signal has stopped and that has saved itself, and returns its exit code.

    SIGUSR1 says that a job's time is nearly over: one of Slurm's goes back into the queue, and continues from there.
    Of several ranks only the `first` speaks and acts.
    """
    if not first:
        return 128 + number
    job = _job() if number == signal.SIGUSR1 else ""
    if not job:
        print(f"main.py: {signals.STOPPED_MESSAGE}", file=sys.stderr)
        return 128 + number
    # What it requeues, Slurm ends with SIGTERM, of which scontrol inherits that it is to be ignored.
    for late in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(late, signal.SIG_IGN)
    if reason := _requeue(job):
        print(f"main.py: saved, but Slurm does not requeue job {job}: {reason}; submit it again", file=sys.stderr)
        return 1
    print(f"main.py: the time is nearly over: saved, and job {job} is in the queue again to go on", file=sys.stderr)
    return 128 + number


def _job() -> str:
    """The name of this job of Slurm, "" outside. The number of an array's last task means the whole array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID", "")


def _requeue(job: str) -> str:
    """Has Slurm put the job back into the queue; returns why it did not, "" if it did."""
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=_SECONDS_TO_REQUEUE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    return " ".join((done.stderr or done.stdout).split()) or f"scontrol ends with {done.returncode}"
