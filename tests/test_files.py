"""Files and physical space: what is written opens in ITK at the right place and does there what it does here."""

import math
import os
import struct
import zlib

import nibabel
import numpy as np
import PIL.Image
import pytest
import scipy.ndimage
import SimpleITK as sitk

from r2n2_jax.errors import InputError
from r2n2_jax.io import images
from r2n2_jax.io.files import check_output, new_folder, write_json
from r2n2_jax.io.geometry import Geometry, points_from_px, points_to_px, to_physical_mm, to_px
from r2n2_jax.io.images import (
    read_frames,
    read_image,
    write_displacement,
    write_image,
)
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.warp import inside, warp


def oblique(size, degrees=25.0):
    """Anisotropic spacing, an origin, and axes turned by 25 degrees."""
    d = len(size)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    direction = np.eye(d)
    direction[:2, :2] = [[c, -s], [s, c]]
    return Geometry(size, (0.8, 2.5, 1.7)[:d], (-31.0, 12.5, 40.0)[:d], tuple(direction.ravel()))


def smooth(random, shape, size):
    noise = scipy.ndimage.gaussian_filter(random.normal(size=shape), 2.0)
    return (size * noise / np.abs(noise).max()).astype(np.float32)


def make_pair(geometry):
    random = np.random.default_rng(0)
    moving = smooth(random, geometry.shape, 100.0)
    d = len(geometry.shape)
    field = np.stack([smooth(random, geometry.shape, 0.25) for _ in range(d)], axis=-1)
    return moving, field


def itk_warp(moving_path, field_path):
    moving, vectors = sitk.ReadImage(str(moving_path)), sitk.ReadImage(str(field_path), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(vectors)
    return sitk.GetArrayFromImage(sitk.Resample(moving, moving, transform, sitk.sitkLinear, 0.0))


@pytest.mark.parametrize("size", [(31, 22), (21, 17, 14)])
def test_itk_applies_the_written_field_as_we_do(size, tmp_path):
    geometry = oblique(size)
    moving, field = make_pair(geometry)
    write_image(tmp_path / "moving.nii.gz", moving, geometry)
    write_displacement(tmp_path / "field.nii.gz", field, geometry)
    ours = np.asarray(warp(moving[..., None], field))[..., 0]
    seen = np.asarray(inside(coordinates(geometry.shape) + field))
    assert seen.mean() > 0.5

    def disagreement():
        return np.abs(itk_warp(tmp_path / "moving.nii.gz", tmp_path / "field.nii.gz") - ours)[seen].max() / np.ptp(moving)

    assert disagreement() < 1e-3
    mistakes = {
        "flip": (field[..., ::-1], geometry),
        "spacing": (field / np.array(geometry.spacing, np.float32), geometry),
        "sign": (-field, geometry),
    }
    for wrong_field, wrong_geometry in mistakes.values():
        write_displacement(tmp_path / "field.nii.gz", wrong_field, wrong_geometry)
        assert disagreement() > 0.02
    # Without the direction the vectors point along the array's axes, on a grid that is turned.
    unturned = to_physical_mm(field, geometry._replace(direction=tuple(np.eye(len(size)).ravel())))
    image = sitk.GetImageFromArray(unturned, isVector=True)
    image.CopyInformation(sitk.ReadImage(str(tmp_path / "moving.nii.gz")))
    sitk.WriteImage(image, str(tmp_path / "field.nii.gz"))
    assert disagreement() > 0.02


def test_one_slice_of_a_volume_keeps_its_place_in_3d(tmp_path):
    geometry = oblique((31, 22, 1))
    assert geometry.shape == (22, 31)
    moving, field = make_pair(geometry)
    write_image(tmp_path / "slice.nii.gz", moving, geometry)
    read = read_image(tmp_path / "slice.nii.gz")
    np.testing.assert_allclose(read.pixels, moving, atol=1e-4)
    for mine, theirs in zip(geometry, read.geometry, strict=True):
        np.testing.assert_allclose(theirs, mine, atol=1e-5)
    write_displacement(tmp_path / "field.nii.gz", field, geometry)
    vectors = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "field.nii.gz")))
    assert vectors.shape == (2, 22, 31, 3)
    # Applied by ITK to a thick slab that repeats the slice.
    slab = sitk.GetImageFromArray(np.stack([moving] * 3))
    slab.SetSpacing(geometry.spacing)
    slab.SetDirection(geometry.direction)
    normal = np.reshape(geometry.direction, (3, 3))[:, 2] * geometry.spacing[2]
    slab.SetOrigin(tuple(np.array(geometry.origin) - normal))
    flat = sitk.ReadImage(str(tmp_path / "slice.nii.gz"))
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "field.nii.gz"), sitk.sitkVectorFloat64))
    applied = sitk.GetArrayFromImage(sitk.Resample(slab, flat, transform, sitk.sitkLinear, 0.0))[0]
    seen = np.asarray(inside(coordinates(geometry.shape) + field))
    ours = np.asarray(warp(moving[..., None], field))[..., 0]
    assert np.abs(applied - ours)[seen].max() < 1e-3 * np.ptp(moving)


