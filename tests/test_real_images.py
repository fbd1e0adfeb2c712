"""Real images, where they are at hand: read as they are, registered without a fault."""

import numpy as np
import SimpleITK as sitk
from dicom_files import write_series
from test_reference import CONFIG as MODEL
from test_reference import random_params

from r2n2_jax import Registrar
from r2n2_jax.config import Config
from r2n2_jax.data.series import find_patients, read_series
from r2n2_jax.data.splits import split_patients
from r2n2_jax.io.images import read_image, same_grid
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


def test_the_liver_pair_is_registered_at_its_own_resolution(shared_data):
    paths = [shared_data / "liver_pair" / f"liver_mri{i}.jpg" for i in (0, 1)]
    fixed, moving = (read_image(path) for path in paths)
    assert same_grid(fixed.geometry, moving.geometry)
    result = Registrar(Config(model=MODEL), random_params(MODEL)).register(fixed.pixels, moving.pixels)
    assert result.warped.shape == fixed.pixels.shape == (400, 400)
    assert np.isfinite(result.displacement).all()
