"""The public API: any size, any range, the field exact at the image's own resolution."""

import json

import jax
import numpy as np
import pytest
import SimpleITK as sitk
from test_reference import CONFIG as MODEL
from test_reference import random_params

from r2n2_jax import InputError, Registrar, inference
from r2n2_jax.config import Config
from r2n2_jax.inference import propose
from r2n2_jax.ops.gaussian import displacement
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.warp import inside


@pytest.fixture(scope="module")
def registrar():
    return Registrar(Config(model=MODEL), random_params(MODEL))


def images(count=2, shape=(45, 37), seed=0):
    coarse = np.random.default_rng(seed).normal(size=(count, 6, 5))
    return np.asarray(300 + 90 * jax.image.resize(coarse, (count, *shape), "cubic"))


def test_the_field_is_evaluated_at_the_images_own_resolution(registrar):
    fixed, moving = images()
    result = registrar.register(fixed, moving)
    assert result.displacement.shape == (45, 37, 2)
    assert result.steps == len(result.parameters.position) == MODEL.steps
    np.testing.assert_allclose(result.displacement, displacement(result.parameters, coordinates((45, 37))), atol=1e-6)
    assert np.abs(result.displacement).max() > 0.02
    np.testing.assert_array_equal(result.inside, inside(coordinates((45, 37)) + result.displacement))
    assert (result.warped[~result.inside] == 0).all()
    assert moving.min() - 0.01 <= result.warped[result.inside].min() <= result.warped.max() <= moving.max() + 0.01


def test_intensity_scale_and_offset_do_not_matter(registrar):
    fixed, moving = images()
    one, other = (registrar.register(*pair, refine=1) for pair in ((fixed, moving), (0.01 * fixed - 7, 50 * moving)))
    np.testing.assert_allclose(one.displacement, other.displacement, atol=1e-3)


def test_another_size_of_images_does_not_trace_the_network_again(registrar, monkeypatch):
    traced = []
    monkeypatch.setattr(inference, "propose", lambda *args, **options: traced.append(1) or propose(*args, **options))
    for shape in ((45, 37), (50, 41), (64, 64)):
        registrar.register(*images(shape=shape), steps=3, refine=0)  # steps that no other test asks for
    assert len(traced) == 1
    registrar.register(*images(), steps=5, refine=0)
    assert len(traced) == 2, "traces are counted"


def test_points_follow_the_field(registrar):
    fixed, moving = images()
    result = registrar.register(fixed, moving)
    grid = np.asarray(coordinates((45, 37)))
    np.testing.assert_allclose(result.points(grid[10:20, 5]), grid[10:20, 5] + result.displacement[10:20, 5], atol=1e-5)


def test_a_series_is_its_pairs(registrar):
    frames = images(19)
    result = registrar.register_series(frames, fixed=4, refine=1)
    assert (result.fixed_frame, result.warped.shape) == (4, (19, 45, 37))
    for t in (0, 17, 18):
        pair = registrar.register(frames[4], frames[t], refine=1)
        np.testing.assert_allclose(result.displacement[t], pair.displacement, atol=1e-4)
    points = np.zeros((3, 2), np.float32)
    assert result.points(points).shape == (19, 3, 2)
    np.testing.assert_allclose(result.points(points)[18], pair.points(points), atol=1e-4)
    assert 0 <= registrar.register_series(frames[:3]).fixed_frame < 3


def test_steps_can_be_chosen(registrar):
    fixed, moving = images()
    assert registrar.register(fixed, moving, steps=2).parameters.weight.shape == (2, 2)
    with pytest.raises(InputError, match="0 steps"):
        registrar.register(fixed, moving, steps=0)


def itk_image(pixels, size=None, *, spacing=(0.8, 2.5, 1.7), origin=(-31.0, 12.5, 40.0), degrees=25.0):
    image = sitk.GetImageFromArray(pixels.astype(np.float32).reshape(tuple(reversed(size or pixels.shape[::-1]))))
    d = image.GetDimension()
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    direction = np.eye(d)
    direction[:2, :2] = [[c, -s], [s, c]]
    image.SetSpacing(spacing[:d])
    image.SetOrigin(origin[:d])
    image.SetDirection(direction.ravel())
    return image


