"""A recording: every slice of an object over time, read from DICOM folders, numbered pictures or files with a time axis."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from r2n2_jax.errors import InputError
from r2n2_jax.io.dicom import OrderBy, find_dicom
from r2n2_jax.io.dicom_pixels import read_dicom_pixels, write_dicom_series
from r2n2_jax.io.dicom_series import read_dicom_series
from r2n2_jax.io.geometry import Geometry, pixel_grid
from r2n2_jax.io.images import PICTURES, Image, check_values, read_frames, read_image, write_image, write_picture
from r2n2_jax.io.stacks import MOVIES, TIFF, Layout, read_gif, read_layout, write_stack
from r2n2_jax.io.timing import share_times

Spacing = tuple[float, float]
NUMBERED = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class Recording:
    """Slices over time, or volumes, and how to write frames like them.

    Attributes:
        frames: ``[T, H, W]`` float32 a slice; of volumes one array, ``[T, D, H, W]``.
        geometries: of one frame of each slice, or of one volume.
        order: what the frames' order in time was taken from.
        times: seconds from the first frame, ``[T]`` a slice, or None where they are not known.
        spacing_known: False where the files hold none.
        write: ``(folder, frames)``: writes frames of the same shapes in the recording's own format; returns what it wrote. With
            the option ``spacing``, millimetres along ``(x, y)``, in the place of the recording's.
        shared_times: whether the frames of one number show all slices at one time, or at one phase of the motion.
        left_out: what else the files hold, in words.
        blank: the frames of each slice that cannot be registered: constant ones, and all of a slice without two others.
    """

    frames: list[np.ndarray]
    geometries: list[Geometry]
    order: str
    times: list[np.ndarray | None]
    spacing_known: bool
    write: Callable[..., Path]
    shared_times: bool = True
    left_out: Sequence[str] = ()
    blank: list[list[int]] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "blank", [_blank(frames) for frames in self.frames])

    @property
    def of_volumes(self) -> bool:
        """Whether it holds volumes and no slices."""
        return self.frames[0].ndim == 4

    @property
    def kept(self) -> list[np.ndarray]:
        """The numbers of each slice's frames that are not blank."""
        return [np.setdiff1d(np.arange(len(frames)), blank) for frames, blank in zip(self.frames, self.blank, strict=True)]

    def remarks(self) -> list[str]:
        """A line of what was left out, and one of the frames that are blank, where there is any."""
        blank, lines = self._describe_blank(), []
        if self.left_out:
            lines.append(f"left out: {'; '.join(self.left_out)}")
        if blank:
            lines.append(f"blank (every pixel the same), not registered: {blank}")
        return lines

    def _describe_blank(self) -> str:
        whole = [index for index, frames in enumerate(self.frames) if len(self.blank[index]) == len(frames)]
        slices = [f"slice {', '.join(map(str, whole))}"] if whole else []
        return "; ".join(
            slices
            + [
                f"frame {', '.join(map(str, numbers))}" + (f" of slice {index}" if len(self.frames) > 1 else "")
                for index, numbers in enumerate(self.blank)
                if numbers and index not in whole
            ]
        )

    def with_spacing(self, spacing: Spacing) -> "Recording":
        """The same with another spacing along ``(x, y)``, millimetres."""
        new = [one._replace(spacing=(*spacing, *one.spacing[2:])) for one in self.geometries]
        return dataclasses.replace(
            self, geometries=new, spacing_known=True, write=functools.partial(self.write, spacing=spacing)
        )


