"""Image files in and out, by SimpleITK: arrays are ``[*spatial]`` float32 in array order."""

import contextlib
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from r2n2_jax.errors import InputError
from r2n2_jax.io.geometry import Geometry, pixel_grid, to_physical_mm
from r2n2_jax.io.stacks import read_without_alpha
from r2n2_jax.io.whole import check_whole, count_not_finite, nifti_shape, sheared_angle


class Image(NamedTuple):
    """One image and where it lies.

    Attributes:
        pixels: ``[*spatial]`` float32, axes of one pixel dropped.
        geometry: of the file; of an array, its pixels.
        name: what messages call it: the file's path, where there is one.
        kind: the type of the file's own pixels.
        is_array: whether it is a bare array, which lies nowhere.
    """

    pixels: np.ndarray
    geometry: Geometry
    name: str
    kind: np.dtype = np.dtype(np.float32)
    is_array: bool = False


LEAST_SLICES = 6
_LEAST_PIXELS = {2: 8, 3: LEAST_SLICES}  # along every axis: a stack may have few slices
_VALUES_AT_ONCE = 1 << 23  # of a long file: compressed ones are decoded from their beginning for every part

ImageLike = np.ndarray | sitk.Image | Image
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def read_image(path: Path, *, blank: bool = False) -> Image:
    """Reads one 2D or 3D image of any format that SimpleITK knows; colour becomes luminance.

    Args:
        path: the file.
        blank: let a constant image through.

    Raises:
        InputError: where the file is missing, not an image, a series, not finite, or constant.
    """
    image = _read(path)
    kind = sitk.GetArrayViewFromImage(image).dtype
    if image.GetNumberOfComponentsPerPixel() in (3, 4):
        red, green, blue = (sitk.Cast(sitk.VectorIndexSelectionCast(image, channel), sitk.sitkFloat32) for channel in range(3))
        # Rec. 601 luma; a grey picture stored as colour comes out unchanged.
        image = 0.299 * red + 0.587 * green + 0.114 * blue
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{path}: {image.GetNumberOfComponentsPerPixel()} values per pixel; a grey or RGB image is needed")
    # Dots per inch, which some readers take for a spacing, say nothing of a body.
    is_picture = path.suffix.lower() in PICTURES
    geometry = pixel_grid(image.GetSize()[::-1]) if is_picture else _geometry(image)
    if len(geometry.axes) not in (2, 3):
        raise InputError(f"{path}: an image of size {image.GetSize()}; a 2D or 3D image is needed")
    pixels = sitk.GetArrayFromImage(image).astype(np.float32).reshape(geometry.shape)
    if len(geometry.axes) == 3 and min(geometry.shape) < _LEAST_PIXELS[3]:
        raise InputError(f"{path}: a volume of size {geometry.size}, x, y, slice; take one of its slices")
    (check_values if blank else check_pixels)(pixels, str(path))
    return Image(pixels, geometry, str(path), kind)


def read_values(path: Path) -> np.ndarray:
    """A file's values as they are, in array order.

    Raises:
        InputError: where it is not an image that can be read.
    """
    return sitk.GetArrayFromImage(_read(path))


def read_frames(path: Path) -> tuple[np.ndarray, Geometry]:
    """Reads a 2D+t file: axes x, y, slice, frame, or x, y, frame.

    Returns:
        ``[frames, slices, H, W]`` float32, and the file's geometry with time as its last axis.

    Raises:
        InputError: where the file is missing, not an image, not 2D+t, has fewer than two frames, or bad pixels.
    """
    reader, geometry, shape = _open_2d_t(path)
    pixels = np.zeros(shape, np.float32)
    for first, part in _parts(path, reader, shape):
        for frame, slice_ in np.ndindex(part.shape[:2]):
            pixels[first + frame, slice_] = part[frame, slice_]
            check_values(pixels[first + frame, slice_], f"{path} (slice {slice_}, frame {first + frame})")
    return pixels, geometry


def read_labels(path: Path) -> np.ndarray:
    """Reads the labels of a 2D+t file's pixels, as ``read_frames`` reads their intensities.

    Returns:
        ``[frames, slices, H, W]`` int32; 0 is background.

    Raises:
        InputError: where the file is missing, not an image, not 2D+t, or holds other numbers than 0, 1, 2, ...
    """
    reader, _, shape = _open_2d_t(path)
    labels = np.concatenate([part for _, part in _parts(path, reader, shape)])
    if (labels < 0).any() or (labels != np.floor(labels)).any():
        raise InputError(f"{path}: not labels; a mask holds whole numbers, 0 the background, 1, 2, ... the organs")
    return labels.astype(np.int32)


