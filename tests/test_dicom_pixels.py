"""Pixels of DICOM files: every compression, one frame or several, becomes the same intensities."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import compress, write_enhanced, write_series
from pydicom.data import get_testdata_file
from pydicom.pixels import get_decoder

from r2n2_jax.errors import InputError
from r2n2_jax.io.recording import read_recording

gdcm = pytest.importorskip("gdcm", reason="python-gdcm writes the compressed files")


@pytest.fixture(params=["pydicom alone", "with GDCM"])
def plugins(request, monkeypatch):
    """pydicom as it comes, and where a user has installed a plug-in for it: ITK decodes what it cannot."""
    if request.param == "pydicom alone":
        for compression in COMPRESSIONS.values():
            decoder = get_decoder(gdcm.TransferSyntax(compression).GetString())
            monkeypatch.delitem(decoder._available, "gdcm", raising=False)


@pytest.fixture
def stored():
    """``[T, 1, H, W]`` uint16 of 12 bits."""
    return np.random.default_rng(0).integers(0, 4096, (5, 1, 12, 16), dtype=np.uint16)


def same(recording, stored):
    (frames,) = recording.frames
    np.testing.assert_array_equal(frames, stored[:, 0])


COMPRESSIONS = {
    "JPEG Lossless": gdcm.TransferSyntax.JPEGLosslessProcess14,
    "JPEG Lossless SV1": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "JPEG-LS": gdcm.TransferSyntax.JPEGLSLossless,
    "JPEG 2000": gdcm.TransferSyntax.JPEG2000Lossless,
    "RLE": gdcm.TransferSyntax.RLELossless,
    "deflated": gdcm.TransferSyntax.DeflatedExplicitVRLittleEndian,
}


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_files_of_one_frame_and_of_several_are_decompressed_alike(compression, stored, tmp_path):
    write_series(tmp_path / "single", stored)
    for path in (tmp_path / "single").iterdir():
        compress(path, COMPRESSIONS[compression])
    same(read_recording(tmp_path / "single"), stored)
    write_enhanced(tmp_path / "several.dcm", stored[:, 0], slope=0.5)
    compress(tmp_path / "several.dcm", COMPRESSIONS[compression])
    recording = read_recording(tmp_path / "several.dcm")
    same(recording, 0.5 * stored)
    (tmp_path / "out").mkdir()
    same(read_recording(recording.write(tmp_path / "out", recording.frames)), 0.5 * stored)


def test_jpeg_of_12_bits_is_read_as_itk_reads_it(tmp_path):
    """No plug-in of pydicom's own decodes it."""
    source = get_testdata_file("JPGExtended.dcm", download=False)
    for t in range(2):
        dataset = pydicom.dcmread(source)
        dataset.InstanceNumber = t
        dataset.save_as(tmp_path / f"{t}.dcm")
    expected = sitk.GetArrayFromImage(sitk.ReadImage(source))[0]
    assert expected.max() > 255
    for frame in read_recording(tmp_path).frames[0]:
        np.testing.assert_array_equal(frame, expected)


def test_bits_that_are_not_of_the_pixel_are_left_out(stored, tmp_path):
    write_series(tmp_path, stored | 0xF000, BitsStored=12, HighBit=11)
    same(read_recording(tmp_path), stored)


def test_every_frame_has_its_own_rescale(stored, tmp_path):
    write_enhanced(tmp_path / "a.dcm", stored[:, 0], slope=[1.0, 2.0, 3.0, 4.0, 0.5])
    recording = read_recording(tmp_path)
    expected = stored * np.reshape([1.0, 2.0, 3.0, 4.0, 0.5], (-1, 1, 1, 1))
    same(recording, expected)
    (tmp_path / "out").mkdir()
    same(read_recording(recording.write(tmp_path / "out", recording.frames)), expected)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("compression", [None, "JPEG-LS", "RLE"])
def test_truncated_pixels_are_named_with_the_file(compression, several, stored, tmp_path):
    if several:
        path = tmp_path / "a.dcm"
        write_enhanced(path, stored[:, 0])
    else:
        write_series(tmp_path, stored)
        path = tmp_path / "IM0003.dcm"
    if compression is not None:
        compress(path, COMPRESSIONS[compression])
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match=r"not an image that can be read \(truncated") as caught:
        read_recording(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
