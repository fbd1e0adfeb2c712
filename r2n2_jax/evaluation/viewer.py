"""A viewer inside a page: sliders for slice and frame, and the fixed image flickering with each frame, without any network."""

import base64
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from r2n2_jax.evaluation import html
from r2n2_jax.evaluation.figures import grey_window

_PAGE = Path(__file__).with_name("viewer.html")
_SIDES = (256, 224, 192, 160, 128)
_QUALITY = 70
_SAMPLE = 4


class Viewed(NamedTuple):
    """One slice to look at.

    Attributes:
        frames: ``[T, H, W]``.
        warped: the same frames, registered.
        fixed: index of the fixed frame; None where there is none: the frames are shown in its place.
        aspect: height of a pixel over its width.
        captions: a line a frame.
        statuses: a word a frame.
        what: "slice" or "plane".
        place: which one it is.
    """

    frames: np.ndarray
    warped: np.ndarray
    fixed: int | None
    aspect: float
    captions: list[str]
    statuses: list[str]
    what: str = "slice"
    place: str = ""


class Scale(NamedTuple):
    """How much of the images is embedded: their longest ``side`` in pixels, and one frame of every ``stride``."""

    side: int
    stride: int


def viewer(slices: list[Viewed], *, most_bytes: int) -> Iterator[str]:
    """The parts of a page that make up the viewer.

    Args:
        slices: of the same number of frames.
        most_bytes: that the images may take, about; for few they are smaller, then fewer.
    """
    scale = fitting_scale(slices, most_bytes)
    data = json.dumps([_embedded(one, scale) for one in slices]).replace("<", "\\u003c")
    yield html.heading("Look at every frame")
    yield _PAGE.read_text(encoding="utf-8").replace("DATA", data, 1)
    longest = max(max(_size(one, np.inf)) for one in slices)
    said = [f"the images have at most {scale.side} pixels a side"] if scale.side < longest else []
    said += [f"one frame of every {scale.stride} is here"] if scale.stride > 1 else []
    if said:
        yield html.paragraph(f"To keep this page small, {' and '.join(said)}.")


def fitting_scale(slices: list[Viewed], most_bytes: int) -> Scale:
    """The largest images that fit, judged by a few of them; where the smallest do not, every second frame, or third."""
    sides, strides = ((side, 1) for side in _SIDES), ((_SIDES[-1], stride) for stride in itertools.count(2))
    for scale in itertools.starmap(Scale, itertools.chain(sides, strides)):
        if scale.stride >= len(slices[0].frames) or _estimate(slices, scale) <= most_bytes:
            return scale
    raise AssertionError("strides have no end")


def _estimate(slices: list[Viewed], scale: Scale) -> float:
    """About how many characters the images take."""
    total = 0.0
    for one in slices:
        some = np.unique(np.linspace(0, len(one.frames) - 1, _SAMPLE).round().astype(int))
        pictures = [picture for array in (one.frames, one.warped) for picture in _pictures(one, array[some], scale.side)]
        total += np.mean([len(picture) for picture in pictures]) * (1 + 2 * -(-len(one.frames) // scale.stride))
    return total


def _embedded(one: Viewed, scale: Scale) -> dict:
    numbers = range(0, len(one.frames), scale.stride)
    fixed = None if one.fixed is None else next(_pictures(one, one.frames[one.fixed][None], scale.side))
    return {
        "what": one.what,
        "place": one.place,
        "numbers": list(numbers),
        "total": len(one.frames),
        "fixed": fixed,
        "fixedNumber": one.fixed,
        "before": list(_pictures(one, one.frames[:: scale.stride], scale.side)),
        "after": list(_pictures(one, one.warped[:: scale.stride], scale.side)),
        "captions": [one.captions[number] for number in numbers],
        "statuses": [one.statuses[number] for number in numbers],
    }


def _pictures(one: Viewed, frames: np.ndarray, side: int) -> Iterator[str]:
    """JPEGs in base64, all in the grey values of the slice's own frames."""
    low, high = grey_window(one.frames)
    for frame in frames:
        grey = np.clip((frame - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
        image, buffer = PIL.Image.fromarray(grey), io.BytesIO()
        image.resize(_size(one, side), PIL.Image.Resampling.BILINEAR).save(buffer, format="JPEG", quality=_QUALITY)
        yield base64.b64encode(buffer.getvalue()).decode()


def _size(one: Viewed, side: float) -> tuple[int, int]:
    """Width and height in square pixels, none longer than ``side``."""
    height, width = one.frames.shape[1] * one.aspect, one.frames.shape[2]
    zoom = min(1.0, side / max(height, width))
    return max(1, round(zoom * width)), max(1, round(zoom * height))
