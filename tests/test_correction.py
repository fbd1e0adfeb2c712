"""A whole recording is registered, and everything that is written of it agrees and opens in ITK."""

import csv
import dataclasses
import json
import re

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import write_series
from test_reference import CONFIG as MODEL
from test_reference import random_params

from r2n2_jax import Registrar
from r2n2_jax.commands.motion_correction import Options, _choose_frames, _describe_choice, correct
from r2n2_jax.config import Config
from r2n2_jax.data.fixed_frame import mean_intensity_frame, mean_position_frame, position_curve
from r2n2_jax.errors import InputError
from r2n2_jax.evaluation.figures import _over_frames
from r2n2_jax.evaluation.series_report import summary_rows
from r2n2_jax.io.landmarks import read_landmarks
from r2n2_jax.io.recording import read_recording
from r2n2_jax.registration.course import ENDINGS

FRAMES, SLICES, SHAPE = 18, 2, (25, 31)  # more frames than are registered at once


@pytest.fixture(scope="module")
def moving_square():
    """``[T, S, H, W]`` uint16: a bright square that goes down and up again, its middle aside as well."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 60, (FRAMES, SLICES, *SHAPE)).astype(np.uint16)
    for t in range(FRAMES):
        top = round(8 + 4 * np.sin(2 * np.pi * t / FRAMES))
        aside = (top - 8) // 2  # the middle alone
        frames[t, :, top : top + 2, 10:20] += 500
        frames[t, :, top + 2 : top + 6, 10 + aside : 20 + aside] += 500
        frames[t, :, top + 6 : top + 8, 10:20] += 500
    return frames


@pytest.fixture(scope="module")
def registrar():
    return Registrar(Config(model=MODEL), random_params(MODEL))


@pytest.fixture(scope="module")
def dicom(moving_square, tmp_path_factory):
    """An oblique DICOM series: rows turned by 25 degrees, pixels of 1.5 x 2 mm, slices 8 mm apart."""
    folder = tmp_path_factory.mktemp("dicom")
    c, s = np.cos(np.radians(25)), np.sin(np.radians(25))
    write_series(folder, moving_square, normal=(0.0, 0.0, 1.0), ImageOrientationPatient=[c, s, 0.0, -s, c, 0.0])
    return folder


@pytest.fixture(scope="module")
def corrected(registrar, dicom, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    landmarks = folder.parent / "landmarks.csv"
    landmarks.write_text("slice,frame,point,x_mm,y_mm\n" + "".join(f"1,{t},centre,22.5,{24 + t}\n" for t in range(FRAMES)))
    results = correct(
        registrar, read_recording(dicom), folder, options=Options(fixed_frame=3), landmarks=landmarks, progress=False
    )
    return folder, results


def test_the_written_fields_applied_by_itk_give_the_written_series(corrected, dicom):
    folder, results = corrected
    before = read_recording(dicom)
    again = read_recording(folder / "warped")
    assert again.order == "trigger-time"
    for index, geometry in enumerate(before.geometries):
        assert again.geometries[index] == geometry
        np.testing.assert_allclose(again.frames[index], results[index].warped, atol=0.5)  # DICOM stores whole numbers
        for frame in (0, 7, 17):
            path = folder / "fields" / f"slice_{index}" / f"frame_{frame:04d}.nii.gz"
            field = sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
            # A slice written twice lets ITK interpolate at its place.
            image = sitk.GetImageFromArray(np.repeat(before.frames[index][frame][None], 2, axis=0))
            image.SetSpacing(geometry.spacing)
            image.SetOrigin(geometry.origin)
            image.SetDirection(geometry.direction)
            transform = sitk.DisplacementFieldTransform(field)
            itk = sitk.GetArrayFromImage(sitk.Resample(image, image, transform, sitk.sitkLinear, 0.0))[0]
            seen = results[index].warped[frame] != 0  # ITK goes on for half a pixel beyond the border
            assert seen.mean() > 0.5
            spread = np.ptp(before.frames[index][frame])
            assert np.abs(itk - results[index].warped[frame])[seen].max() < 1e-3 * spread


def test_frames_points_and_parameters_are_those_of_the_result(corrected, moving_square):
    folder, results = corrected
    with (folder / "frames.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == FRAMES * SLICES
    for row in rows:
        one = results[int(row["slice"])]
        frame = int(row["frame"])
        assert float(row["mse_after"]) == pytest.approx(one.after.mse[frame], rel=1e-4)
        assert float(row["time_s"]) == pytest.approx(0.04 * frame)
        assert (row["tre_after_mm"] == "") == (row["slice"] == "0")
    fixed_row = rows[FRAMES + 3]
    assert float(fixed_row["mse_before"]) == pytest.approx(0.0, abs=1e-6)
    described = json.loads((folder / "parameters.json").read_text())
    assert [one["fixed_frame"] for one in described] == [3, 3]
    assert len(described[0]["frames"]) == FRAMES
    placed = [frame["transformations"] for frame in described[0]["frames"]]
    assert [int(row["steps"]) for row in rows[:FRAMES]] == list(map(len, placed))
    assert all(row["stopped"] in ENDINGS for row in rows)
    assert all(sum(map(len, one.values())) == 7 for every in placed for one in every)
    assert any(placed), "some frame is deformed"
    carried = read_landmarks(folder / "points.csv", slices=SLICES)[1]
    with (folder / "points.csv").open() as file:
        ellipses = [row for row in csv.DictReader(file) if row["slice"] == "1" and row["point"] == "centre"]
    for row in ellipses:
        major, minor, angle = (float(row[name]) for name in ("major_mm", "minor_mm", "angle_degrees"))
        along = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
        stated = results[1].points_covariance[int(row["frame"]), 0]
        assert (major, minor) == pytest.approx(tuple(np.sqrt(np.linalg.eigvalsh(stated)[::-1])), abs=1e-3)
        assert along @ stated @ along == pytest.approx(major**2, rel=1e-2, abs=1e-3)
    assert [float(row["major_mm"]) > 0 for row in ellipses] == [t != 3 for t in range(FRAMES)]
    field = sitk.ReadImage(str(folder / "fields" / "slice_1" / "frame_0009.nii.gz"))
    start = np.array([22.5, 27.0])  # in the fixed frame, 3
    direction = np.reshape(field.GetDirection(), (3, 3))
    place = np.array(field.GetOrigin()) + direction @ [*start, 0.0]
    index = field.TransformPhysicalPointToContinuousIndex(place)
    near = field[tuple(round(i) for i in index)]
    expected = start + (direction.T @ np.array(near))[:2]
    np.testing.assert_allclose(carried[9, 0], expected, atol=0.6)  # the field at the nearest pixel
    assert float(rows[FRAMES + 9]["tre_before_mm"]) == pytest.approx(6.0, abs=1e-3)


@pytest.fixture(scope="module")
def with_blanks(registrar, moving_square, tmp_path_factory):
    """Frame 5 of slice 0 is blank, and all of slice 2."""
    frames = np.concatenate([moving_square[:, :1], moving_square[:, 1:], np.full_like(moving_square[:, :1], 9)], axis=1)
    frames[5, 0] = 4
    folder = tmp_path_factory.mktemp("blank")
    write_series(folder / "in", frames)
    (folder / "out").mkdir()
    recording = read_recording(folder / "in")
    results = correct(registrar, recording, folder / "out", options=Options(), progress=False)
    return recording, folder / "out", results


def test_blank_frames_go_out_as_they_came_and_the_others_as_without_them(with_blanks, registrar, moving_square, tmp_path):
    recording, folder, results = with_blanks
    written = read_recording(folder / "warped")
    np.testing.assert_array_equal(written.frames[2], recording.frames[2])
    np.testing.assert_array_equal(written.frames[0][5], 4.0)
    kept = np.delete(np.arange(FRAMES), 5)
    assert list(results[0].kept) == list(kept)
    write_series(tmp_path / "in", moving_square[kept, :1])
    (tmp_path / "out").mkdir()
    (alone,) = correct(registrar, read_recording(tmp_path / "in"), tmp_path / "out", options=Options(), progress=False)
    assert results[0].fixed == kept[alone.fixed]
    np.testing.assert_array_equal(results[0].warped[kept], alone.warped)
    np.testing.assert_array_equal(results[0].after.mse[kept], alone.after.mse)
    assert np.abs(alone.warped - recording.frames[0][kept]).max() > 50, "they are moved"


def test_blank_frames_are_named_in_what_is_written(with_blanks):
    recording, folder, results = with_blanks
    with (folder / "frames.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * FRAMES
    empty = [i for i, row in enumerate(rows) if row["mse_after"] == "" and float(row["largest_displacement_mm"]) == 0]
    assert empty == [5, *range(2 * FRAMES, 3 * FRAMES)]
    for frame, moved in ((5, False), (6, True)):
        field = sitk.ReadImage(str(folder / "fields" / "slice_0" / f"frame_{frame:04d}.nii.gz"))
        assert (np.abs(sitk.GetArrayFromImage(field)).max() > 0.1) == moved
    described = json.loads((folder / "parameters.json").read_text())
    assert described[0]["frames"][5]["transformations"] == []
    assert described[0]["frames"][5]["stopped"] == rows[5]["stopped"] == "blank"
    identity = np.eye(2).tolist(), [0.0, 0.0]
    assert (described[0]["frames"][5]["matrix"], described[0]["frames"][5]["offset"]) == identity
    sixth = described[0]["frames"][6]
    assert sixth["transformations"] or (sixth["matrix"], sixth["offset"]) != identity
    assert [one["fixed_frame"] for one in described] == [results[0].fixed, results[1].fixed, None]
    assert [row["status"] for row in rows] == [status for one in results for status in one.statuses]
    assert [frame["status"] for one in described for frame in one["frames"]] == [row["status"] for row in rows]
    assert [i for i, row in enumerate(rows) if row["status"] == "blank"] == empty
    assert recording.remarks()[0][1:] in (folder / "report.html").read_text()
    assert summary_rows(results)[1][2][1] == "blank"
    assert summary_rows(results)[1][0][6].endswith(f"of {FRAMES - 2}")


def test_slices_keep_one_frame_that_is_blank_in_none_of_them(registrar, moving_square, tmp_path):
    """The frame that both slices would keep is blank in one; a third slice is blank altogether."""
    frames = np.concatenate([moving_square, np.full_like(moving_square[:, :1], 9)], axis=1)
    blank = mean_position_frame(*moving_square.astype(np.float32).swapaxes(0, 1))
    frames[blank, 0] = 4
    write_series(tmp_path / "in", frames)
    recording = read_recording(tmp_path / "in")
    folder = tmp_path / "out"
    folder.mkdir()
    results = correct(registrar, recording, folder, options=Options(), progress=False)
    # The truth by another way: both slices as one image over the other times, its scores by singular values.
    others = np.delete(np.arange(FRAMES), blank)
    together = moving_square[others].reshape(len(others), -1).astype(float)
    scores = np.linalg.svd(together - together.mean(axis=0), full_matrices=False)[0][:, 0]
    fixed = others[np.argmin(np.abs(scores))]
    assert [one.fixed for one in results] == [fixed, fixed, None]
    said = f"one fixed frame for all 2 slices that are not blank: {fixed}"
    assert _describe_choice(recording, [one.fixed for one in results]) == said
    with (folder / "frames.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("position", "mse_before", "mse_after", "ncc_after", "folded"):
        assert [i for i, row in enumerate(rows) if row[name] == ""] == [blank, *range(2 * FRAMES, 3 * FRAMES)]
    lengths = [np.square(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))).sum(-1)[0] for path in fields_of(folder, 0)]
    np.testing.assert_allclose(np.trace(results[0].motion, axis1=-2, axis2=-1), np.sum(lengths, axis=0), rtol=1e-3, atol=1e-6)
    text = (folder / "report.html").read_text()
    assert [f"Slice {index}, M-mode" in text for index in range(3)] == [True, True, False]
    viewed = json.loads(re.findall(r'id="viewer-data">(.*?)</script>', text, re.DOTALL)[0])
    assert [one["fixedNumber"] for one in viewed] == [fixed, fixed, None]
    assert viewed[0]["captions"][blank] == "blank: as it came"
    assert viewed[0]["after"][blank] == viewed[0]["before"][blank]
    assert viewed[1]["captions"][blank].startswith("masked MSE 0.")
    assert set(viewed[2]["captions"]) == {"of a blank slice: as it came"}
    assert "nan" not in json.dumps([one["captions"] for one in viewed])


def fields_of(folder, index):
    return sorted((folder / "fields" / f"slice_{index}").iterdir())


def test_slices_without_a_common_frame_keep_one_each(tmp_path):
    recording = lagging_slices(tmp_path)
    for t in range(FRAMES):
        recording.frames[t % 2][t] = 0.0
    recording = dataclasses.replace(recording)
    chosen = _choose_frames(recording, "mean-position")
    assert [number % 2 for number in chosen] == [1, 0]
    assert _describe_choice(recording, chosen).startswith(
        "slices of which every frame is blank in some; the fixed frame of each: "
    )


def test_a_blank_frame_cannot_stay(with_blanks, registrar, tmp_path):
    with pytest.raises(InputError, match="--fixed-frame 5: that frame is blank"):
        correct(registrar, with_blanks[0], tmp_path, options=Options(fixed_frame=5), progress=False)


def _determinants(described):
    """Of a frame's map as ``parameters.json`` describes it, in float64."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    slopes = np.broadcast_to(described["matrix"], (*SHAPE, 2, 2)).copy()
    for one in described["transformations"]:
        cos, sin = np.cos(one["rotation"][0]), np.sin(one["rotation"][0])
        turn = np.array([[cos, -sin], [sin, cos]])
        precision = turn @ np.diag(1 / np.array(one["variance"])) @ turn.T
        pulled = (np.stack([x, y], axis=-1) - one["position"]) @ precision
        height = np.exp(-0.5 * np.sum(pulled * (np.stack([x, y], axis=-1) - one["position"]), axis=-1))
        slopes -= height[..., None, None] * np.array(one["weight"])[:, None] * pulled[..., None, :]
    return np.linalg.det(slopes)


