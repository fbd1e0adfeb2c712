"""DICOM pixels: decoded by pydicom, or by ITK where pydicom cannot, turned into intensities, and written as a new series."""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.encaps import encapsulate, get_frame
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut, apply_rescale, get_decoder, iter_pixels, pixel_array
from pydicom.uid import ExplicitVRLittleEndian, JPEGExtended12Bit, generate_uid

from r2n2_jax.errors import InputError
from r2n2_jax.io.dicom import DicomFrame, functional_groups
from r2n2_jax.io.dicom_series import DicomSlice
from r2n2_jax.io.images import read_values

_OF_OLD_PIXELS = (
    "PixelData", "FloatPixelData", "SmallestImagePixelValue", "LargestImagePixelValue", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)  # fmt: skip
_OF_ONE_FRAME = (
    "SOPClassUID", "SOPInstanceUID", "SamplesPerPixel", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation",
)  # fmt: skip
_LUMA = (0.299, 0.587, 0.114)  # Rec. 601, as of pictures


def read_dicom_pixels(frames: Sequence[DicomFrame]) -> np.ndarray:
    """The frames' pixels ``[T, H, W]`` float32: rescaled, bright where the picture is bright (MONOCHROME1 is turned over).

    Colour becomes luminance.

    Raises:
        InputError: where a file is truncated, or of a compression that cannot be read.
    """
    width, height = frames[0].size
    pixels, position = np.zeros((len(frames), height, width), np.float32), 0
    for path, members in itertools.groupby(frames, key=lambda frame: frame.path):
        for image in _intensities(path, [frame.index or 0 for frame in members]):
            pixels[position] = image
            position += 1
    return pixels


def write_dicom_series(
    folder: Path,
    slices: list[DicomSlice],
    pixels: list[np.ndarray],
    *,
    description: str,
    spacing: tuple[float, float] | None = None,
) -> None:
    """Writes registered frames as a new series: the headers of the files they come from, with new identifiers.

    Args:
        folder: an existing folder; files get the names they had.
        slices: where the frames come from.
        pixels: ``[T, H, W]`` a slice, in the units that ``read_dicom_pixels`` gives.
        description: what is added to the series' description.
        spacing: millimetres along ``(x, y)``, in the place of the headers'.
    """
    series = generate_uid()
    found: dict[Path, list[tuple[DicomFrame, np.ndarray]]] = {}
    for one, registered in zip(slices, pixels, strict=True):
        for frame, image in zip(one.frames, registered, strict=True):
            found.setdefault(frame.path, []).append((frame, image))
    for path, members in found.items():
        dataset = pydicom.dcmread(path)
        if dataset.original_encoding == (False, False):
            _turn_bytes(dataset)
        _make_grey(dataset)
        members.sort(key=lambda member: member[0].index or 0)
        stored = np.zeros((len(members), *members[0][1].shape), _stored_type(dataset))
        for number, (frame, image) in enumerate(members):
            stored[number] = _to_stored(dataset, frame.index or 0, image)
        _keep_frames(dataset, [frame.index or 0 for frame, _ in members])
        if spacing is not None:
            _set_spacing(dataset, spacing)
        _set_pixels(dataset, stored)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.SeriesInstanceUID = series
        dataset.SeriesDescription = f"{dataset.get('SeriesDescription', '')} {description}".strip()[:64]
        kind = dataset.get("ImageType")
        dataset.ImageType = ["DERIVED", "SECONDARY", *(list(kind)[2:] if isinstance(kind, MultiValue) else [])]
        try:
            pydicom.dcmwrite(folder / path.name, dataset, implicit_vr=False, little_endian=True, enforce_file_format=True)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise InputError(f"{path}: its header cannot be written again: {error}") from error


def _turn_bytes(dataset: pydicom.Dataset) -> None:
    """Of a big-endian file turns the bytes that pydicom writes as they are."""
    for element in dataset.iterall():
        size = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}.get(element.VR)
        if size is not None and element.value and element.keyword not in _OF_OLD_PIXELS:
            element.value = np.frombuffer(element.value, f">u{size}").astype(f"<u{size}").tobytes()


def _make_grey(dataset: pydicom.Dataset) -> None:
    """Makes the header of a colour file that of its luminance; of a palette, with as many bits as its colours have."""
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        bits = 16 if apply_color_lut(np.zeros((1, 1), np.uint8), dataset).dtype.itemsize > 1 else 8
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits, bits - 1, 0
        for entry in [element.keyword for element in dataset if "PaletteColorLookupTable" in element.keyword]:
            del dataset[entry]
    elif dataset.get("SamplesPerPixel", 1) == 1:
        return
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.pop("PlanarConfiguration", None)


def _keep_frames(dataset: pydicom.Dataset, kept: list[int]) -> None:
    """Of a file of several frames leaves those that are written."""
    if int(dataset.get("NumberOfFrames") or 1) == len(kept):
        return
    dataset.NumberOfFrames = len(kept)
    if groups := dataset.get("PerFrameFunctionalGroupsSequence"):
        dataset.PerFrameFunctionalGroupsSequence = [groups[index] for index in kept]