def test_pixels_and_normalised_points_are_inverse():
    points = np.random.default_rng(1).uniform(-1, 1, (20, 2)).astype(np.float32)
    np.testing.assert_allclose(points_from_px(points_to_px(points, (11, 21)), (11, 21)), points, atol=1e-6)
    np.testing.assert_allclose(points_to_px(np.array([1.0, -1.0]), (11, 21)), [20.0, 0.0])
    np.testing.assert_allclose(to_px(np.array([0.1, 0.2]), (11, 21)), [1.0, 1.0], atol=1e-6)


def test_colour_becomes_luminance(tmp_path):
    grey = np.random.default_rng(2).integers(0, 255, (12, 14), dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([grey] * 3, -1), isVector=True), str(tmp_path / "rgb.png"))
    np.testing.assert_allclose(read_image(tmp_path / "rgb.png").pixels, grey, atol=0.51)


def write(path, pixels, spacing=None):
    image = sitk.GetImageFromArray(pixels, isVector=False)
    if spacing:
        image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    return path


def ramp(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def bad_images(folder):
    """name -> (file, what the message must say)."""
    nan = ramp(12, 12)
    nan[3, 4] = np.nan
    whole = write(folder / "whole.nii.gz", ramp(40, 40)).read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    for name, pixels in (("cut.nii", ramp(40, 40)), ("cut.mha", ramp(40, 40)), ("cut.jpg", ramp(40, 40).astype(np.uint8))):
        whole = write(folder / name, pixels).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("not an image")
    (folder / "empty.mha").write_bytes(b"")
    return {
        "missing": (folder / "nowhere.nii", "no such file"),
        "folder": (folder, "a folder"),
        "text": (folder / "text.png", "not an image"),
        "empty": (folder / "empty.mha", "not an image"),
        "truncated_gz": (folder / "cut.nii.gz", "not an image"),
        "truncated_nii": (folder / "cut.nii", "not an image"),
        "truncated_mha": (folder / "cut.mha", "not an image"),
        "truncated_jpg": (folder / "cut.jpg", "not an image"),
        "nan": (write(folder / "nan.mha", nan), "1 pixels are NaN"),
        "constant": (write(folder / "constant.nii", np.full((12, 12), 3.0, np.float32)), "every pixel is 3"),
        "tiny": (write(folder / "tiny.nii", ramp(12, 3)), "at least 8 pixels"),
        "four_dimensions": (write(folder / "four.nii", ramp(3, 3, 9, 9)), "2D or 3D image"),
    }


BAD = (
    *("missing", "folder", "text", "empty", "truncated_gz", "truncated_nii", "truncated_mha", "truncated_jpg"),
    *("nan", "constant", "tiny", "four_dimensions"),
)


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_named_with_what_is_wrong(name, tmp_path):
    path, message = bad_images(tmp_path)[name]
    with pytest.raises(InputError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


KINDS = (".png", ".jpg", ".bmp", ".tif", ".mha", ".mhd", ".nii", ".nii.gz", ".hdr", ".nrrd")


@pytest.mark.parametrize("share", [0.03, 0.5, 0.97])
@pytest.mark.parametrize("suffix", [*KINDS, "first.tif"])
def test_a_file_cut_short_is_told_of_once(suffix, share, tmp_path, capfd):
    """ITK reads some with grey or zeros in the place of what is missing, and prints of others to the process's streams."""
    noise = np.random.default_rng(0).integers(1, 255, (40, 40), dtype=np.uint8)
    path = tmp_path / f"cut{suffix}"
    if suffix == "first.tif":  # its directory before its pixels: ITK writes it behind them
        PIL.Image.fromarray(noise).save(path)
    else:
        write(path, noise)
    np.testing.assert_allclose(read_image(path).pixels, noise, atol=30)
    cut = path.with_suffix({".mhd": ".raw", ".hdr": ".img"}.get(suffix, path.suffix))
    cut.write_bytes(cut.read_bytes()[: int(share * cut.stat().st_size)])
    capfd.readouterr()
    with pytest.raises(InputError, match="not an image"):
        read_image(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("content", [b"", b"not an image", bytes(range(1, 256)) * 9])
def test_a_file_of_something_else_is_told_of_once(suffix, content, tmp_path, capfd):
    (tmp_path / f"other{suffix}").write_bytes(content)
    with pytest.raises(InputError, match="not an image"):
        read_image(tmp_path / f"other{suffix}")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_metaimage_header_without_its_pixels(compressed, tmp_path, capfd):
    path = tmp_path / "a.mhd"
    sitk.WriteImage(sitk.GetImageFromArray(ramp(12, 12)), str(path), compressed)
    path.write_bytes(path.read_bytes().rstrip())  # as an editor may leave it
    np.testing.assert_array_equal(read_image(path).pixels, ramp(12, 12))
    for values in tmp_path.glob("a.*raw"):
        values.unlink()
    with pytest.raises(InputError, match="not an image"):
        read_image(path)
    assert capfd.readouterr() == ("", "")


def test_a_tiff_that_pillow_does_not_know_is_read(tmp_path):
    grey = ramp(12, 14)
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([grey] * 3, -1), isVector=True), str(tmp_path / "rgb.tif"))
    with pytest.raises(PIL.UnidentifiedImageError), PIL.Image.open(tmp_path / "rgb.tif"):
        pass
    np.testing.assert_allclose(read_image(tmp_path / "rgb.tif").pixels, grey, rtol=1e-5)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".img", ".hdr"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_nifti_file_of_numbers_that_are_not_finite(suffix, kind, value, tmp_path):
    """ITK reads zeros in their place."""
    pixels = ramp(12, 12).astype(kind)
    pixels[3, 4] = pixels[5, 6] = value
    path = write(tmp_path / f"bad{suffix}", pixels)
    assert np.isfinite(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))).all(), "ITK tells now: the check may go"
    with pytest.raises(InputError, match="2 pixels are NaN"):
        read_image(path)
    np.testing.assert_array_equal(read_image(write(tmp_path / f"good{suffix}", ramp(12, 12).astype(kind))).pixels, ramp(12, 12))