def test_maps_and_page_are_whole(corrected):
    folder, (result, _) = corrected
    assert len(list((folder / "log_jacobian" / "slice_0").iterdir())) == FRAMES
    # Of a frame that is more than shifted: what local transformations do to it is not the same everywhere.
    weights = [np.abs([one["weight"] for one in frame["transformations"]]).sum() for frame in result.parameters]
    name = f"frame_{np.argmax(weights):04d}.nii.gz"
    ventilation = sitk.ReadImage(str(folder / "log_jacobian" / "slice_0" / name))
    assert ventilation.GetSize() == (SHAPE[1], SHAPE[0], 1)
    expected = _determinants(result.parameters[np.argmax(weights)])
    assert expected.min() > 0.1
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(sitk.GetArrayFromImage(ventilation)[0], np.log(expected), atol=1e-4)
    page = (folder / "report.html").read_text()
    assert page.count("data:image/gif;base64,") == SLICES
    assert "://" not in page


def test_the_position_curve_follows_the_motion(moving_square):
    frames = moving_square[:, 0].astype(np.float32)
    expected = np.sin(2 * np.pi * np.arange(FRAMES) / FRAMES)
    assert abs(np.corrcoef(position_curve(frames), expected)[0, 1]) > 0.9
    assert abs(expected[mean_position_frame(frames)]) < 0.4
    assert abs(position_curve(frames).std() - 1.0) < 1e-6
    brighter = np.arange(1.0, 8.0)[:, None, None] * np.ones((7, 8, 8))
    assert mean_intensity_frame(brighter) == 3


