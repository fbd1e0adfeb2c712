"""Real images, where they are at hand: read as they are, registered without a fault."""

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import write_series
from scipy.ndimage import map_coordinates
from test_reference import CONFIG as MODEL
from test_reference import random_params

from r2n2_jax import Registrar, load
from r2n2_jax.config import Config
from r2n2_jax.data.series import find_patients, read_series
from r2n2_jax.data.splits import split_patients
from r2n2_jax.io.geometry import same_grid
from r2n2_jax.io.images import read_image
from r2n2_jax.io.recording import read_recording


def test_cardiac_cine_files_are_series_of_slices(shared_data):
    patients = find_patients(shared_data / "cardiac_cine")
    assert [len(part) for part in split_patients(patients, 0).values()] == [14, 3, 3]
    # One with spacing in its header, one without.
    for name in ("patient021_4d", "patient034_4d"):
        series = read_series({name: patients[name]})
        assert 5 <= len(series) <= 7
        for one in series:
            assert one.frames.ndim == 3
            assert 17 <= len(one.frames) <= 35
            assert 0 <= one.fixed < len(one.frames)


def test_a_file_and_the_same_patient_as_dicom_give_the_same(shared_data, tmp_path):
    original = read_recording(shared_data / "cardiac_cine" / "patient021_4d.nii.gz")
    # The file holds scaled numbers; DICOM stores whole ones.
    frames = np.stack([np.round(one[:4]) for one in original.frames[:2]], axis=1)
    sitk.WriteImage(sitk.GetImageFromArray(frames, isVector=False), str(tmp_path / "file.nii.gz"))
    recording = read_recording(tmp_path / "file.nii.gz")
    write_series(tmp_path / "dicom", frames.astype(np.uint16))
    again = read_recording(tmp_path / "dicom")
    registrar = Registrar(Config(model=MODEL), random_params(MODEL))
    for ours, theirs in zip(recording.frames, again.frames, strict=True):
        a, b = (registrar.register_series(one) for one in (ours, theirs))
        assert a.fixed_frame == b.fixed_frame
        np.testing.assert_array_equal(a.warped, b.warped)
        np.testing.assert_array_equal(a.displacement, b.displacement)


def seen_by_scipy(fixed, moving, field):
    """Masked MSE and correlation of the standardised images, the moving one pulled by SciPy, and the share that is seen."""
    size = np.array(fixed.shape)
    index = np.moveaxis(np.indices(fixed.shape), 0, -1) + field[..., ::-1] * (size - 1) / 2
    seen = ((index >= 0) & (index <= size - 1)).all(-1)
    fixed, moving = (np.clip((image - image.mean()) / image.std(), -2, 2).astype(np.float64) for image in (fixed, moving))
    pulled = map_coordinates(moving, np.moveaxis(index, -1, 0), order=1)
    return np.mean((fixed - pulled)[seen] ** 2), np.corrcoef(fixed[seen], pulled[seen])[0, 1], seen.mean()


def test_the_shipped_weights_bring_the_liver_pair_together_at_its_own_resolution(shared_data):
    """The controls: no field at all, and the same field the wrong way round."""
    fixed, moving = (read_image(shared_data / "liver_pair" / f"liver_mri{i}.jpg") for i in (0, 1))
    assert same_grid(fixed.geometry, moving.geometry)
    result = load().register(fixed.pixels, moving.pixels)
    assert result.displacement.shape == (*fixed.pixels.shape, 2) == (400, 400, 2)
    mse, correlation, seen = seen_by_scipy(fixed.pixels, moving.pixels, result.displacement)
    assert mse <= 0.08
    assert correlation >= 0.95
    assert seen > 0.97
    # Of x + f(x) by central differences, in pixels: no fold between any two of them.
    (x_y, x_x), (y_y, y_x) = (np.gradient(199.5 * result.displacement[..., axis].astype(np.float64)) for axis in (0, 1))
    assert ((1 + x_x) * (1 + y_y) - x_y * y_x).min() > 0.0
    assert seen_by_scipy(fixed.pixels, moving.pixels, 0.0 * result.displacement)[0] == pytest.approx(0.52, abs=0.01)
    mse, correlation, _ = seen_by_scipy(fixed.pixels, moving.pixels, -result.displacement)
    assert mse > 0.5
    assert correlation < 0.75