@pytest.mark.parametrize("value", [5.0, np.nan])
def test_a_nifti_file_of_the_other_byte_order(value, tmp_path):
    pixels = ramp(12, 12)
    pixels[3, 4] = value
    header = bytearray(352)
    for offset, kind, content in (
        *((0, ">i4", 348), (40, ">i2", [2, 12, 12, 1, 1, 1, 1, 1]), (70, ">i2", [16, 32])),
        *((76, ">f4", [1, 1, 1, 1]), (108, ">f4", 352), (344, "S4", b"n+1")),
    ):
        raw = np.asarray(content, kind).tobytes()
        header[offset : offset + len(raw)] = raw
    path = tmp_path / "swapped.nii"
    path.write_bytes(bytes(header) + pixels.astype(">f4").tobytes())
    if np.isfinite(value):
        np.testing.assert_array_equal(read_image(path).pixels, pixels)
    else:
        with pytest.raises(InputError, match="1 pixels are NaN"):
            read_image(path)


@pytest.mark.parametrize("qform", [0, 1])
def test_a_sheared_sform_is_told_of_where_no_qform_is_there(qform, tmp_path, capfd):
    affine = np.array([[-1.5, 0.3, 0, 70], [0, -1.5, 0, 70], [0, 0, 8, -30], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(ramp(12, 14, 1, 3), None)
    image.set_sform(affine, 1)
    image.set_qform(np.diag([-1.5, -1.5, 8, 1]), qform)
    nibabel.save(image, tmp_path / "a.nii")
    if qform:
        assert read_frames(tmp_path / "a.nii")[0].shape == (3, 1, 14, 12)
        return
    with pytest.raises(
        InputError, match=r"its sform is sheared \(axes 101.3 degrees apart\), and it has no qform; right angles"
    ):
        read_frames(tmp_path / "a.nii")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".img"])