def read_mask(path: Path, geometries: Sequence[Geometry], *, needed: Sequence[bool] | None = None) -> list[np.ndarray]:
    """Reads the mask of one image or of a recording's slices: bool arrays, True where the file is not zero.

    Args:
        path: an image file; axes of one pixel may be missing.
        geometries: of the images it belongs to.
        needed: the slices that it must say something of; by default all.

    Raises:
        InputError: where the file is missing, not an image, of another size, zero in all of a slice, or lies elsewhere.
    """
    image = _read(path)
    values, first = sitk.GetArrayFromImage(image), geometries[0]
    shape = (len(geometries), *first.shape)
    if [n for n in values.shape if n > 1] != [n for n in shape if n > 1]:
        asked = (*first.size[:2], *((len(geometries),) if len(geometries) > 1 else first.size[2:]))
        raise InputError(f"{path}: a mask of size {image.GetSize()}; what it belongs to has {asked}")
    own = _geometry(image)
    if own.is_placed and first.is_placed and len(own.size) == len(first.size):
        near = np.allclose(own.origin, first.origin, rtol=0.0, atol=0.01 * min(first.spacing))
        turned = np.allclose(own.direction, first.direction, rtol=0.0, atol=0.01)
        if not (near and turned and np.allclose(np.take(own.spacing, first.axes), first.pixel, rtol=0.01)):
            raise InputError(f"{path}: the mask lies elsewhere, {own}; what it belongs to has {first}")
    masks = list(values.reshape(shape) != 0)
    for index, mask in enumerate(masks):
        if not mask.any() and (needed is None or needed[index]):
            raise InputError(f"{path}: a mask that is zero everywhere" + (f" in slice {index}" if len(masks) > 1 else ""))
    return masks


def check_pixels(pixels: np.ndarray, name: str) -> None:
    """Refuses what cannot be registered.

    Raises:
        InputError: where pixels are not finite, all the same, or fewer than 8 along an axis, 6 of a volume.
    """
    check_values(pixels, name)
    if pixels.min() == pixels.max():
        raise InputError(f"{name}: constant, every pixel is {pixels.flat[0]:g}; there is nothing to register")


def check_values(pixels: np.ndarray, name: str) -> None:
    """Refuses what is no frame of a series; a constant one is.

    Raises:
        InputError: where pixels are not finite, or fewer than 8 along an axis, 6 of a volume.
    """
    least = _LEAST_PIXELS.get(pixels.ndim, 1)
    if min(pixels.shape) < least:
        raise InputError(f"{name}: of shape {pixels.shape}; at least {least} pixels along every axis are needed")
    if not np.isfinite(pixels).all():
        raise _not_finite(name, np.count_nonzero(~np.isfinite(pixels)))


def as_image(image: ImageLike, name: str) -> Image:
    """What a user may pass as an image: an array lies on a grid of its own pixels, a SimpleITK image where it says.

    Raises:
        InputError: where it holds several values a pixel.
    """
    if isinstance(image, Image):
        return image
    if isinstance(image, sitk.Image):
        if image.GetNumberOfComponentsPerPixel() != 1:
            raise InputError(f"{name}: {image.GetNumberOfComponentsPerPixel()} values per pixel; a grey image is needed")
        geometry = _geometry(image)
        return Image(sitk.GetArrayFromImage(image).astype(np.float32).reshape(geometry.shape), geometry, name)
    pixels = np.asarray(image, np.float32)
    return Image(pixels, pixel_grid(pixels.shape), name, is_array=True)


def displacement_transform(displacement: np.ndarray, geometry: Geometry) -> sitk.Transform:
    """A normalised field on a grid as a SimpleITK transform of physical points, fixed to moving."""
    vectors = sitk.GetImageFromArray(to_physical_mm(displacement, geometry), isVector=True)
    _place(vectors, geometry)
    return sitk.DisplacementFieldTransform(vectors)


def write_image(path: Path, pixels: np.ndarray, geometry: Geometry) -> None:
    """Writes ``pixels [*geometry.shape]`` on the file grid of ``geometry``; the suffix decides the format."""
    _write(path, sitk.GetImageFromArray(pixels.reshape(tuple(reversed(geometry.size))), isVector=False), geometry)


def write_picture(path: Path, pixels: np.ndarray, kind: np.dtype, geometry: Geometry) -> None:
    """Writes ``pixels`` rounded into the range of ``kind``, grey."""
    if np.issubdtype(kind, np.integer):
        limits = np.iinfo(kind)
        pixels = np.clip(np.round(pixels), limits.min, limits.max)
    write_image(path, pixels.astype(kind), geometry)