@pytest.mark.parametrize("size", [(37, 45), (37, 45, 1)])
def test_a_simpleitk_image_is_its_array_and_its_place(size, registrar):
    fixed, moving = images()
    result = registrar.register(itk_image(fixed, size), itk_image(moving, size))
    plain = registrar.register(fixed, moving)
    np.testing.assert_array_equal(result.displacement, plain.displacement)
    np.testing.assert_array_equal(result.warped, plain.warped)
    moving_image = itk_image(moving, size)
    itk = sitk.GetArrayFromImage(sitk.Resample(moving_image, moving_image, result.transform(), sitk.sitkLinear, 0.0))
    np.testing.assert_allclose(
        itk.reshape(fixed.shape)[result.inside], result.warped[result.inside], atol=1e-3 * np.ptp(moving)
    )
    unturned = registrar.register(itk_image(fixed, size, degrees=0.0), itk_image(moving, size, degrees=0.0)).transform()
    wrong = sitk.GetArrayFromImage(sitk.Resample(moving_image, moving_image, unturned, sitk.sitkLinear, 0.0))
    assert np.abs(wrong.reshape(fixed.shape) - result.warped)[result.inside].max() > 0.1 * np.ptp(moving)


def test_images_on_different_grids_meet_where_they_lie(registrar):
    fixed, moving = images(2, (45, 37))
    fixed = itk_image(fixed)
    grid = sitk.Image([40, 32], sitk.sitkFloat32)
    grid.SetSpacing((1.1, 3.0))
    grid.SetOrigin((-60.0, 15.0))
    coarse = sitk.Resample(itk_image(moving), grid)
    coarse += 5.0
    result = registrar.register(fixed, coarse)
    assert result.warped.shape == (45, 37)
    itk = sitk.GetArrayFromImage(sitk.Resample(coarse, fixed, result.transform(), sitk.sitkLinear, 0.0))
    np.testing.assert_allclose(result.warped, itk, atol=1e-3 * np.ptp(moving))
    np.testing.assert_array_equal(result.inside, itk > 0)
    assert 0.3 < result.inside.mean() < 1.0
    with pytest.raises(InputError, match=r"the moving image lies apart: it covers 0 % of the fixed image"):
        registrar.register(fixed, itk_image(moving, origin=(500.0, 0.0)))
    with pytest.raises(InputError, match="the moving image lies in 3 dimensions and the fixed image in 2"):
        registrar.register(fixed, itk_image(moving, (37, 45, 1)))


def test_a_result_is_saved_whole_and_once(registrar, tmp_path):
    fixed, moving = images()
    result = registrar.register(itk_image(fixed), itk_image(moving))
    result.save(tmp_path / "pair")
    warped = sitk.ReadImage(str(tmp_path / "pair" / "warped.nii.gz"))
    np.testing.assert_allclose(sitk.GetArrayFromImage(warped), result.warped, rtol=1e-6)
    np.testing.assert_allclose(warped.GetSpacing(), (0.8, 2.5))
    assert json.loads((tmp_path / "pair" / "parameters.json").read_text())["steps"] == MODEL.steps
    assert (tmp_path / "pair" / "displacement.nii.gz").exists()
    with pytest.raises(InputError, match="exists already"):
        result.save(tmp_path / "pair")
    series = registrar.register_series(np.stack([fixed, moving]), fixed=0)
    with pytest.raises(InputError, match="one by one"):
        series.save(tmp_path / "series")
    series.frame(1).save(tmp_path / "frame")
    with pytest.raises(InputError, match="for a series"):
        series.transform()
    shift = series.transform(1).TransformPoint((18.0, 22.0)) - np.array([18.0, 22.0])
    np.testing.assert_allclose(shift, series.displacement[1, 22, 18] * np.array([18.0, 22.0]), atol=1e-4)


def test_what_cannot_be_registered_is_refused(registrar):
    fixed, moving = images()
    with pytest.raises(InputError, match="must be of one shape"):
        registrar.register(fixed, moving[:-1])
    with pytest.raises(InputError, match=r"3D.*registers 2D"):
        registrar.register(fixed[None], moving[None])
    with pytest.raises(InputError, match="fixed image: constant"):
        registrar.register(np.ones((20, 20)), moving)
    with pytest.raises(InputError, match=r"frame 1: .*NaN"):
        registrar.register_series(np.stack([fixed, np.full_like(fixed, np.nan)]))
    with pytest.raises(InputError, match="at least 2"):
        registrar.register_series(fixed[None])
    with pytest.raises(InputError, match="no frame 7"):
        registrar.register_series(images(3), fixed=7)