@pytest.mark.parametrize("shear", [9e-5, 1.1e-4])
def test_a_sform_is_sheared_where_itk_says_so(shear, suffix, tmp_path, capfd):
    affine = np.array([[0, -1.5 * shear, -8, 70], [0, -1.5, 0, 70], [1.5, 0, 0, -30], [0, 0, 0, 1]])
    kind = nibabel.Nifti1Pair if suffix == ".img" else nibabel.Nifti1Image
    image = kind(ramp(12, 14, 1, 3), None)
    image.set_sform(affine, 1)
    image.set_qform(None, 0)
    image.header.set_zooms((1.5, 1.5, 8, 1))
    path = tmp_path / f"a{suffix}"
    nibabel.save(image, path)
    if shear < 1e-4:
        sitk.ReadImage(str(path))
        assert read_frames(path)[0].shape == (3, 1, 14, 12)
    else:
        with pytest.raises(RuntimeError, match="orthonormal"):
            sitk.ReadImage(str(path))
        with pytest.raises(InputError, match=r"its sform is sheared \(axes 89.99 degrees apart\)"):
            read_frames(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_axes_of_one_pixel_are_squeezed(suffix, tmp_path):
    """x, y, 1, 1, frame; a fourth axis of two pixels is none that can be left out."""
    frames = ramp(5, 1, 1, 12, 14)
    pixels, geometry = read_frames(write(tmp_path / f"a{suffix}", frames, (1.5, 2.0, 8.0, 3.0, 0.5)))
    np.testing.assert_array_equal(pixels, frames[:, 0])
    assert geometry.size == (14, 12, 1, 5)
    np.testing.assert_allclose(geometry.spacing, (1.5, 2.0, 8.0, 0.5))
    assert read_frames(write(tmp_path / f"slices{suffix}", ramp(5, 1, 3, 12, 14)))[0].shape == (5, 3, 12, 14)
    with pytest.raises(InputError, match="5D; a series"):
        read_frames(write(tmp_path / f"b{suffix}", ramp(5, 2, 1, 12, 14)))


def test_grey_with_alpha_is_grey(tmp_path):
    grey, alpha = np.random.default_rng(2).integers(0, 255, (2, 12, 14), dtype=np.uint8)
    PIL.Image.merge("LA", [PIL.Image.fromarray(part) for part in (grey, alpha)]).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image.pixels, grey)
    assert image.kind == np.uint8
    content = bytearray((tmp_path / "a.png").read_bytes())
    (tmp_path / "cut.png").write_bytes(content[:150])
    with pytest.raises(InputError, match="not an image"):
        read_image(tmp_path / "cut.png")


def test_grey_of_16_bits_with_alpha_is_not_cut_to_8(tmp_path):
    rows = b"".join(b"\0" + np.full((14, 2), 300 + row, ">u2").tobytes() for row in range(12))

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 14, 12, 16, 4, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    with pytest.raises(InputError, match="grey of 16 bits with alpha; save it without alpha"):
        read_image(tmp_path / "a.png")


def test_a_palette_is_looked_up(tmp_path):
    grey = np.random.default_rng(2).integers(0, 255, (12, 14), dtype=np.uint8)
    picture = PIL.Image.fromarray(grey // 2)
    picture = PIL.Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette([2 * value for value in range(128) for _ in range(3)])
    picture.save(tmp_path / "a.png")
    np.testing.assert_allclose(read_image(tmp_path / "a.png").pixels, 2 * (grey // 2), atol=1e-3)


def test_a_nifti_series_of_one_frame_is_not_one_of_its_slices(tmp_path):
    """ITK drops the axis of one frame; a file whose third axis is time has three to begin with."""
    with pytest.raises(InputError, match="one frame"):
        read_frames(write(tmp_path / "one.nii.gz", ramp(1, 7, 12, 12)))
    assert read_frames(write(tmp_path / "three.nii.gz", ramp(7, 12, 12)))[0].shape == (7, 1, 12, 12)


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 2, 12, 12), "one frame"), ((12, 12), "2D; a series"), ((2, 2, 2, 9, 9), "5D; a series")]
)
def test_bad_series_are_named_with_what_is_wrong(shape, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_frames(write(tmp_path / "series.mha", ramp(*shape)))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".mhd", ".nrrd"])
@pytest.mark.parametrize("slices", [(), (2,)])
def test_a_long_series_is_read_in_parts_that_make_the_whole(suffix, slices, tmp_path, monkeypatch):
    frames = ramp(7, *slices, 12, 9)
    path = write(tmp_path / f"series{suffix}", frames)
    monkeypatch.setattr(images, "_VALUES_AT_ONCE", 3 * math.prod(frames.shape[1:]))
    pixels, geometry = read_frames(path)
    np.testing.assert_array_equal(pixels, frames.reshape(7, -1, 12, 9))
    assert geometry.size == frames.shape[::-1]


