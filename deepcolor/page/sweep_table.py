"""The results of a sweep for the page, which may still be running."""

import threading
from pathlib import Path

from PIL import Image

from deepcolor.data.image_io import Unreadable, open_image, read_file, read_photo
from deepcolor.reporting.results import SCORE_COLUMNS, SETTING_COLUMNS, ranked, to_rows
from deepcolor.training.checkpoint import find_models
from deepcolor.training.paths import RunPaths
from utils import format_value

_SCORES = "val_mse test_mse gray_mse mean_color_mse psnr ssim delta_e colorfulness verdict".split()


class SweepTable:
    """The finished runs below an output folder. `models` is read again when a checkpoint is written or deleted."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.paths = RunPaths(output)
        self._lock = threading.Lock()
        self._models: list[dict] = []
        self._signature: object = ()

    def models(self) -> list[dict]:
        """Returns the finished models, without their weights."""
        with self._lock:
            files = sorted(self.paths.checkpoints.glob("*/[!.]*.pt"))
            signature = [(path, path.lstat().st_mtime_ns) for path in files if path.exists()]
            if signature != self._signature:
                self._models, self._signature = find_models(self.paths)[0], signature
            return self._models

    def table(self) -> tuple[list[str], list[list]]:
        """Returns the headers and the rows: of each network the lowest validation error first, diverged runs last.

        The last cell of a row is its checkpoint, which `details` takes.
        """
        rows = to_rows(self.models())
        if not rows:
            return ["rank"], []
        further = [column for column in rows[0] if column not in (*SETTING_COLUMNS, *SCORE_COLUMNS)]
        columns = [*SETTING_COLUMNS, *further, "seed", *_SCORES, "checkpoint"]
        cells = []
        for network in ("colorizer", "regressor"):
            members = [row for row in rows if row["network"] == network]
            best_first = ranked(members)
            best_first += [row for row in members if row not in best_first]
            cells += [[rank, *map(_cell, map(row.get, columns))] for rank, row in enumerate(best_first, 1)]
        return ["rank", *(column.replace("_", " ") for column in columns)], cells

    def details(self, checkpoint: str) -> tuple[Image.Image | None, Image.Image | None, list[list[str]]]:
        """Returns the triplets, the loss plot and the settings and scores of a run, or None for what is missing."""
        model = next((each for each in self.models() if each["metrics"]["checkpoint"] == checkpoint), None)
        if model is None:
            return None, None, []
        names = [model[key] for key in ("network", "activation", "run")]
        pictures = (self._picture(self.paths.plot(*names, what)) for what in ("triplets.png", "loss.png"))
        values = {**model["hyperparameters"], **model["metrics"], **model.get("versions", {})}
        return *pictures, [[name, format_value(value)] for name, value in values.items() if name != "test_means"]

    def _picture(self, path: Path) -> Image.Image | None:
        """Returns a picture of the sweep. A link that leads out of the output folder is not followed."""
        try:
            return read_photo(open_image(read_file(path, self.output))).on_white()
        except Unreadable:
            return None


def _cell(value: object) -> object:
    """Returns numbers as numbers, so that the page sorts them, and everything else as text."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value if isinstance(value, int) else format_value(value)