def write_displacement(path: Path, displacement: np.ndarray, geometry: Geometry) -> None:
    """Writes a normalised field as an ITK displacement field: a vector image in millimetres, physical axes.

    The field of a single slice is written as two equal slices: NIfTI readers take a vector image of one slice for a 2D one.
    """
    vectors = to_physical_mm(displacement, geometry, np.float32)
    if len(geometry.size) == 3 and geometry.size[2] == 1:
        vectors = np.repeat(vectors, 2, axis=0)
    image = sitk.GetImageFromArray(vectors, isVector=True)
    del vectors  # a volume's are large, and ITK takes as much again to write them
    _write(path, image, geometry)


def _open_2d_t(path: Path) -> tuple[sitk.ImageFileReader, Geometry, tuple[int, ...]]:
    """A reader that knows the file's header, the file's geometry, and the shape ``[frames, slices, H, W]`` of what it holds."""
    reader = _open(path)
    if reader.GetNumberOfComponents() != 1:
        raise InputError(f"{path}: {reader.GetNumberOfComponents()} values per pixel; a grey series is needed")
    geometry = _squeezed(_geometry(reader))
    shape = tuple(reversed(geometry.size))
    if len(shape) == 3:
        shape = (shape[0], 1, *shape[1:])
    if len(shape) != 4:
        raise InputError(f"{path}: {len(shape)}D; a series has the axes x, y, slice, frame, or x, y, frame")
    # Of one frame ITK drops the last axis, and the slices would pass for frames.
    if shape[0] < 2 or (_is_nifti(reader) and set(nifti_shape(path)[3:]) == {1}):
        raise InputError(f"{path}: a series of one frame; at least two frames are needed")
    return reader, geometry, shape


def _squeezed(geometry: Geometry) -> Geometry:
    """Without the axes of one pixel between the slices' and the last."""
    count = len(geometry.size)
    kept = [axis for axis in range(count) if axis in (0, 1, 2, count - 1) or geometry.size[axis] > 1]
    size, spacing, origin = (tuple(np.take(values, kept).tolist()) for values in geometry[:3])
    direction = np.reshape(geometry.direction, (count, count))[np.ix_(kept, kept)]
    return Geometry(size, spacing, origin, tuple(direction.ravel().tolist()))


def _parts(path: Path, reader: sitk.ImageFileReader, shape: tuple[int, ...]) -> Iterator[tuple[int, np.ndarray]]:
    """A few frames at a time, with the number of the first: where the format allows, no more are held."""
    size = reader.GetSize()
    at_once = max(1, _VALUES_AT_ONCE // math.prod(size[:-1]))
    for first in range(0, size[-1], at_once):
        count = min(at_once, size[-1] - first)
        reader.SetExtractIndex((*(0,) * (len(size) - 1), first))
        reader.SetExtractSize((*size[:-1], count))
        yield first, sitk.GetArrayFromImage(_execute(path, reader)).reshape(count, *shape[1:])


def _geometry(image: sitk.Image | sitk.ImageFileReader) -> Geometry:
    return Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _place(image: sitk.Image, geometry: Geometry) -> None:
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)


def _read(path: Path) -> sitk.Image:
    grey = read_without_alpha(path)
    return _execute(path, _open(path)) if grey is None else sitk.GetImageFromArray(grey)


def _open(path: Path) -> sitk.ImageFileReader:
    """A reader that knows the header of a file that is whole and, where it is a NIfTI file, finite."""
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.is_dir():
        raise InputError(f"{path}: a folder; name one image file")
    reader, bad = sitk.ImageFileReader(), 0
    reader.SetFileName(str(path))
    with _readable(path):
        check_whole(path)
        angle = sheared_angle(path)  # ITK prints a warning before it refuses
    if angle is not None:
        raise InputError(
            f"{path}: its sform is sheared (axes {angle:.4g} degrees apart), and it has no qform; right angles are needed: "
            "resample it to such a grid, or give it a qform"
        )
    with _readable(path):
        reader.ReadImageInformation()
        if _is_nifti(reader):
            bad = count_not_finite(path)
    if bad:
        raise _not_finite(path, bad)
    return reader


def _execute(path: Path, reader: sitk.ImageFileReader) -> sitk.Image:
    with _readable(path):
        return reader.Execute()


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, EOFError, ValueError, SyntaxError, zlib.error) as error:
        raise InputError(f"{path}: not an image that can be read (truncated, or not of a known format)") from error


def _is_nifti(reader: sitk.ImageFileReader) -> bool:
    return reader.HasMetaDataKey("vox_offset")


def _not_finite(name: object, count: int) -> InputError:
    return InputError(f"{name}: {count} pixels are NaN or infinite; fill them first")


def _write(path: Path, image: sitk.Image, geometry: Geometry) -> None:
    try:
        _place(image, geometry)
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise OSError(f"{path}: cannot be written ({str(error).strip().splitlines()[-1]})") from error