def test_a_series_may_hold_a_constant_frame_but_none_that_is_not_finite(tmp_path):
    frames = ramp(4, 2, 12, 12)
    frames[3, 1] = 5.0
    np.testing.assert_array_equal(read_frames(write(tmp_path / "series.mha", frames))[0], frames)
    frames[3, 1] = np.nan
    with pytest.raises(InputError, match=r"slice 1, frame 3\): 144 pixels are NaN"):
        read_frames(write(tmp_path / "series.mha", frames))


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError, match="disk"), new_folder(tmp_path / "out") as folder:  # noqa: PT012
        (folder / "half").write_text("half")
        raise RuntimeError("disk full")
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "whole").write_text("whole")
    assert (tmp_path / "deep" / "out" / "whole").read_text() == "whole"
    with pytest.raises(InputError, match="exists already"), new_folder(tmp_path / "deep" / "out"):
        raise AssertionError("must not get here")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_a_folder_that_is_there_is_filled_and_stays(tmp_path):
    """It may be a mount, which cannot be replaced."""
    path = tmp_path / "mount"
    path.mkdir()
    before = path.stat().st_ino
    with pytest.raises(RuntimeError, match="disk"), new_folder(path) as partial:  # noqa: PT012
        (partial / "half").write_text("a")
        raise RuntimeError("disk full")
    assert list(path.iterdir()) == []
    with new_folder(path) as partial:
        (partial / "a.txt").write_text("a")
        (partial / "sub").mkdir()
        (partial / "sub" / "b.txt").write_text("b")
    assert path.stat().st_ino == before
    assert sorted(str(file.relative_to(path)) for file in path.rglob("*")) == ["a.txt", "sub", "sub/b.txt"]


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a")
    with pytest.raises(InputError, match="no folder that you may write to"):
        check_output(tmp_path / "file" / "out")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match=r"no folder that you may write to"):
        check_output(tmp_path / "deep" / "out")


def test_a_jpeg_may_hold_more_behind_its_end(tmp_path):
    path = write(tmp_path / "a.jpg", ramp(40, 40).astype(np.uint8))
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(500))
    assert read_image(path).pixels.shape == (40, 40)
    thumbnail = b"\xff\xe1\x00\x0c" + b"\xff\xda\x00\x02\x00\x00\x00\x00\xff\xd9"
    path.write_bytes(whole[:2] + thumbnail + whole[2 : len(whole) // 2])
    with pytest.raises(InputError, match="not an image"):
        read_image(path)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_dots_per_inch_are_no_place(suffix, tmp_path):
    """The same picture at another density lies on the same grid; the control, a NIfTI file with spacing, keeps it."""
    pixels = np.random.default_rng(0).integers(0, 255, (32, 40), dtype=np.uint8)
    for dpi in (72, 300):
        PIL.Image.fromarray(pixels).save(tmp_path / f"{dpi}{suffix}", dpi=(dpi, dpi))
    first, second = (images.read_image(tmp_path / f"{dpi}{suffix}") for dpi in (72, 300))
    assert first.geometry == second.geometry
    assert not first.geometry.is_placed
    placed = sitk.GetImageFromArray(pixels)
    placed.SetSpacing((0.5, 0.7))
    sitk.WriteImage(placed, str(tmp_path / "a.nii"))
    assert images.read_image(tmp_path / "a.nii").geometry.spacing == pytest.approx((0.5, 0.7))
