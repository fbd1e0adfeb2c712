"""A folder of DICOM slices as ONE volume: every file another place, one moment."""

from pathlib import Path

import numpy as np

from r2n2_jax.errors import InputError
from r2n2_jax.io.dicom import find_dicom
from r2n2_jax.io.dicom_pixels import read_dicom_pixels
from r2n2_jax.io.dicom_series import check_same, frames_of_series, geometry_of, in_planes, in_slices
from r2n2_jax.io.images import LEAST_SLICES, Image, check_pixels, read_image
from r2n2_jax.io.stacking import fault_of, stack


def read_image_or_folder(path: Path) -> Image:
    """An image file, see ``read_image``, or a folder of DICOM files that make up a volume.

    Of several orientations the one of the most slices is taken, where the others have fewer than a volume: a localiser's.

    Raises:
        InputError: see ``read_image``; or where the folder holds no DICOM files, files of several series, several frames of one
            slice, or slices that do not lie evenly one behind the other.
    """
    if not path.is_dir():
        return read_image(path)
    files = find_dicom(path)
    if not files:
        raise InputError(f"{path}: a folder without DICOM files; name one image file, or a folder of DICOM slices")
    planes = sorted(in_planes(frames_of_series(files)), key=len, reverse=True)
    if len(planes) > 1 and len(planes[1]) >= LEAST_SLICES:
        counts = ", ".join(str(len(plane)) for plane in planes)
        raise InputError(f"{path}: slices of {len(planes)} orientations ({counts}); put each into a folder of its own")
    slices = in_slices(planes[0])
    most = max(map(len, slices))
    if most > 1:
        raise InputError(f"{path}: up to {most} frames of one slice; a series over time is registered by --series")
    frames = [frame for (frame,) in slices]
    check_same(frames)
    if frames[0].spacing is None:
        raise InputError(f"{path}: its files hold no pixel spacing; a volume needs one")
    geometries = [geometry_of(frame) for frame in frames]
    fault = fault_of(geometries)
    if fault is not None:
        raise InputError(f"{path}: its {len(frames)} slices make up no volume: {fault}")
    pixels = read_dicom_pixels(frames)
    check_pixels(pixels, str(path))
    return Image(pixels, stack(geometries), str(path), np.dtype(np.float32))
