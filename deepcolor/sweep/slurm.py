"""What is particular to a Slurm job: it goes back into the queue, and array tasks do not wait for each other."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from deepcolor.common.signals import STOP_SIGNALS, STOPPED_MESSAGE

_REQUEUE_SECONDS = 60  # that the scheduler may take to answer
_SIGUSR1 = getattr(signal, "SIGUSR1", None)  # Windows does not have it


def is_array_task() -> bool:
    return bool(os.environ.get("SLURM_ARRAY_JOB_ID"))


def restart_time(folder: Path) -> float:
    """Returns when `--restart` was asked for: files older than this do not count.

    All tasks of an array, and a requeued job, share the time at which the job first started.
    """
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    marker = folder / (f"restart-{job}" if job else "restart")
    if not (job and marker.exists()):
        marker.touch()
    return marker.stat().st_mtime


def report_stop(number: int, is_main_process: bool = True) -> int:
    """Prints how a stopped and saved run continues, and returns the exit code.

    SIGUSR1 means that the time limit of a job is near: a Slurm job requeues itself. Only the main process prints and
    requeues.
    """
    if not is_main_process:
        return 128 + number
    job = _job_name() if number == _SIGUSR1 else ""
    if not job:
        print(f"main.py: {STOPPED_MESSAGE}", file=sys.stderr)
        return 128 + number
    # Slurm ends a requeued job with SIGTERM, which scontrol inherits as ignored.
    for late in STOP_SIGNALS:
        signal.signal(late, signal.SIG_IGN)
    if reason := _requeue(job):
        print(f"main.py: saved, but Slurm does not requeue job {job}: {reason}; submit it again", file=sys.stderr)
        return 1
    print(f"main.py: time limit near: saved, and requeued job {job}, which continues from here", file=sys.stderr)
    return 128 + number


def _job_name() -> str:
    """Returns the id of this Slurm job, or "" outside Slurm. The id of an array's last task is that of the array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID", "")


def _requeue(job: str) -> str:
    """Asks Slurm to requeue the job. Returns why it did not, or ""."""
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=_REQUEUE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    return " ".join((done.stderr or done.stdout).split()) or f"scontrol exited with {done.returncode}"
