"""SIGKILL at random instants: the same command, started again until it is through, ends with the undisturbed result."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from helpers import ROOT
from survival import MAIN, Process, Undisturbed, alive, figure, losses, wait_until

pytest_plugins = ["survival"]

LANES = ((1, 9), (1, 8), (2, 3))  # --jobs, and the instants at which it is killed; two lanes at a time

HASTY = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import Constants
Constants.SAVE_SECONDS = 0.05
import main
if __name__ == "__main__":
    sys.exit(main.main())
"""


@dataclass
class Lane:
    """Runs that are killed and started again, one after the other; a folder that is finished is followed by another."""

    folder: Path
    command: list[str]
    jobs: int
    hasty: Path
    kills: int = 0
    workers: set[int] = field(default_factory=set)
    finished: list[Path] = field(default_factory=list)

    def start(self) -> Process:
        # Every other time the program that saves its state all the time, so that instants fall into the saving.
        program = self.hasty if self.kills % 2 else MAIN
        output = self.folder / f"out{len(self.finished)}"
        return Process(*self.command, "--jobs", self.jobs, "--output", output, cwd=self.folder, program=program)

    def kill_at(self, delays: list[float]) -> None:
        for delay in delays:
            while not self._killed(delay):
                pass
        with self.start() as process:
            self._check_end(process)

    def _killed(self, delay: float) -> bool:
        """Whether the run was still at work after so many seconds, and then was killed."""
        with self.start() as process:
            process.wait_until_working()
            if self.jobs > 1:
                wait_until(lambda: process.workers() or process.ended())
            if wait_until(process.ended, delay):
                self._check_end(process)
                return False
            self.workers.update(process.workers())
            # Now and then the first process alone, with which its workers have to end by themselves.
            process.kill(group=self.kills % 3 == 0)
            self.kills += 1
            return True

    def _check_end(self, process: Process) -> None:
        assert process.finish() == 0, process.stderr
        assert "left out" not in process.stdout + process.stderr
        self.finished.append(self.folder / f"out{len(self.finished)}")


def instants(count: int, seconds: float, seed: int) -> list[float]:
    """Random ones, one in each part of the duration, in a random order."""
    draw = random.Random(seed)
    delays = [(number + draw.random()) / count * seconds for number in range(count)]
    draw.shuffle(delays)
    return delays


def test_a_run_that_is_killed_at_random_instants_loses_nothing(undisturbed: Undisturbed, tmp_path: Path) -> None:
    hasty = tmp_path / "hasty.py"
    hasty.write_text(HASTY)
    lanes = [Lane(tmp_path / f"lane{n}", undisturbed.command, jobs, hasty) for n, (jobs, _) in enumerate(LANES)]
    with ThreadPoolExecutor(2) as pool:
        delays = [instants(count, 0.8 * undisturbed.seconds / jobs, seed) for seed, (jobs, count) in enumerate(LANES)]
        for done in [pool.submit(lane.kill_at, part) for lane, part in zip(lanes, delays)]:
            done.result()
    kills = sum(lane.kills for lane in lanes)
    outputs = [output for lane in lanes for output in lane.finished]
    lost = {str(output): names for output in outputs if (names := losses(output, undisturbed.files))}
    files = len(outputs) * len(undisturbed.files)
    figure(
        f"SIGKILL: {kills} instants in {len(outputs)} runs; {files} files compared; "
        f"{sum(map(len, lost.values()))} losses"
    )
    assert kills == sum(count for _, count in LANES)
    assert not lost
    workers = {pid for lane in lanes for pid in lane.workers}
    assert wait_until(lambda: not any(map(alive, workers)), 10), "a worker outlived the run that it belonged to"
