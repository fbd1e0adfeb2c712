"""Recordings of every format come in at the right place and in the right order, and go out as they came."""

import nibabel
import numpy as np
import PIL.Image
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import stored_values, write_enhanced, write_series, write_single
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

from r2n2_jax.errors import InputError
from r2n2_jax.io.dicom import _seconds
from r2n2_jax.io.images import read_mask
from r2n2_jax.io.recording import read_recording

FRAMES, SLICES = 5, 2


@pytest.fixture
def stored():
    """``[T, S, H, W]`` uint16, every frame brighter than the one before."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 400, (1, SLICES, 12, 16)) + 1000 * np.arange(SLICES)[:, None, None]
    return (base + 50 * np.arange(FRAMES)[:, None, None, None]).astype(np.uint16)


def same(recording, stored):
    for index, frames in enumerate(recording.frames):
        np.testing.assert_array_equal(frames, stored[:, index])


@pytest.mark.parametrize(
    ("entries", "drop", "order"),
    [
        ({}, (), "trigger-time"),
        ({"InstanceNumber": 7}, (), "trigger-time"),
        ({}, ("TriggerTime",), "instance-number"),
        ({"AcquisitionTime": lambda t, s: f"10003{t}.25"}, ("TriggerTime", "InstanceNumber"), "acquisition-time"),
        ({"TemporalPositionIdentifier": lambda t, s: t + 1, "TriggerTime": 0.0}, ("InstanceNumber",), "temporal-position"),
    ],
)
def test_dicom_frames_are_put_in_order(entries, drop, order, stored, tmp_path):
    write_series(tmp_path, stored, drop=drop, **entries)
    recording = read_recording(tmp_path)
    same(recording, stored)
    assert recording.order == order
    assert recording.spacing_known
    if order == "trigger-time":
        np.testing.assert_allclose(recording.times[0], 0.04 * np.arange(FRAMES))
    if order == "acquisition-time":
        np.testing.assert_allclose(recording.times[0], np.arange(FRAMES))


def backwards(t, s):
    return 10 + s * FRAMES - t


def test_an_ambiguous_order_is_the_users_to_decide(stored, tmp_path):
    write_series(tmp_path, stored, InstanceNumber=backwards)
    with pytest.raises(InputError, match="trigger-time and instance-number disagree; name one by --order-by"):
        read_recording(tmp_path)
    same(read_recording(tmp_path, order_by="trigger-time"), stored)
    same(read_recording(tmp_path, order_by="instance-number"), stored[::-1])


@pytest.mark.parametrize("degrees", [0.0, 25.0])
def test_slices_lie_where_itk_puts_them(degrees, stored, tmp_path):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    normal = np.cross([c, s, 0.0], [0.0, 0.0, -1.0])
    write_series(tmp_path, stored[:, ::-1], normal=-normal, ImageOrientationPatient=[c, s, 0.0, 0.0, 0.0, -1.0])
    recording = read_recording(tmp_path)
    same(recording, stored)
    for frames, geometry in zip(recording.frames, recording.geometries, strict=True):
        path = next(p for p in tmp_path.iterdir() if np.array_equal(stored_values(p), frames[0]))
        itk = sitk.ReadImage(str(path))
        assert geometry.size == itk.GetSize() == (16, 12, 1)
        np.testing.assert_allclose(geometry.spacing[:2], itk.GetSpacing()[:2])
        assert geometry.spacing[:2] == (1.5, 2.0)
        np.testing.assert_allclose(geometry.origin, itk.GetOrigin())
        np.testing.assert_allclose(geometry.direction, itk.GetDirection(), atol=1e-6)


def test_stored_values_become_intensities(stored, tmp_path):
    signed = stored.astype(np.int16) - 700
    write_series(tmp_path / "rescaled", signed, RescaleSlope=2.5, RescaleIntercept=-10.0)
    same(read_recording(tmp_path / "rescaled"), 2.5 * signed - 10.0)
    write_series(tmp_path / "inverted", stored, PhotometricInterpretation="MONOCHROME1")
    same(read_recording(tmp_path / "inverted"), 65535.0 - stored)


def test_a_file_of_several_frames(stored, tmp_path):
    write_enhanced(tmp_path / "cine.dcm", stored[:, 0], slope=0.5)
    for path in (tmp_path, tmp_path / "cine.dcm"):
        recording = read_recording(path)
        np.testing.assert_array_equal(recording.frames[0], 0.5 * stored[:, 0])
        assert recording.geometries[0].spacing[:2] == (1.5, 2.0)
        assert recording.geometries[0].origin == (-31.0, 12.5, 40.0)
    write_enhanced(tmp_path / "cine.dcm", stored[::-1, 0], delays=[160.0, 120.0, 80.0, 40.0, 0.0])
    recording = read_recording(tmp_path)
    assert recording.order == "trigger-time", "the order in the file is not time's"
    np.testing.assert_array_equal(recording.frames[0], stored[:, 0])
    np.testing.assert_allclose(recording.times[0], 0.04 * np.arange(FRAMES))


def write_numbered(folder, stored, suffix=".png", name="frame_{}"):
    folder.mkdir(exist_ok=True)
    for t, frame in enumerate(stored[:, 0]):
        sitk.WriteImage(sitk.GetImageFromArray(frame), str(folder / f"{name.format(8 + t)}{suffix}"))


def write_4d(path, stored):
    volumes = [sitk.GetImageFromArray(volume.astype(np.float32)) for volume in stored]
    image = sitk.JoinSeries(volumes, 0.0, 0.04)
    c, s = np.cos(np.radians(25)), np.sin(np.radians(25))
    image.SetDirection((c, -s, 0, 0, s, c, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1))
    image.SetSpacing((1.5, 2.0, 8.0, 0.04))
    image.SetOrigin((-31.0, 12.5, 40.0, 0.0))
    sitk.WriteImage(image, str(path))


def test_pictures_are_ordered_by_number_not_by_name(stored, tmp_path):
    for suffix in (".png", ".tif"):
        write_numbered(tmp_path / suffix, stored, suffix)
        recording = read_recording(tmp_path / suffix)  # frame_10 after frame_9
        np.testing.assert_array_equal(recording.frames[0], stored[:, 0])
        assert not recording.spacing_known
        assert recording.with_spacing((1.5, 2.0)).geometries[0].spacing == (1.5, 2.0)


def test_a_number_that_all_pictures_share_is_no_frame(stored, tmp_path):
    write_numbered(tmp_path, stored, ".tif", "img_{}_02-BF_000")
    recording = read_recording(tmp_path)
    np.testing.assert_array_equal(recording.frames[0], stored[:, 0])
    write_numbered(tmp_path, stored[:1], ".tif", "img_8_02-GFP_001")
    with pytest.raises(InputError, match="are both frame 0"):
        read_recording(tmp_path)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_grey_pictures_of_any_mode_are_a_series(mode, stored, tmp_path):
    grey = (stored[:, 0] // 8).astype(np.uint8)
    for t, frame in enumerate(grey):
        PIL.Image.fromarray(frame).convert(mode).save(tmp_path / f"f{t:02d}.png")
    np.testing.assert_allclose(read_recording(tmp_path).frames[0], grey, atol=1e-3)


@pytest.mark.parametrize("kind", ["png", "dicom", "nii.gz"])
def test_names_may_have_spaces_and_letters_of_any_script(kind, stored, tmp_path):
    source, out = tmp_path / "space ü 心", tmp_path / "aus ß 出"
    source.mkdir()
    out.mkdir()
    if kind == "png":
        write_numbered(source, stored, name="Bild ä {}")
    elif kind == "dicom":
        write_series(source, stored)
    else:
        write_4d(source / "é 肺.nii.gz", stored)
    recording = read_recording(source / "é 肺.nii.gz" if kind == "nii.gz" else source)
    same(recording, stored)
    same(read_recording(recording.write(out, recording.frames)), stored)


@pytest.mark.parametrize(("unit", "step"), [("sec", 0.04), ("msec", 40.0), ("usec", 40_000.0)])
def test_nifti_may_count_time_in_parts_of_a_second(unit, step, stored, tmp_path):
    image = nibabel.Nifti1Image(stored.transpose(3, 2, 1, 0).astype(np.float32), np.eye(4))
    image.header.set_zooms((1.0, 1.0, 1.0, step))
    image.header.set_xyzt_units("mm", unit)
    nibabel.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_recording(tmp_path / "a.nii.gz").times[0], 0.04 * np.arange(FRAMES), rtol=1e-6)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd"])
def test_a_file_is_split_into_slices_that_lie_where_itk_has_them(suffix, stored, tmp_path):
    write_4d(tmp_path / f"a{suffix}", stored)
    recording = read_recording(tmp_path / f"a{suffix}")
    same(recording, stored)
    itk = sitk.ReadImage(str(tmp_path / f"a{suffix}"))
    for index, geometry in enumerate(recording.geometries):
        np.testing.assert_allclose(geometry.origin, itk.TransformIndexToPhysicalPoint((0, 0, index, 0))[:3], atol=1e-5)
    np.testing.assert_allclose(recording.times[0], 0.04 * np.arange(FRAMES), rtol=1e-6)


@pytest.mark.parametrize("kind", ["dicom", "inverted", "enhanced", "png", "tif", "nii.gz", "mha", "nrrd", "2d+t"])
def test_what_is_written_is_read_as_it_was(kind, stored, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    if kind == "dicom":
        write_series(source, stored.astype(np.int16), RescaleSlope=2.0, RescaleIntercept=-10.0)
    elif kind == "inverted":
        write_series(source, stored, PhotometricInterpretation="MONOCHROME1")
    elif kind == "enhanced":
        write_enhanced(source / "a.dcm", stored[:, 0], slope=0.5)
    elif kind in ("png", "tif"):
        write_numbered(source, stored, f".{kind}")
    elif kind == "2d+t":
        source = source / "a.nii.gz"
        sitk.WriteImage(sitk.GetImageFromArray(stored[:, 0].astype(np.float32)), str(source))
    else:
        source = source / f"a.{kind}"
        write_4d(source, stored)
    recording = read_recording(source)
    changed = [np.roll(frames, 1, axis=-1) for frames in recording.frames]
    out = tmp_path / "out"
    out.mkdir()
    again = read_recording(recording.write(out, changed))
    for expected, found in zip(changed, again.frames, strict=True):
        np.testing.assert_array_equal(found, expected)
    for ours, theirs in zip(recording.geometries, again.geometries, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_written_series_is_a_new_one(stored, tmp_path):
    write_series(tmp_path / "in", stored)
    recording = read_recording(tmp_path / "in")
    (tmp_path / "out").mkdir()
    folder = recording.write(tmp_path / "out", recording.frames)
    before, after = (pydicom.dcmread(one / "IM0003.dcm") for one in (tmp_path / "in", folder))
    assert after.PatientID == before.PatientID
    assert after.SeriesInstanceUID != before.SeriesInstanceUID
    assert after.SOPInstanceUID == after.file_meta.MediaStorageSOPInstanceUID != before.SOPInstanceUID
    assert after.SeriesDescription == "cine registered"
    assert list(after.ImageType) == ["DERIVED", "SECONDARY", "M"]
    assert len({pydicom.dcmread(path).SeriesInstanceUID for path in folder.iterdir()}) == 1


@pytest.mark.parametrize("kind", [None, "ORIGINAL"])
def test_a_header_of_few_entries_is_written_again(kind, stored, tmp_path):
    write_series(tmp_path / "in", stored, ImageType=kind)
    (tmp_path / "out").mkdir()
    recording = read_recording(tmp_path / "in")
    folder = recording.write(tmp_path / "out", recording.frames)
    assert list(pydicom.dcmread(folder / "IM0003.dcm").ImageType) == ["DERIVED", "SECONDARY"]


def test_times_with_a_time_zone_are_times(stored, tmp_path):
    times = {"AcquisitionDateTime": lambda t, s: f"2020010112000{t}.5+0100"}
    write_series(tmp_path, stored, drop=("TriggerTime", "InstanceNumber"), **times)
    recording = read_recording(tmp_path)
    same(recording, stored)
    np.testing.assert_allclose(recording.times[0], np.arange(FRAMES))


def test_enhanced_files_of_one_frame_each(stored, tmp_path):
    for t in range(FRAMES):
        write_enhanced(tmp_path / f"{t}.dcm", stored[t : t + 1, 0], slope=0.5, delays=[40.0 * t])
    recording = read_recording(tmp_path, order_by="trigger-time")
    np.testing.assert_array_equal(recording.frames[0], 0.5 * stored[:, 0])
    assert recording.geometries[0].spacing[:2] == (1.5, 2.0)


def test_a_slice_whose_time_axis_is_a_place_is_refused(stored, tmp_path):
    image = sitk.GetImageFromArray(stored[:, 0].astype(np.float32))
    image.SetDirection((1, 0, 0, 0, 0, -1, 0, 1, 0))
    sitk.WriteImage(image, str(tmp_path / "coronal.nii.gz"))
    with pytest.raises(InputError, match="mixes space with the last axis"):
        read_recording(tmp_path / "coronal.nii.gz")


def test_big_endian_files_are_read(stored, tmp_path):
    for t in range(2):
        dataset = write_single(tmp_path / f"{t}.dcm", stored[t, 0], InstanceNumber=t)
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        dataset.PixelData = stored[t, 0].astype(">u2").tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.save_as(tmp_path / f"{t}.dcm", implicit_vr=False, little_endian=False, enforce_file_format=True)
    np.testing.assert_array_equal(read_recording(tmp_path).frames[0], stored[:2, 0])


def test_big_endian_files_of_several_frames_are_written_little_endian(stored, tmp_path):
    path = tmp_path / "a.dcm"
    write_enhanced(path, stored[:, 0], slope=[1.0, 2.0, 3.0, 4.0, 0.5], delays=[40.0 * t for t in range(FRAMES)])
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.PixelData = stored[:, 0].astype(">u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.add_new("GrayLookupTableData", "OW", np.arange(4, dtype=">u2").tobytes())
    pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=False, enforce_file_format=True)
    recording = read_recording(path)
    np.testing.assert_array_equal(recording.frames[0], stored[:, 0] * np.reshape([1.0, 2.0, 3.0, 4.0, 0.5], (-1, 1, 1)))
    (tmp_path / "out").mkdir()
    folder = recording.write(tmp_path / "out", recording.frames)
    np.testing.assert_array_equal(read_recording(folder).frames[0], recording.frames[0])
    written = pydicom.dcmread(folder / "a.dcm")
    assert written.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert written.GrayLookupTableData == np.arange(4, dtype="<u2").tobytes()


def truncated_pixels(folder, stored):
    write_series(folder, stored)
    content = (folder / "IM0003.dcm").read_bytes()
    (folder / "IM0003.dcm").write_bytes(content[:-100])


def truncated_header(folder, stored):
    write_series(folder, stored)
    content = (folder / "IM0003.dcm").read_bytes()
    (folder / "IM0003.dcm").write_bytes(content[: content.index(b"Nobody")])


def repeated_numbers(folder, stored):
    write_series(folder, stored, InstanceNumber=1, drop=("TriggerTime",))


def two_series(folder, stored):
    uids = [generate_uid(), generate_uid()]
    write_series(folder, stored, SeriesInstanceUID=lambda t, s: uids[t % 2])


def mixed_sizes(folder, stored):
    write_series(folder, stored)
    write_single(folder / "other.dcm", stored[0, 0, :10], InstanceNumber=99, TriggerTime=990.0)


def mixed_spacings(folder, stored):
    write_series(folder, stored, PixelSpacing=lambda t, s: [2.0, 1.5 + 0.1 * (t == 2)])


def zero_spacing(folder, stored):
    write_series(folder, stored, PixelSpacing=[0.0, 1.5])


def one_frame(folder, stored):
    write_series(folder, stored[:1])


def constant_frames(folder, stored):
    stored[1:] = 7
    write_series(folder, stored)


def colour(folder, stored):
    write_single(folder / "a.dcm", stored[0, 0], SamplesPerPixel=4, PhotometricInterpretation="CMYK", PlanarConfiguration=0)


def palette(folder, stored):
    write_series(folder, stored, PhotometricInterpretation="PALETTE COLOR")


def write_series_without(entry, folder, stored):
    write_series(folder, stored)
    dataset = pydicom.dcmread(folder / "IM0003.dcm")
    del dataset[entry]
    dataset.save_as(folder / "IM0003.dcm")


def no_columns(folder, stored):
    write_series_without("Columns", folder, stored)


def moved_field_of_view(folder, stored):
    write_series(folder, stored, ImagePositionPatient=lambda t, s: [-31.0 + 3.0 * (t == 2), 12.5, 40.0 + 8.0 * s])


def no_orientation(folder, stored):
    write_series(folder, stored, ImageOrientationPatient=[1, 0, 0, 1, 0, 0])


def no_pixels(folder, stored):
    write_series_without("PixelData", folder, stored)


def nothing(folder, stored):
    (folder / "notes.txt").write_text("no images")


def picture_without_number(folder, stored):
    write_numbered(folder, stored)
    write_numbered(folder, stored[:1], name="overview")


def pictures_of_one_number(folder, stored):
    write_numbered(folder, stored)
    write_numbered(folder, stored[:1], name="copy_{}")


def picture_of_another_size(folder, stored):
    write_numbered(folder, stored)
    write_numbered(folder, stored[:1, :, :10], name="later_99{}")


def truncated_picture(folder, stored):
    write_numbered(folder, stored)
    (folder / "frame_9.png").write_bytes((folder / "frame_9.png").read_bytes()[:90])


def one_picture(folder, stored):
    write_numbered(folder, stored[:1])


def tiny(folder, stored):
    write_series(folder, stored[..., :5])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncated_pixels, r"IM0003.dcm: not an image that can be read \(truncated"),
        (truncated_header, r"IM0003.dcm: not a DICOM file that can be read"),
        (
            repeated_numbers,
            r"trigger-time: missing in 10 of 10 frames.*instance-number: the same for several frames.*need numbers",
        ),
        (two_series, r"files of 2 series"),
        (mixed_sizes, r"size \(16, 1[02]\), but .* has \(16, 1[02]\)"),
        (mixed_spacings, r"spacing .*, but .* has .*; a series needs one spacing"),
        (zero_spacing, r"spacing \(1.5, 0.0\); positive millimetres are needed"),
        (one_frame, r"2 slice\(s\) of one frame"),
        (constant_frames, r"no two frames of a slice that are not blank"),
        (colour, r"a.dcm: 4 value\(s\) a pixel of CMYK; pictures of MONOCHROME1, .* are read"),
        (palette, r"not an image that can be read"),
        (no_columns, r"IM0003.dcm: not a DICOM file that can be read"),
        (moved_field_of_view, r"of the same slice at .*; its frames need one place"),
        (no_orientation, r"two unit vectors are needed"),
        (no_pixels, r"IM0003.dcm: not an image"),
        (nothing, r"0 pictures and no DICOM files"),
        (picture_without_number, r"overview.png: no number in its name"),
        (pictures_of_one_number, r"copy_8.png and frame_8.png are both frame 8"),
        (picture_of_another_size, r"size \(16, 10\), but frame_8.png has \(16, 12\)"),
        (truncated_picture, r"frame_9.png: not an image"),
        (one_picture, r"1 pictures and no DICOM files"),
        (tiny, r"at least 8 pixels"),
    ],
)
def test_recordings_that_are_wrong(spoil, message, stored, tmp_path):
    spoil(tmp_path, stored)
    with pytest.raises(InputError, match=message) as caught:
        read_recording(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("kind", ["dicom", "png", "nii.gz"])
def test_blank_frames_are_named(kind, stored, tmp_path):
    stored[2, 0] = 7
    if kind == "dicom":
        write_series(tmp_path, stored)
    elif kind == "png":
        write_numbered(tmp_path, stored)
    else:
        write_4d(tmp_path / "a.nii.gz", stored)
    recording = read_recording(tmp_path / "a.nii.gz" if kind == "nii.gz" else tmp_path)
    same(recording, stored)
    assert recording.blank == [[2], []][: len(recording.frames)]
    assert recording.remarks()[0].endswith("registered: frame 2" if kind == "png" else "registered: frame 2 of slice 0")
    assert recording.with_spacing((1.0, 2.0)).blank == recording.blank


def test_a_slice_with_one_frame_that_is_not_blank_has_nothing_to_register(stored, tmp_path):
    stored[1:, 0] = 7
    write_4d(tmp_path / "a.mha", stored)
    recording = read_recording(tmp_path / "a.mha")
    assert recording.blank == [list(range(FRAMES)), []]
    assert recording.remarks()[0].endswith("registered: slice 0")


def test_a_mask_may_be_zero_in_a_slice_that_is_not_registered(stored, tmp_path):
    stored[:, 1] = 7
    write_4d(tmp_path / "a.mha", stored)
    recording = read_recording(tmp_path / "a.mha")
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([np.eye(12, 16), np.zeros((12, 16))])), str(tmp_path / "mask.mha"))
    masks = read_mask(tmp_path / "mask.mha", recording.geometries, needed=[True, False])
    assert [mask.any() for mask in masks] == [True, False]
    with pytest.raises(InputError, match="zero everywhere in slice 1"):
        read_mask(tmp_path / "mask.mha", recording.geometries)


def test_an_order_that_does_not_decide_is_refused(stored, tmp_path):
    write_series(tmp_path, stored)
    with pytest.raises(InputError, match="acquisition-time: missing in 10 of 10 frames"):
        read_recording(tmp_path, order_by="acquisition-time")
    write_4d(tmp_path / "a.mha", stored)
    with pytest.raises(InputError, match="--order-by is for folders of DICOM files"):
        read_recording(tmp_path / "a.mha", order_by="trigger-time")
    write_numbered(tmp_path / "pictures", stored)
    with pytest.raises(InputError, match="--order-by is for folders of DICOM files"):
        read_recording(tmp_path / "pictures", order_by="trigger-time")
    with pytest.raises(InputError, match="no such file or folder"):
        read_recording(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["dicom", "enhanced", "nii.gz", "mha", "nrrd"])
def test_a_spacing_that_was_set_is_written(kind, stored, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    if kind == "dicom":
        write_series(source, stored)
    elif kind == "enhanced":
        write_enhanced(source / "a.dcm", stored[:, 0])
    else:
        source = source / f"a.{kind}"
        write_4d(source, stored)
    recording = read_recording(source).with_spacing((0.7, 1.3))
    (tmp_path / "out").mkdir()
    again = read_recording(recording.write(tmp_path / "out", recording.frames))
    for geometry, old in zip(again.geometries, recording.geometries, strict=True):
        np.testing.assert_allclose(geometry.spacing[:2], (0.7, 1.3), rtol=1e-6)
        np.testing.assert_allclose(geometry.origin, old.origin, atol=1e-5)


def test_every_slice_has_its_own_times(stored, tmp_path):
    write_series(tmp_path, stored, TriggerTime=lambda t, s: 100.0 * s + 40.0 * (1 + s) * t, InstanceNumber=None)
    recording = read_recording(tmp_path)
    for number, times in enumerate(recording.times):
        np.testing.assert_allclose(times, 0.04 * (1 + number) * np.arange(FRAMES), atol=1e-9)


@pytest.mark.parametrize(
    ("text", "seconds"), [("1230", 45000.0), ("12", 43200.0), ("123015.5", 45015.5), ("256000", None), ("x", None)]
)
def test_times_may_lack_seconds_and_may_be_none(text, seconds):
    found = _seconds(text)
    assert found is None if seconds is None else found == pytest.approx(seconds)


def test_files_of_several_frames_without_numbers_are_ordered_by_their_times(stored, tmp_path):
    """Two entries decide, and the number in the file is the same for several frames."""
    for number, part in enumerate((stored[:2, 0], stored[2:4, 0])):
        write_enhanced(tmp_path / f"{number}.dcm", part, delays=[40.0 * (2 * number + t) for t in range(2)])
        dataset = pydicom.dcmread(tmp_path / f"{number}.dcm")
        for t, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            content = pydicom.Dataset()
            content.TemporalPositionIndex = 1 + 2 * number + t
            group.FrameContentSequence = pydicom.Sequence([content])
        dataset.save_as(tmp_path / f"{number}.dcm")
    np.testing.assert_array_equal(read_recording(tmp_path).frames[0], stored[:4, 0])
