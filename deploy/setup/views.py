"""Makes twelve views of a photograph: pieces of it, mirrored, turned, grey, dark, small.

They are for checking that two programs give the same answers, on pictures that differ in size, shape, colour and content;
for telling how right a model is they would be too few and too alike. A view is at most 400 px long and is stored as PNG,
which decodes to the same pixels everywhere. Pillow makes them; its resampling is exact integer arithmetic.

    usage: views.py SOURCE NAME FOLDER        writes FOLDER/NAME-<view>.png
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageOps

# Longest side of a view, px: larger than what a classifier sees, small enough for 240 of them.
LONGEST = 400
# Shorter side of the small view, px: it has to be enlarged to be seen.
SMALL = 150


def crop(left: float, top: float, side: float) -> Callable[[Image.Image], Image.Image]:
    """A piece: where it begins and how long it is, as parts of the whole."""

    def cut(photo: Image.Image) -> Image.Image:
        width, height = photo.size
        box = (left * width, top * height, (left + side) * width, (top + side) * height)
        return photo.crop(tuple(round(edge) for edge in box))

    return cut


def small(photo: Image.Image) -> Image.Image:
    scale = SMALL / min(photo.size)
    return photo.resize([round(side * scale) for side in photo.size], Image.Resampling.BICUBIC)


VIEWS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "whole": Image.Image.copy,
    "mirrored": ImageOps.mirror,
    "top-left": crop(0, 0, 0.6),
    "top-right": crop(0.4, 0, 0.6),
    "bottom-left": crop(0, 0.4, 0.6),
    "bottom-right": crop(0.4, 0.4, 0.6),
    "centre": crop(0.25, 0.25, 0.5),
    "centre-mirrored": lambda photo: ImageOps.mirror(crop(0.15, 0.2, 0.7)(photo)),
    "turned": lambda photo: photo.transpose(Image.Transpose.ROTATE_90),
    "grey": ImageOps.grayscale,
    "dark": lambda photo: photo.point(lambda value: value // 2),
    "small": small,
}


def make(source: Path, name: str, folder: Path) -> None:
    """Writes every view of one photograph."""
    with Image.open(source) as opened:
        photo = opened.convert("RGB")
    for view, look in VIEWS.items():
        picture = look(photo)
        picture.thumbnail((LONGEST, LONGEST), Image.Resampling.BICUBIC, reducing_gap=None)
        picture.save(folder / f"{name}-{view}.png")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: views.py SOURCE NAME FOLDER")
    make(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
