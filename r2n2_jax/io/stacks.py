"""Stacks of pictures in one file, by Pillow: what ImageJ and OME say of a TIFF file's pages, GIF movies, grey with alpha."""

import contextlib
import re
import struct
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from r2n2_jax.errors import InputError

MOVIES = (".avi", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".wmv", ".mpg", ".mpeg")
TIFF = (".tif", ".tiff")

_DESCRIPTION = 270
_GREY_AND_ALPHA = 4  # of a PNG file
_LUMA = (0.299, 0.587, 0.114)  # Rec. 601, as of pictures
_SECONDS = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "min": 60.0, "h": 3600.0}
_BROKEN = (
    *(OSError, EOFError, ValueError, SyntaxError, AttributeError, IndexError, struct.error),
    Image.DecompressionBombError,
)


class Layout(NamedTuple):
    """What the pages of a TIFF file are.

    Attributes:
        order: the axes C (channel), Z (slice) and T (frame), the one that changes fastest first.
        sizes: how many there are of each, by its letter.
        names: of the channels, where the file has them.
        interval: seconds between frames, or None.
        of_slices: whether the frames are what the file calls slices, for it has no others.
    """

    order: str
    sizes: dict[str, int]
    names: Sequence[str] = ()
    interval: float | None = None
    of_slices: bool = False

    def pages(self, channel: int) -> np.ndarray:
        """The numbers of a channel's pages, ``[T, Z]``."""
        slowest_first = self.order[::-1]
        numbers = np.arange(np.prod(list(self.sizes.values()))).reshape([self.sizes[axis] for axis in slowest_first])
        return np.transpose(numbers, [slowest_first.index(axis) for axis in "CTZ"])[channel]


def count_pages(path: Path) -> int:
    """How many pages a TIFF file has; 0 where Pillow does not know its kind."""
    try:
        with _opened(path) as picture:
            return getattr(picture, "n_frames", 1)
    except _BROKEN:
        return 0


def read_layout(path: Path) -> Layout | None:
    """What a TIFF file says of its pages; None where it says nothing.

    Raises:
        InputError: where the file has other pages than it says.
    """
    try:
        with _opened(path) as picture:
            text = str(picture.tag_v2.get(_DESCRIPTION, ""))
    except _BROKEN:
        return None
    if text.startswith("ImageJ="):
        layout = _of_imagej(text)
    elif "<OME" in text:
        layout = _of_ome(path, text)
    else:
        return None
    told, pages = int(np.prod(list(layout.sizes.values()))), count_pages(path)
    if told != pages:
        raise InputError(f"{path}: says that it has {told} pages, and has {pages}; save it as one whole TIFF file of pages")
    if layout.sizes["T"] == 1:
        sizes = {"C": layout.sizes["C"], "T": layout.sizes["Z"], "Z": 1}
        layout = layout._replace(order=layout.order.translate(str.maketrans("ZT", "TZ")), sizes=sizes, of_slices=True)
    return layout


def read_gif(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The luminance of a GIF movie's frames ``[T, H, W]`` float32, and their times in seconds, where it has any.

    Raises:
        InputError: where it cannot be read.
    """
    frames, seconds = [], []
    try:
        with _opened(path) as movie:
            for number in range(movie.n_frames):
                movie.seek(number)
                frames.append((np.asarray(movie.convert("RGB")) @ _LUMA).astype(np.float32))
                seconds.append(1e-3 * movie.info.get("duration", 0))
    except _BROKEN as error:
        raise InputError(f"{path}: not an image that can be read (truncated, or not a GIF)") from error
    times = np.cumsum([0.0, *seconds[:-1]])
    return np.stack(frames), times if all(seconds[:-1]) else None


def read_without_alpha(path: Path) -> np.ndarray | None:
    """The grey values of a PNG picture of grey and alpha, which ITK does not read; None of any other file.

    Raises:
        InputError: where they are of 16 bits, which Pillow cuts to 8.
    """
    if path.suffix.lower() != ".png" or not path.is_file():
        return None
    with path.open("rb") as file:
        bits, kind = file.read(26)[24:].ljust(2, b"\0")
    if kind != _GREY_AND_ALPHA:
        return None
    if bits > 8:
        raise InputError(f"{path}: grey of {bits} bits with alpha; save it without alpha")
    try:
        with _opened(path) as picture:
            return np.asarray(picture.convert("LA"))[..., 0]
    except _BROKEN:
        return None


def write_stack(
    path: Path, frames: np.ndarray, *, spacing: tuple[float, float] | None = None, interval: float | None = None
) -> None:
    """Writes ``[T, Z, H, W]`` float32 as a TIFF file whose pages ImageJ and ``read_layout`` know apart.

    Args:
        path: the file.
        frames: what is written.
        spacing: millimetres along ``(x, y)``.
        interval: seconds between frames.
    """
    count, slices = frames.shape[:2]
    text = f"ImageJ=1.54f\nimages={count * slices}\nslices={slices}\nframes={count}\nhyperstack=true\nmode=grayscale\n"
    text += "" if interval is None else f"finterval={interval:.9g}\n"
    # Pixels a centimetre: of the units of a TIFF file the one that every reader knows.
    placed = (
        {} if spacing is None else {"resolution_unit": "cm", "x_resolution": 10 / spacing[0], "y_resolution": 10 / spacing[1]}
    )
    first, *others = (Image.fromarray(page) for page in frames.reshape(-1, *frames.shape[2:]).astype(np.float32))
    first.save(path, format="TIFF", save_all=True, append_images=others, description=text, **placed)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A file without Pillow's warnings: whether it is whole is asked where its pixels are read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as picture:
            yield picture


def _of_imagej(text: str) -> Layout:
    """ImageJ's lines ``name=value``; its pages run through the channels first, then the slices."""
    told = dict(line.split("=", 1) for line in text.split("\n") if "=" in line)
    sizes = {axis: _count(told.get(name)) for axis, name in (("C", "channels"), ("Z", "slices"), ("T", "frames"))}
    if set(sizes.values()) == {1}:
        sizes["T"] = _count(told.get("images"))
    return Layout("CZT", sizes, interval=_interval(told.get("finterval"), told.get("tunit", "s")))


def _of_ome(path: Path, text: str) -> Layout:
    try:
        pixels = ElementTree.fromstring(re.sub(r"^\s*<\?xml.*?\?>", "", text)).find(".//{*}Pixels")
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: its OME description is broken ({error}); save it as TIFF again") from error
    if pixels is None:
        raise InputError(f"{path}: its OME description has no Pixels; name the file that holds the pages")
    channels = pixels.findall("{*}Channel")
    samples = max((_count(channel.get("SamplesPerPixel")) for channel in channels), default=1)
    sizes = {axis: _count(pixels.get(f"Size{axis}")) for axis in "CZT"}
    sizes["C"] = max(sizes["C"] // samples, 1)
    names = [channel.get("Name", "") for channel in channels]
    interval = _interval(pixels.get("TimeIncrement"), pixels.get("TimeIncrementUnit", "s"))
    order = pixels.get("DimensionOrder", "XYCZT")[2:]
    return Layout(order if sorted(order) == list("CTZ") else "CZT", sizes, names if all(names) else (), interval)


def _count(value: str | None) -> int:
    return int(value) if value and value.strip().isdigit() and int(value) else 1


def _interval(value: str | None, unit: str) -> float | None:
    try:
        seconds = float(value or 0) * _SECONDS[unit]
    except (ValueError, KeyError):
        return None
    return seconds if 0 < seconds < np.inf else None