def lagging_slices(tmp_path, **entries):
    """A recording of two slices of the same square, of which the second moves an eighth of a cycle later and less."""
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 60, (FRAMES, 2, 30, 20)).astype(np.uint16)
    for t, s in np.ndindex(FRAMES, 2):
        top = round(11 + (7 - 3 * s) * np.sin(2 * np.pi * (t / FRAMES + 0.05 - s / 8)))
        frames[t, s, top : top + 8, 5:15] += 500
    write_series(tmp_path, frames, **entries)
    return read_recording(tmp_path)


def one_after_another(t, s):
    return f"10{s:02d}{t:02d}.000000"  # a minute a slice


def test_slices_that_share_their_times_keep_one_fixed_frame(tmp_path):
    shared = lagging_slices(tmp_path / "shared")
    apart = lagging_slices(tmp_path / "apart", drop=["TriggerTime"], AcquisitionTime=one_after_another)
    # The truth by another way: all slices as one image over time, its scores by singular values.
    together = np.concatenate([frames.reshape(FRAMES, -1) for frames in shared.frames], axis=1).astype(float)
    scores = np.linalg.svd(together - together.mean(axis=0), full_matrices=False)[0][:, 0]
    truth = {"mean-position": int(np.argmin(np.abs(scores)))}
    means = together.mean(axis=1)
    truth["mean-intensity"] = int(np.argmin(np.abs(means - means.mean())))
    for asked, choose in (("mean-position", mean_position_frame), ("mean-intensity", mean_intensity_frame)):
        own = [choose(frames) for frames in shared.frames]
        assert own[0] != own[1]
        assert _choose_frames(shared, asked) == [truth[asked]] * 2
        assert _choose_frames(apart, asked) == own
    assert _choose_frames(apart, 3) == [3, 3]
    assert _describe_choice(shared, [4, 4]) == "one fixed frame for all 2 slices: 4"
    assert _describe_choice(apart, [4, 5]) == "slices that do not share their times; the fixed frame of each: 4, 5"


