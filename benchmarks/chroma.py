"""Compares the chroma of colored photographs with that of the originals, in the whole picture and at its border.

    python3 benchmarks/chroma.py FOLDER [--checkpoint FILE]

Prints ratios for two factors of ab: 1, and that of --saturation auto. The border is the outer 4 % of the picture on
each side, and the chroma error |predicted chroma - true chroma| there is divided by that of the rest. The prediction is
compared before colors outside sRGB are desaturated. `colorize.py --score` has the errors.
"""

import sys
from pathlib import Path

import common
import numpy as np

import colorize
from deepcolor.common.color import srgb_to_lab
from deepcolor.data.image_io import Photo, find_photos, open_image, read_file, read_photo
from deepcolor.inference.full_resolution import enlarge_ab, model_input, predict_ab

BORDER = 0.04  # of width and height
SIDE = 512  # larger photographs are compared at this size
COLUMNS = ("saturation", "chroma / true chroma", "border / rest, chroma error")


def compare(model: object, path: Path) -> np.ndarray:
    """Returns (2,4): for each factor chroma, true chroma, and chroma error at the border and in the rest."""
    picture = read_photo(open_image(read_file(path, path.parent))).on_white()
    picture.thumbnail((SIDE, SIDE))
    true_chroma = np.hypot(*np.moveaxis(srgb_to_lab(np.asarray(picture))[..., 1:], -1, 0))
    height, width = true_chroma.shape
    border = np.ones((height, width), bool)
    rows, columns = (max(1, round(BORDER * length)) for length in (height, width))
    border[rows:-rows, columns:-columns] = False
    seen = model_input(Photo(picture, None), model.margin, model.side)
    values = []
    for factor in (1.0, model.saturation):
        chroma = np.hypot(*enlarge_ab(predict_ab(model, seen.lightness, factor), seen, picture.size))
        error = np.abs(chroma - true_chroma)
        values.append([chroma.mean(), true_chroma.mean(), error[border].mean(), error[~border].mean()])
    return np.array(values)


def main() -> None:
    parser = common.parser("chroma.py", "Compares the chroma of colored photographs with the truth.")
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--checkpoint", metavar="FILE", type=Path, help="as for colorize.py")
    options = parser.parse_args()
    model = colorize.load(options.checkpoint)
    photos = [options.folder / name for name in find_photos(options.folder)]
    rows = []
    for factor, means in zip((1.0, model.saturation), np.mean([compare(model, path) for path in photos], axis=0)):
        chroma, true, border, rest = means
        rows.append([f"{factor:.2f}", f"{chroma / true:.2f}", f"{border / rest:.2f}"])
    print(f"{len(photos)} photographs\n", common.markdown(COLUMNS, rows), sep="\n")


if __name__ == "__main__":
    sys.exit(common.run("chroma.py", main))
