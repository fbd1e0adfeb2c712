"""Real images, where they are at hand: read as they are, registered without a fault."""

import numpy as np
from test_reference import CONFIG as MODEL
from test_reference import random_params

from r2n2_jax import Registrar
from r2n2_jax.config import Config
from r2n2_jax.data.series import find_patients, read_series
from r2n2_jax.data.splits import split_patients
from r2n2_jax.io import read_image, same_grid


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


def test_the_liver_pair_is_registered_at_its_own_resolution(shared_data):
    paths = [shared_data / "liver_pair" / f"liver_mri{i}.jpg" for i in (0, 1)]
    fixed, moving = (read_image(path) for path in paths)
    assert same_grid(fixed.geometry, moving.geometry)
    result = Registrar(Config(model=MODEL), random_params(MODEL)).register(fixed.pixels, moving.pixels)
    assert result.warped.shape == fixed.pixels.shape == (400, 400)
    assert np.isfinite(result.displacement).all()
