"""DICOM folders as scanners write them: what is whole is read, the rest is named."""

import numpy as np
import pydicom
import pytest
from dicom_files import write_enhanced, write_series

from r2n2_jax.errors import InputError
from r2n2_jax.io.recording import read_recording

FRAMES, SLICES = 5, 3


@pytest.fixture
def stored():
    """``[T, S, H, W]`` uint16, every frame brighter than the one before."""
    base = np.random.default_rng(0).integers(0, 40, (1, SLICES, 12, 16)) + 1000 * np.arange(SLICES)[:, None, None]
    return (base + 50 * np.arange(FRAMES)[:, None, None, None]).astype(np.uint16)


def same(recording, stored):
    assert len(recording.frames) == stored.shape[1]
    for index, frames in enumerate(recording.frames):
        np.testing.assert_array_equal(frames, stored[:, index])


def test_a_slice_without_all_its_frames_is_left_out_and_named(stored, tmp_path):
    write_series(tmp_path, stored)
    last = next(path for path in tmp_path.iterdir() if np.array_equal(pydicom.dcmread(path).pixel_array, stored[4, 2]))
    last.unlink()
    recording = read_recording(tmp_path)
    same(recording, stored[:, :2])
    assert recording.remarks() == ["left out: the slice at (-31, 12.5, 56) mm has 4 frames and not 5"]


def test_a_slice_of_one_frame_is_no_measure_of_the_others(stored, tmp_path):
    """Four scouts and one cine."""
    write_series(tmp_path / "in", np.concatenate([stored[:, :1], *[stored[:, 1:2]] * 4], axis=1))
    for path in (tmp_path / "in").iterdir():
        header = pydicom.dcmread(path)
        if header.ImagePositionPatient[2] > 40 and header.TriggerTime > 0:
            path.unlink()
    recording = read_recording(tmp_path / "in")
    same(recording, stored[:, :1])
    assert len(recording.left_out) == 4


def test_the_orientation_of_the_most_frames_is_taken_and_the_others_are_named(stored, tmp_path):
    turned = [0, 1, 0, 0, 0, -1]
    write_series(tmp_path / "in", stored, ImageOrientationPatient=lambda t, s: [1, 0, 0, 0, 1, 0] if s else turned)
    recording = read_recording(tmp_path / "in")
    same(recording, stored[:, 1:])
    (line,) = recording.remarks()
    assert line.startswith("left out: 5 frames of another orientation, (0, 1, 0, 0, 0, -1) (as IM00")
    (tmp_path / "out").mkdir()
    assert len(list(recording.write(tmp_path / "out", recording.frames).iterdir())) == 2 * FRAMES


def test_an_orientation_of_single_frames_is_not_the_one_that_is_taken(stored, tmp_path):
    def orientation(t, s):
        return [1, 0, 0, 0, 1, 0] if s == 0 else [0, 1, 0, 0, 0, -1]

    def position(t, s):
        return [10.0 * t + 100 * s, 0.0, 0.0] if s else [0.0, 0.0, 0.0]

    write_series(tmp_path, stored, ImageOrientationPatient=orientation, ImagePositionPatient=position)
    same(read_recording(tmp_path), stored[:, :1])


@pytest.mark.parametrize("thickness", [8.0, None])
@pytest.mark.parametrize("jitter", [0.0, 0.02, 0.1])
def test_frames_a_little_apart_lie_in_one_slice(jitter, thickness, stored, tmp_path):
    moved = np.random.default_rng(1).uniform(-jitter, jitter, (FRAMES, SLICES, 3))
    write_series(
        tmp_path,
        stored,
        SliceThickness=thickness,
        ImagePositionPatient=lambda t, s: [round(v, 4) for v in np.array([-31.0, 12.5, 40.0 + 8.0 * s]) + moved[t, s]],
    )
    same(read_recording(tmp_path), stored)


@pytest.mark.parametrize("thickness", [0.05, None])
def test_thin_slices_are_not_one(thickness, stored, tmp_path):
    write_series(
        tmp_path,
        stored,
        SliceThickness=thickness,
        PixelSpacing=[0.02, 0.02],
        ImagePositionPatient=lambda t, s: [0.0, 0.0, 40.0 + 0.05 * s],
    )
    same(read_recording(tmp_path), stored)


def test_a_table_that_moves_is_no_slice(stored, tmp_path):
    write_series(tmp_path, stored[:, :1], ImagePositionPatient=lambda t, s: [0.0, 0.0, 40.0 + 0.75 * 4 * t / 3])
    with pytest.raises(InputError, match=r"slice\(s\) of one frame"):
        read_recording(tmp_path)
    write_series(tmp_path, np.repeat(stored[:, :1], 4, axis=0), ImagePositionPatient=lambda t, s: [0.0, 0.0, 40.0 + 0.7 * t])
    with pytest.raises(InputError, match="its frames need one place"):
        read_recording(tmp_path)


@pytest.mark.parametrize("dated", [True, False])
def test_midnight_is_no_beginning(dated, stored, tmp_path):
    seconds = [(86398 + t) % 86400 for t in range(FRAMES)]
    entries = {"AcquisitionTime": lambda t, s: f"{seconds[t] // 3600:02d}{seconds[t] // 60 % 60:02d}{seconds[t] % 60:02d}.5"}
    if dated:
        entries["AcquisitionDate"] = lambda t, s: "20231231" if t < 2 else "20240101"
    write_series(tmp_path, stored, drop=("TriggerTime", "InstanceNumber"), **entries)
    recording = read_recording(tmp_path)
    if dated:
        same(recording, stored)
        np.testing.assert_allclose(recording.times[0], np.arange(FRAMES))
    else:
        same(recording, np.roll(stored, -2, axis=0))


def test_the_order_in_a_file_is_not_asked_where_another_decides(stored, tmp_path):
    shuffled = np.random.default_rng(3).permutation(FRAMES)
    write_enhanced(tmp_path / "a.dcm", stored[shuffled, 0], delays=(40.0 * shuffled).tolist())
    same(read_recording(tmp_path), stored[:, :1])
    same(read_recording(tmp_path, order_by="instance-number"), stored[shuffled, :1])


def test_of_a_file_of_several_frames_those_left_out_are_not_written(stored, tmp_path):
    write_enhanced(tmp_path / "a.dcm", stored[:, 0], slope=[1.0, 2.0, 3.0, 4.0, 0.5], delays=[80.0, 0.0, 120.0, 40.0, 160.0])
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0].ImagePositionPatient = [-31.0, 12.5, 90.0]
    dataset.save_as(tmp_path / "a.dcm")
    recording = read_recording(tmp_path)
    kept, slopes = [3, 0, 2, 4], np.reshape([4.0, 1.0, 3.0, 0.5], (4, 1, 1, 1))
    same(recording, stored[kept, :1] * slopes)
    assert recording.remarks() == ["left out: the slice at (-31, 12.5, 90) mm has 1 frames and not 4"]
    (tmp_path / "out").mkdir()
    again = read_recording(recording.write(tmp_path / "out", recording.frames))
    same(again, stored[kept, :1] * slopes)
    assert again.remarks() == []


def test_one_file_of_a_folder_is_told_of_the_folder(stored, tmp_path):
    write_series(tmp_path, stored)
    with pytest.raises(InputError, match=r"IM0003.dcm: one frame; at least two are needed: name the folder") as caught:
        read_recording(tmp_path / "IM0003.dcm")
    assert f"({tmp_path}?)" in str(caught.value)
