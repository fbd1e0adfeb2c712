"""DICOM pictures in colour, which most ultrasound scanners write of grey ones: read as luminance, written again as grey."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import compress, file_dataset
from pydicom.data import get_testdata_file
from pydicom.pixels import convert_color_space
from pydicom.uid import SecondaryCaptureImageStorage, UltrasoundMultiFrameImageStorage

from r2n2_jax.io.recording import read_recording

KINDS = ("RGB", "planes", "YBR_FULL", "YBR_FULL_422", "palette of 8 bits", "palette of 16 bits")


@pytest.fixture
def grey():
    """``[T, H, W]`` uint8, columns alike in pairs: YBR_FULL_422 keeps one colour for two."""
    return np.repeat(np.random.default_rng(0).integers(0, 255, (5, 12, 8), dtype=np.uint8), 2, axis=2)


def write_colour(path, kind, frames, number=1):
    """``[N, H, W]`` greys or ``[N, H, W, 3]`` colours in one file."""
    one = len(frames) == 1
    dataset = file_dataset(SecondaryCaptureImageStorage if one else UltrasoundMultiFrameImageStorage, frames.shape[1:3])
    dataset.InstanceNumber, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = number, 8, 8, 7
    if not one:
        dataset.NumberOfFrames = len(frames)
    if kind.startswith("palette"):
        bits = int(kind.split()[2])
        dataset.PhotometricInterpretation = "PALETTE COLOR"
        table = (257 * np.arange(256)).astype("<u2") if bits == 16 else np.arange(256, dtype=np.uint8)
        for colour in ("Red", "Green", "Blue"):
            setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, bits])
            setattr(dataset, f"{colour}PaletteColorLookupTableData", table.tobytes())
        dataset.PixelData = frames.tobytes()
    else:
        colours = frames if frames.ndim == 4 else np.stack([frames] * 3, axis=-1)
        dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, int(kind == "planes")
        dataset.PhotometricInterpretation = "RGB" if kind == "planes" else kind
        if kind.startswith("YBR"):
            colours = np.stack([convert_color_space(image, "RGB", "YBR_FULL") for image in colours])
        if kind == "YBR_FULL_422":
            y, b, r = np.moveaxis(colours, -1, 0)
            colours = np.stack([y[..., ::2], y[..., 1::2], b[..., ::2], r[..., ::2]], axis=-1)
        dataset.PixelData = (np.moveaxis(colours, -1, 1) if kind == "planes" else colours).tobytes()
    dataset.save_as(path, enforce_file_format=True)


def write_and_read(folder, kind, frames, several):
    if several:
        write_colour(folder / "a.dcm", kind, frames)
    else:
        for t in range(len(frames)):
            write_colour(folder / f"{t}.dcm", kind, frames[t : t + 1], t)
    return read_recording(folder)


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_grey_in_colour_is_grey_and_is_written_so(kind, several, grey, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    recording = write_and_read(tmp_path / "in", kind, grey, several)
    expected = grey.astype(np.float32) * (257 if kind == "palette of 16 bits" else 1)
    np.testing.assert_allclose(recording.frames[0], expected, atol=1e-3)
    moved = np.roll(recording.frames[0], 1, axis=-1)
    folder = recording.write(tmp_path / "out", [moved])
    for path in folder.iterdir():
        written = pydicom.dcmread(path)
        assert (written.SamplesPerPixel, written.PhotometricInterpretation) == (1, "MONOCHROME2")
        assert "PlanarConfiguration" not in written
        assert "RedPaletteColorLookupTableData" not in written
    np.testing.assert_array_equal(read_recording(folder).frames[0], np.round(moved))


@pytest.mark.parametrize("kind", ["RGB", "planes", "YBR_FULL"])
def test_colour_becomes_luminance(kind, tmp_path):
    colours = np.random.default_rng(1).integers(0, 255, (5, 12, 16, 3), dtype=np.uint8)
    recording = write_and_read(tmp_path, kind, colours, several=True)
    np.testing.assert_allclose(recording.frames[0], colours @ [0.299, 0.587, 0.114], atol=0.01 if kind != "YBR_FULL" else 1.5)
    assert np.abs(recording.frames[0] - colours.mean(axis=-1)).max() > 10


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "RLELossless"])
def test_compressed_colour(syntax, grey, tmp_path):
    gdcm = pytest.importorskip("gdcm")
    write_colour(tmp_path / "a.dcm", "RGB", grey)
    compress(tmp_path / "a.dcm", getattr(gdcm.TransferSyntax, syntax))
    np.testing.assert_allclose(read_recording(tmp_path).frames[0], grey, atol=1e-3)


def test_a_scanners_own_file(tmp_path):
    """Thirty frames of YBR_FULL_422 in JPEG."""
    recording = read_recording(Path(get_testdata_file("examples_ybr_color.dcm", download=False)))
    assert recording.frames[0].shape == (30, 240, 320)
    folder = recording.write(tmp_path, recording.frames)
    np.testing.assert_allclose(read_recording(folder).frames[0], recording.frames[0], atol=0.5)