def test_what_cannot_be_done_is_said(registrar, dicom, tmp_path):
    recording = read_recording(dicom)
    with pytest.raises(InputError, match="--fixed-frame 18: the recording has the frames 0 to 17"):
        correct(registrar, recording, tmp_path, options=Options(fixed_frame=18), progress=False)
    (tmp_path / "points.csv").write_text("slice,frame,point,x_mm,y_mm\n0,5,a,3,3\n")
    with pytest.raises(InputError, match="no point in frame 4 of slice 0, the fixed one"):
        correct(
            registrar, recording, tmp_path, options=Options(fixed_frame=4), landmarks=tmp_path / "points.csv", progress=False
        )
    assert [path.name for path in tmp_path.iterdir()] == ["points.csv"]


def test_mean_and_deviation_over_time_are_of_what_the_frames_show():
    frames = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    inside = np.random.default_rng(1).random(frames.shape) > 0.4
    inside[:, 0, 0] = False
    mean, deviation = _over_frames(np.where(inside, frames, 0.0), inside)
    known = np.ma.masked_array(frames, ~inside)
    np.testing.assert_allclose(mean, known.mean(axis=0).filled(np.nan), atol=1e-6)
    np.testing.assert_allclose(deviation, known.std(axis=0).filled(np.nan), atol=1e-6)
    assert np.isnan(mean[0, 0])
    assert np.abs(_over_frames(np.where(inside, frames, 0.0))[0] - mean)[1:].max() > 0.1