def _set_spacing(dataset: pydicom.Dataset, spacing: tuple[float, float]) -> None:
    """In the header and in all functional groups that hold one."""
    frames = range(int(dataset.get("NumberOfFrames") or 1))
    measured = [group for index in frames for group in functional_groups(dataset, index)]
    for group in [dataset, *(group for group in measured if "PixelSpacing" in group)]:
        group.PixelSpacing = [spacing[1], spacing[0]]


def _set_pixels(dataset: pydicom.Dataset, stored: np.ndarray) -> None:
    """Puts frames ``[N, H, W]`` of stored values, not compressed, in the place of a file's own."""
    for entry in _OF_OLD_PIXELS:
        if entry in dataset:
            del dataset[entry]
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"


def _intensities(path: Path, indices: list[int]) -> Iterator[np.ndarray]:
    """Some frames of one file, one by one."""
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        for index, stored in zip(indices, _stored_frames(path, dataset, indices), strict=True):
            if dataset.PhotometricInterpretation == "PALETTE COLOR":
                stored = apply_color_lut(stored, dataset)[..., :3]
            pixels = stored.astype(np.float64)
            if pixels.ndim == 3:
                pixels = pixels @ _LUMA
            if dataset.PhotometricInterpretation == "MONOCHROME1":
                pixels = _turned_over(dataset, pixels)
            yield apply_rescale(pixels, _rescale_group(dataset, index))
    except (InvalidDicomError, ValueError, EOFError, AttributeError, RuntimeError, NotImplementedError, OSError) as error:
        raise InputError(f"{path}: not an image that can be read (truncated, or of a compression that is not known)") from error


def _stored_frames(path: Path, dataset: pydicom.Dataset, indices: list[int]) -> Iterator[np.ndarray]:
    """Some frames' stored values, by pydicom where it has a decoder of the compression."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_deflated:
        return iter_pixels(pydicom.dcmread(path), indices=indices)
    if syntax == JPEGExtended12Bit or (syntax.is_compressed and not get_decoder(syntax).is_available):
        return _decoded_by_itk(path, indices)
    if not syntax.is_compressed and dataset.PhotometricInterpretation == "YBR_FULL_422":
        # One by one pydicom takes these frames for larger ones than they are.
        return iter(pixel_array(path).reshape(-1, dataset.Rows, dataset.Columns, 3)[indices])
    # From the file itself pydicom decodes with few bytes in memory, and of a truncated one without a warning.
    return iter_pixels(path, indices=indices)


def _decoded_by_itk(path: Path, indices: list[int]) -> Iterator[np.ndarray]:
    """The same by ITK, which wants every frame in a file of its own: of frames at one place it reads no volume."""
    whole = pydicom.dcmread(path)
    frame = pydicom.Dataset()
    frame.file_meta = whole.file_meta
    frame.PhotometricInterpretation = "MONOCHROME2" if whole.get("SamplesPerPixel", 1) == 1 else "RGB"
    if "PlanarConfiguration" in whole:
        frame.PlanarConfiguration = whole.PlanarConfiguration
    for name in _OF_ONE_FRAME:
        setattr(frame, name, whole[name].value)
    with tempfile.TemporaryDirectory() as folder:
        single = Path(folder) / "frame.dcm"
        for index in indices:
            encoded = get_frame(whole.PixelData, index, number_of_frames=int(whole.get("NumberOfFrames") or 1))
            frame.PixelData = encapsulate([encoded])
            frame.save_as(single, enforce_file_format=True)
            yield read_values(single)[0]


def _rescale_group(dataset: pydicom.Dataset, index: int) -> pydicom.Dataset:
    """Where a frame's rescale slope and intercept are; without entries where there are none."""
    groups = functional_groups(dataset, index)
    return next((group for group in groups if "RescaleSlope" in group and "RescaleIntercept" in group), pydicom.Dataset())


def _turned_over(dataset: pydicom.Dataset, pixels: np.ndarray) -> np.ndarray:
    """Stored values of MONOCHROME1 as MONOCHROME2 would store them, and back: the range's ends change places.

    pydicom's ``apply_presentation_lut`` turns every frame over about its own largest value, which changes from frame to frame.
    """
    low, high = _stored_range(dataset)
    return low + high - pixels


def _stored_range(dataset: pydicom.Dataset) -> tuple[int, int]:
    bits, signed = int(dataset.BitsStored), int(dataset.get("PixelRepresentation", 0))
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _stored_type(dataset: pydicom.Dataset) -> np.dtype:
    return np.dtype(f"{'i' if int(dataset.get('PixelRepresentation', 0)) else 'u'}{int(dataset.BitsAllocated) // 8}")


def _to_stored(dataset: pydicom.Dataset, index: int, image: np.ndarray) -> np.ndarray:
    group = _rescale_group(dataset, index)
    stored = (image - float(group.get("RescaleIntercept", 0.0))) / float(group.get("RescaleSlope", 1.0))
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        stored = _turned_over(dataset, stored)
    return np.clip(np.round(stored), *_stored_range(dataset))
