"""Whether a file is whole: asked before ITK reads it, which reads some broken files in silence and prints of others.

Every check raises an OSError, EOFError, ValueError or SyntaxError where a file is broken.
"""

import math
import re
from pathlib import Path

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError, SpatialImage
from PIL import Image, UnidentifiedImageError

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_NIFTI = (".nii", ".nii.gz", ".hdr", ".img", ".img.gz")
_ITK_TOLERANCE = 1e-4  # of the products of directions
_TIFF_ORDERS = {b"II*\0": "little", b"MM\0*": "big"}
_META_HEADER_BYTES = 1 << 16
_META_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "FLOAT": 4, "DOUBLE": 8}
_VALUES_AT_ONCE = 1 << 22


def check_whole(path: Path) -> None:
    """Checks pictures and MetaImage files, by their suffix; of other formats ITK says quietly what is wrong."""
    suffix = path.suffix.lower()
    if suffix in _PICTURES:
        _check_picture(path)
    elif suffix in (".mha", ".mhd"):
        _check_meta(path)


def count_not_finite(path: Path) -> int:
    """How many values of a NIfTI file, or of a pair of header and values, are NaN or infinite: ITK reads them as zeros.

    Raises:
        OSError, EOFError, ValueError: where the file ends before the last of them.
    """
    image = _nifti(path)
    stored, count = image.dataobj, math.prod(image.shape)
    with ImageOpener(image.file_map["image"].filename) as file:
        values = ArrayProxy(file, ((count,), stored.dtype, stored.offset))
        if stored.dtype.kind not in "fc":
            values[-1:]  # whole numbers are finite; the last is there where nothing is missing
            return 0
        parts = (values[first : first + _VALUES_AT_ONCE] for first in range(0, count, _VALUES_AT_ONCE))
        return sum(int(np.count_nonzero(~np.isfinite(part))) for part in parts)


def nifti_shape(path: Path) -> tuple[int, ...]:
    """The axes x, y, ... as the file has them: ITK drops those of one pixel from the end."""
    return _nifti(path).shape


def sheared_angle(path: Path) -> float | None:
    """Of a NIfTI file that ITK cannot place, for its sform is sheared and it has no qform: the angle between two axes, degrees.

    Returns:
        the angle that is farthest from a right one; None of any other file.

    Raises:
        OSError, EOFError, ValueError: where the header cannot be read.
    """
    if not path.name.lower().endswith(_NIFTI):
        return None
    image = _nifti(path)
    if not isinstance(image, nibabel.Nifti1Pair) or image.header["qform_code"] > 0 or image.header["sform_code"] <= 0:
        return None
    axes = image.header.get_sform()[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not ((lengths > 0) & np.isfinite(lengths)).all():
        return None  # no axes at all: ITK says so
    directions = axes / lengths
    if np.abs(directions @ directions.T - np.eye(3)).max() <= _ITK_TOLERANCE:
        return None
    cosines = np.triu(directions.T @ directions, 1)
    return float(np.degrees(np.arccos(cosines.flat[np.argmax(np.abs(cosines))])))


def _nifti(path: Path) -> SpatialImage:
    """The file's header, without the words that nibabel prints of entries which it puts right."""
    try:
        with LoggingOutputSuppressor():
            return nibabel.load(path)
    except (ImageFileError, HeaderDataError) as error:
        raise ValueError(f"{path}: not a NIfTI file") from error


def _check_picture(path: Path) -> None:
    """Decodes it: Pillow raises where ITK reads grey in the place of what is missing."""
    if path.suffix.lower() in (".tif", ".tiff"):
        _check_tiff_directory(path)
    try:
        with Image.open(path) as picture:
            for page in range(getattr(picture, "n_frames", 1)):
                picture.seek(page)
                picture.load()
    except Image.DecompressionBombError:
        return  # large, not broken
    except UnidentifiedImageError:
        # ITK reads kinds of TIFF that Pillow does not: colour of signed or real numbers.
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise


def _check_tiff_directory(path: Path) -> None:
    """Pillow warns, and does not raise, where a file ends before its directory does."""
    with path.open("rb") as file:
        order = _TIFF_ORDERS.get(file.read(4))
        if order is None:
            return
        start = int.from_bytes(file.read(4), order)
        file.seek(start)
        entries = int.from_bytes(file.read(2), order)
    if path.stat().st_size < start + 2 + 12 * entries + 4:
        raise EOFError


def _check_meta(path: Path) -> None:
    """Compares what the header announces with what there is; lists of files and text are left to ITK."""
    with path.open("rb") as file:
        head = file.read(_META_HEADER_BYTES)
    end = re.search(rb"^ElementDataFile[ \t]*[=:][^\n]*\n?", head, re.MULTILINE)
    if end is None:
        raise EOFError
    fields = dict(re.findall(r"^(\w+)[ \t]*[=:][ \t]*(.*?)\s*$", head[: end.end()].decode("latin-1"), re.MULTILINE))
    name = fields.get("ElementDataFile")
    if not name or not {"NDims", "DimSize", "ElementType"} <= fields.keys():
        raise EOFError
    if name.startswith("LIST") or "%" in name or fields.get("BinaryData", "True") == "False":
        return
    if name in ("LOCAL", "Local", "local"):
        values, start = path, end.end()
    else:
        values, start = path.parent / name, max(int(fields.get("HeaderSize", 0)), 0)
    if values.stat().st_size < start + _meta_bytes(fields):
        raise EOFError


def _meta_bytes(fields: dict[str, str]) -> int:
    """How many bytes a MetaImage file's values take; zero where the header does not say."""
    if fields.get("CompressedData") == "True":
        return int(fields.get("CompressedDataSize", 0))
    value = _META_BYTES.get(fields["ElementType"].removeprefix("MET_"), 0)
    return value * int(fields.get("ElementNumberOfChannels", 1)) * math.prod(map(int, fields["DimSize"].split()))
