"""Draws a sheet of photographs: gray, colored and original.

    python3 benchmarks/sheet.py PHOTO ... --output FILE [--checkpoint FILE] [--columns N]

Each photograph is colored at its full size, as colorize.py does without flags, and then made smaller for the sheet.
"""

import sys
from pathlib import Path

import common
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import colorize
from deepcolor.common.color import lightness_to_gray, srgb_to_lightness
from deepcolor.data.image_io import open_image, read_file, read_photo
from deepcolor.inference.full_resolution import colorize_photo

HEIGHT, WIDTH = 150, 225  # of each picture, at most
GAP = 6
LABELS = ("gray", "colored", "original")


def triplet(model: object, path: Path) -> list[Image.Image]:
    """Returns the three versions of a photograph, in the size of the sheet."""
    photo = read_photo(open_image(read_file(path, path.parent)))
    original = photo.on_white()
    colored = colorize_photo(model, photo).convert("RGB")
    gray = Image.fromarray(lightness_to_gray(100 * srgb_to_lightness(np.asarray(original)))).convert("RGB")
    pictures = [gray, colored, original]
    for picture in pictures:
        picture.thumbnail((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    return pictures


def sheet(triplets: list[list[Image.Image]], columns: int) -> Image.Image:
    """Returns the triplets from left to right and from top to bottom, below a line of labels."""
    step = len(LABELS) * (WIDTH + GAP) + 2 * GAP
    rows = -(-len(triplets) // columns)
    page = Image.new("RGB", (columns * step - 3 * GAP, 20 + rows * (HEIGHT + GAP)), "white")
    draw = ImageDraw.Draw(page)
    for number, pictures in enumerate(triplets):
        row, column = divmod(number, columns)
        for index, (label, picture) in enumerate(zip(LABELS, pictures)):
            left, top = column * step + index * (WIDTH + GAP), 20 + row * (HEIGHT + GAP)
            page.paste(picture, (left + (WIDTH - picture.width) // 2, top + (HEIGHT - picture.height) // 2))
            if row == 0:
                draw.text((left + WIDTH / 2, 10), label, "black", ImageFont.load_default(13), "mm")
    return page


def main() -> None:
    parser = common.parser("sheet.py", "Draws photographs in gray, colored and original.")
    parser.add_argument("photos", metavar="PHOTO", nargs="+", type=Path)
    parser.add_argument("--output", metavar="FILE", type=Path, required=True, help="the sheet, a JPEG or PNG file")
    parser.add_argument("--checkpoint", metavar="FILE", type=Path, help="as for colorize.py")
    parser.add_argument("--columns", metavar="N", type=common.at_least_one, default=2, help="triplets in a row (2)")
    options = parser.parse_args()
    model = colorize.load(options.checkpoint)
    triplets = [triplet(model, path) for path in options.photos]
    sheet(triplets, options.columns).save(options.output, quality=88)


if __name__ == "__main__":
    sys.exit(common.run("sheet.py", main))
