"""Real series with what is known of them: landmarks in a CSV beside the file, organs in ``masks/``."""

import re

import numpy as np
import pytest
import SimpleITK as sitk

from r2n2_jax.data.series import find_patients, read_series
from r2n2_jax.errors import InputError
from r2n2_jax.evaluation.cases import series_cases, unjudged_landmarks
from r2n2_jax.evaluation.metrics import concatenate, measure

SPACING = (1.5, 2.0)
SHIFT_PX = np.array([2.0, 1.0])  # per frame, along x and y


def square(frame: int) -> np.ndarray:
    labels = np.zeros((32, 40), np.uint8)
    x, y = (np.array([10, 8]) + frame * SHIFT_PX).astype(int)
    labels[y : y + 8, x : x + 10] = 3
    return labels


def write_2d_t(path, frames: np.ndarray) -> None:
    """``[frames, slices, H, W]``."""
    path.parent.mkdir(exist_ok=True)
    image = sitk.JoinSeries([sitk.GetImageFromArray(volume) for volume in frames])
    image.SetSpacing((*SPACING, 8.0, 1.0))
    sitk.WriteImage(image, str(path))


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.stack([np.stack([square(t)] * 2) for t in range(4)])
    for name in ("anna", "bert"):
        write_2d_t(tmp_path / f"{name}.nii.gz", (labels + rng.normal(0, 0.1, labels.shape)).astype(np.float32))
    labels[3] = 0  # the last frame is not labelled
    write_2d_t(tmp_path / "masks" / "anna.nii.gz", labels)
    rows = [f"{s},{t},corner,{(10 + 2 * t) * 1.5},{(8 + t) * 2.0}" for s in (0, 1) for t in range(3)]
    (tmp_path / "anna.csv").write_text("slice,frame,point,x_mm,y_mm\n" + "\n".join(rows) + "\n")
    return tmp_path


def cases_of(folder):
    return series_cases(read_series(find_patients(folder)), folder)


def test_files_of_patients_that_are_not_judged_are_left_alone(folder):
    (folder / "anna.csv").write_text("nothing of use")
    cases = series_cases(read_series({"bert": find_patients(folder)["bert"]}), folder)
    assert [case.patient for case in cases] == ["bert", "bert"]


def exact(case) -> np.ndarray:
    """The shift from the fixed frame to every other, normalised."""
    px = (case.frames - case.fixed_frame)[:, None] * SHIFT_PX
    field = px / (np.array([40, 32]) - 1) * 2
    return np.broadcast_to(field[:, None, None, :], (*case.fixed.shape, 2)).astype(np.float32)


def test_landmarks_and_masks_move_with_the_exact_field(folder):
    cases = cases_of(folder)
    assert [(case.patient, case.slice) for case in cases] == [(p, s) for p in ("anna", "bert") for s in ("slice 0", "slice 1")]
    case = cases[0]
    assert case.fixed_frame in (1, 2)
    labelled = case.frames != 3
    judged = measure(case, exact(case))
    np.testing.assert_allclose(judged.tre_mm[labelled], 0.0, atol=1e-3)
    np.testing.assert_allclose(judged.dice["label 3"][labelled], 1.0)
    nothing = measure(case, np.zeros_like(exact(case)))
    frames_away = np.abs(case.frames - case.fixed_frame)[labelled]
    np.testing.assert_allclose(nothing.tre_mm[labelled], frames_away * np.hypot(3.0, 2.0), rtol=1e-4)
    overlap = (10 - 2 * frames_away) * (8 - frames_away) / 80
    np.testing.assert_allclose(nothing.dice["label 3"][labelled], overlap, rtol=1e-6)
    assert np.isnan(judged.dice["label 3"][~labelled]).all()
    assert np.isnan(judged.tre_mm[~labelled]).all()


def test_landmarks_that_judge_nothing_are_told(folder):
    assert unjudged_landmarks(cases_of(folder)) == []
    (folder / "anna.csv").write_text("slice,frame,point,x_mm,y_mm\n0,0,a,1,2\n0,3,a,1,2\n")
    (line,) = unjudged_landmarks(cases_of(folder))
    assert re.fullmatch(r"anna, slice 0: landmarks, but none in frame [12], the fixed one: no TRE", line)


def test_a_patient_without_masks_does_not_hide_the_others(folder):
    cases = cases_of(folder)
    pooled = concatenate([measure(case, exact(case)) for case in cases])
    known = np.isfinite(pooled.dice["label 3"])
    assert known.sum() == 4
    assert not known[6:].any()
    (folder / "masks" / "anna.nii.gz").unlink()
    (folder / "masks").rmdir()
    assert concatenate([measure(case, exact(case)) for case in cases_of(folder)]).dice is None


def spoil_size(folder):
    write_2d_t(folder / "masks" / "anna.nii.gz", np.zeros((4, 1, 32, 40), np.uint8))


def spoil_labels(folder):
    write_2d_t(folder / "masks" / "anna.nii.gz", np.full((4, 2, 32, 40), 0.5, np.float32))


def spoil_slice_column(folder):
    (folder / "anna.csv").write_text("frame,point,x_mm,y_mm\n0,a,1,2\n")


def spoil_slice_value(folder):
    (folder / "anna.csv").write_text("slice,frame,point,x_mm,y_mm\n,0,a,1,2\n")


def spoil_slice_number(folder):
    (folder / "anna.csv").write_text("slice,frame,point,x_mm,y_mm\n2,0,a,1,2\n")


def spoil_frame(folder):
    (folder / "anna.csv").write_text("slice,frame,point,x_mm,y_mm\n0,4,a,1,2\n")


def spoil_position(folder):
    (folder / "anna.csv").write_text("slice,frame,point,x_mm,y_mm\n0,1,a,1,200\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_size, r"masks.anna.nii.gz: frames, slices, rows, columns \(4, 1, 32, 40\); the series has \(4, 2, 32, 40\)"),
        (spoil_labels, r"masks.anna.nii.gz: not labels"),
        (spoil_slice_column, r"anna.csv: no column slice; found frame, point, x_mm, y_mm, needed slice, frame"),
        (spoil_slice_value, r"anna.csv, line 2"),
        (spoil_slice_number, "anna.csv: a point in frame 0 of slice 2; the series has the slices 0 to 1"),
        (spoil_frame, "anna.csv: a point in frame 4 of slice 0; the series has the frames 0 to 3"),
        (spoil_position, r"anna.csv: a landmark of slice 0 lies outside the image"),
    ],
)
def test_what_does_not_belong_to_the_series(spoil, message, folder):
    spoil(folder)
    with pytest.raises(InputError, match=message):
        cases_of(folder)