def read_recording(path: Path, *, order_by: OrderBy | None = None, channel: int | None = None) -> Recording:
    """Reads a folder of DICOM files or numbered pictures, or one file with the axes x, y, [slice,] frame.

    Args:
        path: the folder or file.
        order_by: the DICOM entry to order frames by, where it is ambiguous.
        channel: which one of a TIFF file of several.

    Raises:
        InputError: where nothing can be read, frames do not match each other, or their order is not known.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    recording = _read(path, order_by, channel)
    if all(len(blank) == len(frames) for blank, frames in zip(recording.blank, recording.frames, strict=True)):
        raise InputError(f"{path}: no two frames of a slice that are not blank (every pixel the same); they are needed")
    return recording


def _read(path: Path, order_by: OrderBy | None, channel: int | None) -> Recording:
    if path.suffix.lower() in MOVIES:
        raise InputError(f"{path}: a movie; numbered pictures are needed: ffmpeg -i {path.name} FOLDER/%05d.png makes them")
    layout = read_layout(path) if path.is_file() and path.suffix.lower() in TIFF else None
    if channel is not None and layout is None:
        raise InputError(f"{path}: --channel is for ImageJ's and OME's TIFF files of several channels; leave it out")
    dicom = find_dicom(path)
    if dicom:
        return _from_dicom(path, dicom, order_by)
    if order_by is not None:
        raise InputError(f"{path}: --order-by is for folders of DICOM files; nothing else needs it")
    if path.is_dir():
        return _from_pictures(path)
    if layout is not None:
        return _from_stack(path, layout, channel)
    return _from_gif(path) if path.suffix.lower() == ".gif" else _from_file(path)


def _from_dicom(path: Path, files: list[Path], order_by: OrderBy | None) -> Recording:
    slices, left_out = read_dicom_series(files, order_by=order_by)
    frames = [_checked(read_dicom_pixels(one.frames), f"{path}, slice {index}") for index, one in enumerate(slices)]

    def write(folder: Path, registered: Sequence[np.ndarray], *, spacing: Spacing | None = None) -> Path:
        (folder / "warped").mkdir()
        write_dicom_series(folder / "warped", slices, list(registered), description="registered", spacing=spacing)
        return folder / "warped"

    known = slices[0].frames[0].spacing is not None
    geometries, times = [one.geometry for one in slices], [one.times for one in slices]
    return Recording(frames, geometries, slices[0].order_by, times, known, write, share_times(slices), left_out)


def _from_file(path: Path) -> Recording:
    pixels, whole = read_frames(path)
    if path.suffix.lower() in PICTURES:
        whole = pixel_grid(whole.size[::-1])  # dots per inch say nothing of a body
    axes = len(whole.size) - 1
    direction = np.reshape(whole.direction, (axes + 1, axes + 1))[:axes, :axes]
    if not np.allclose(direction @ direction.T, np.eye(axes), atol=1e-3):
        raise InputError(
            f"{path}: its direction mixes space with the last axis, which is time here; a slice turned in space needs "
            "the axes x, y, slice, frame"
        )
    step = direction[:, -1] * whole.spacing[axes - 1] if axes == 3 else np.zeros(axes)
    geometries = []
    for index in range(pixels.shape[1]):
        origin = tuple(np.asarray(whole.origin[:axes]) + index * step)
        size = (*whole.size[:2], 1)[:axes]
        geometries.append(Geometry(size, whole.spacing[:axes], origin, tuple(direction.ravel())))

    def write(folder: Path, registered: Sequence[np.ndarray], *, spacing: Spacing | None = None) -> Path:
        suffix = "".join(path.suffixes[-2:]) if path.name.lower().endswith(".nii.gz") else path.suffix
        target = folder / f"warped{suffix.lower()}"
        new = (*(spacing or whole.spacing[:2]), *whole.spacing[2:])
        write_image(target, np.stack(registered, axis=1), whole._replace(spacing=new))
        return target

    # A time axis of spacing 1 is what a file without times is read with.
    interval = whole.spacing[-1]
    times = None if interval == 1.0 else interval * np.arange(len(pixels))
    split = [pixels[:, index] for index in range(pixels.shape[1])]
    return Recording(split, geometries, "the file", [times] * len(split), _is_known(whole.spacing), write)


def _from_stack(path: Path, layout: Layout, channel: int | None) -> Recording:
    count = layout.sizes["C"]
    if count > 1 and channel is None:
        names = ", ".join(f"{number} ({name})" for number, name in enumerate(layout.names)) or f"0 to {count - 1}"
        raise InputError(
            f"{path}: {count} channels ({names}) of {layout.sizes['T']} frames; one is registered: name it by --channel of "
            "register.py, or keep it in a file of its own"
        )
    if channel is not None and not 0 <= channel < count:
        raise InputError(f"{path}: --channel {channel}; it has the channels 0 to {count - 1}")
    pages, whole = read_frames(path)
    frames = pages[layout.pages(channel or 0), 0]
    spacing = whole.spacing[:2]
    order = "the file (its slices: it has no frames)" if layout.of_slices else "the file"
    times = None if layout.interval is None else layout.interval * np.arange(len(frames))
    return _of_pages(path, frames, spacing, order, times, layout.interval)


def _from_gif(path: Path) -> Recording:
    frames, times = read_gif(path)
    if len(frames) < 2:
        raise InputError(f"{path}: a picture of one frame; at least two are needed")
    interval = None if times is None else float(times[-1] / (len(times) - 1))
    return _of_pages(path, _checked(frames, str(path))[:, None], (1.0, 1.0), "the file", times, interval)


def _of_pages(
    path: Path, frames: np.ndarray, spacing: Spacing, order: str, times: np.ndarray | None, interval: float | None
) -> Recording:
    """Of ``[T, Z, H, W]`` that lie nowhere and are written as a TIFF file."""

    def write(folder: Path, registered: Sequence[np.ndarray], *, spacing: Spacing | None = None) -> Path:
        target = folder / f"warped{path.suffix.lower() if path.suffix.lower() in TIFF else '.tif'}"
        write_stack(target, np.stack(registered, axis=1), spacing=spacing or known, interval=interval)
        return target

    known = spacing if _is_known(spacing) else None
    geometry = pixel_grid(frames.shape[2:])._replace(spacing=spacing)
    slices = range(frames.shape[1])
    split = [frames[:, index] for index in slices]
    return Recording(split, [geometry for _ in slices], order, [times for _ in slices], known is not None, write)


def _from_pictures(path: Path) -> Recording:
    files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in NUMBERED and not file.name.startswith(".")]
    if len(files) < 2:
        raise InputError(
            f"{path}: {len(files)} pictures and no DICOM files; a folder of DICOM files or of numbered pictures "
            f"({', '.join(NUMBERED)}) of one series is needed"
        )
    numbers = _frame_numbers(files)
    for file, number in numbers.items():
        twin = next((other for other, n in numbers.items() if n == number and other != file), None)
        if twin is not None:
            raise InputError(f"{path}: {file.name} and {twin.name} are both frame {number}; every frame needs its own number")
    files.sort(key=lambda file: numbers[file])
    first = read_image(files[0], blank=True)
    frames, kinds = np.zeros((len(files), *first.pixels.shape), np.float32), []
    for index, file in enumerate(files):
        image = read_image(file, blank=True)
        _check_like(files[0], first, file, image)
        frames[index] = image.pixels
        kinds.append(image.kind)
    # Dots per inch, which some readers take for a spacing, say nothing of a body.
    geometry = pixel_grid(first.geometry.size[::-1])

    def write(folder: Path, registered: Sequence[np.ndarray], *, spacing: Spacing | None = None) -> Path:
        placed = geometry if spacing is None else geometry._replace(spacing=spacing)
        (folder / "warped").mkdir()
        for file, kind, pixels in zip(files, kinds, registered[0], strict=True):
            lossless = ".png" if file.suffix.lower() in (".jpg", ".jpeg", ".bmp") else file.suffix
            write_picture(folder / "warped" / f"{file.stem}{lossless}", pixels, kind, placed)
        return folder / "warped"

    return Recording([frames], [geometry], "the numbers in the names", [None], False, write)


def _is_known(spacing: Sequence[float]) -> bool:
    """Every format without spacing is read as 1 x 1."""
    return not np.allclose(spacing[:2], 1.0, rtol=1e-3)


def _frame_numbers(files: list[Path]) -> dict[Path, int]:
    """The last number in every file's name; where that is the same in all, the one before it."""
    found = {file: [int(digits) for digits in re.findall(r"\d+", file.stem)] for file in files}
    for file, numbers in found.items():
        if not numbers:
            raise InputError(f"{file}: no number in its name to order the frames by")
    places = range(1, min(map(len, found.values())) + 1)
    place = next((place for place in places if len({numbers[-place] for numbers in found.values()}) > 1), 1)
    return {file: numbers[-place] for file, numbers in found.items()}


def _check_like(first_file: Path, first: Image, file: Path, image: Image) -> None:
    if len(image.geometry.axes) != 2:
        raise InputError(f"{file}: {len(image.geometry.axes)}D; numbered pictures are 2D")
    for what in ("size", "spacing"):
        ours, theirs = getattr(first.geometry, what), getattr(image.geometry, what)
        if ours != theirs:
            raise InputError(f"{file}: {what} {theirs}, but {first_file.name} has {ours}; a series needs one {what}")


def _blank(frames: np.ndarray) -> list[int]:
    constant = [index for index, frame in enumerate(frames) if frame.min() == frame.max()]
    return constant if len(frames) - len(constant) > 1 else list(range(len(frames)))


def _checked(frames: np.ndarray, name: str) -> np.ndarray:
    for index, frame in enumerate(frames):
        check_values(frame, f"{name}, frame {index}")
    return frames
