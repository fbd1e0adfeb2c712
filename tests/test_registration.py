"""The public API: any size, any range, the field exact at the image's own resolution."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import SimpleITK as sitk
from test_reference import CONFIG as MODEL
from test_reference import random_params

from r2n2_jax import InputError, Registrar
from r2n2_jax.config import Config
from r2n2_jax.io.geometry import same_grid
from r2n2_jax.io.images import as_image
from r2n2_jax.ops.gaussian import displacement
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.warp import inside
from r2n2_jax.registration import registrar as registrar_module
from r2n2_jax.registration import sequence
from r2n2_jax.registration.sequence import propose


@pytest.fixture(scope="module")
def registrar():
    return Registrar(Config(model=MODEL), random_params(MODEL))


def images(count=2, shape=(45, 37), seed=0):
    coarse = np.random.default_rng(seed).normal(size=(count, 6, 5))
    return np.asarray(300 + 90 * jax.image.resize(coarse, (count, *shape), "cubic"))


def test_the_field_is_evaluated_at_the_images_own_resolution(registrar):
    fixed, moving = images()
    result = registrar.register(fixed, moving, steps=MODEL.steps)
    assert result.displacement.shape == (45, 37, 2)
    assert result.steps == len(result.parameters.position) == MODEL.steps
    assert result.fixed_frame is None
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
    monkeypatch.setattr(sequence, "propose", lambda *args, **options: traced.append(1) or propose(*args, **options))
    for shape in ((45, 37), (50, 41), (64, 64)):
        registrar.register(*images(shape=shape), steps=3, refine=0)  # steps that no other test asks for
    assert len(traced) == 1
    registrar.register(*images(), steps=5, refine=0)
    assert len(traced) == 2, "traces are counted"


def test_points_follow_the_field(registrar):
    fixed, moving = images()
    result = registrar.register(fixed, moving)
    with pytest.raises(InputError, match=r"points of shape \(2, 3\)"):
        result.points(np.zeros((2, 3)))
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


def test_every_pair_has_a_status_and_the_frame_that_stays_a_good_one(registrar, monkeypatch):
    def register_batch(self, fixed, moving, **asked):
        found = batch(self, fixed, moving, **asked)
        assert found.doubt.shape == (3,)
        return dataclasses.replace(found, doubt=np.full(3, np.inf))

    batch = Registrar.register_batch
    monkeypatch.setattr(Registrar, "register_batch", register_batch)
    series = registrar.register_series(images(3), fixed=1, refine=0)
    assert series.status.tolist() == ["failed", "good", "failed"]
    assert [series.frame(t).status for t in range(3)] == ["failed", "good", "failed"]
    assert series.frame(2).describe()["status"] == "failed"
    pair = registrar.register(*images(), refine=0)
    assert np.shape(pair.doubt) == ()
    assert pair.describe()["status"] == pair.status
    assert dataclasses.replace(pair, doubt=np.zeros(())).status == "good"


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
    np.testing.assert_allclose(result.warped[result.inside], itk[result.inside], atol=1e-3 * np.ptp(moving))
    assert (result.warped[~result.inside] == 0).all()
    assert 0.3 < result.inside.mean() < 1.0
    undisplaced = sitk.GetArrayFromImage(
        sitk.Resample(coarse, fixed, sitk.Transform(2, sitk.sitkIdentity), sitk.sitkLinear, 0.0)
    )
    np.testing.assert_allclose(result.moving[result.covered], undisplaced[result.covered], atol=1e-3 * np.ptp(moving))
    # The image ends at its outermost pixels' centres, displaced or not; ITK goes on for half a pixel.
    for there, transform in ((result.inside, result.transform()), (result.covered, sitk.Transform(2, sitk.sitkIdentity))):
        index = np.array(
            [
                [
                    coarse.TransformPhysicalPointToContinuousIndex(
                        transform.TransformPoint(fixed.TransformIndexToPhysicalPoint((x, y)))
                    )
                    for x in range(37)
                ]
                for y in range(45)
            ]
        )
        beyond = np.maximum(-index, index - (np.array([40, 32]) - 1)).max(axis=-1)
        np.testing.assert_array_equal(there[np.abs(beyond) > 1e-3], (beyond < 0)[np.abs(beyond) > 1e-3])
    with pytest.raises(InputError, match=r"the moving image lies apart: it covers 0 % of the fixed image"):
        registrar.register(fixed, itk_image(moving, origin=(500.0, 0.0)))
    with pytest.raises(InputError, match="the moving image lies in 3 dimensions and the fixed image in 2"):
        registrar.register(fixed, itk_image(moving, (37, 45, 1)))


@pytest.mark.parametrize(
    ("stretch", "turn", "same"), [(1.0, 0.0, True), (1.00001, 0.0, True), (1.009, 0.0, False), (1.0, 0.009, False)]
)
def test_grids_that_part_on_the_way_to_their_corners_are_two(registrar, stretch, turn, same):
    """A hundredth of a pixel or a cosine at every step is whole pixels across the image."""
    fixed, moving = images(shape=(120, 128))
    other = sitk.GetImageFromArray(moving)
    other.SetSpacing((1.5 * stretch, 1.5 * stretch))
    other.SetOrigin((3.0, 4.0))
    other.SetDirection((np.cos(turn), -np.sin(turn), np.sin(turn), np.cos(turn)))
    first = sitk.GetImageFromArray(fixed)
    first.SetSpacing((1.5, 1.5))
    first.SetOrigin((3.0, 4.0))
    assert same_grid(as_image(first, "").geometry, as_image(other, "").geometry) == same
    result = registrar.register(first, other, refine=0)
    itk = sitk.GetArrayFromImage(sitk.Resample(other, first, result.transform(), sitk.sitkLinear, 0.0))
    inner = (slice(12, -12), slice(12, -12))
    np.testing.assert_allclose(result.warped[inner], itk[inner], atol=2e-3 * np.ptp(moving))


def test_masks_of_any_kind_and_those_of_nothing(registrar):
    fixed, moving = images()
    half = np.arange(37)[None] < np.full((45, 1), 20)
    placed, shifted = itk_image(fixed), itk_image(moving, origin=(-27.0, 12.5))
    for first, second in ((fixed, moving), (placed, shifted)):
        weights = [
            registrar.register(first, second, mask=mask).parameters.weight
            for mask in (half, 2 * half.astype(np.uint8), 0.5 * half, None)
        ]
        np.testing.assert_array_equal(weights[0], weights[1])
        np.testing.assert_array_equal(weights[0], weights[2])
        assert np.abs(weights[0] - weights[3]).max() > 1e-4
    with pytest.raises(InputError, match="zero everywhere"):
        registrar.register(fixed, moving, mask=np.zeros((45, 37)))
    with pytest.raises(InputError, match="a mask of shape"):
        registrar.register(fixed, moving, mask=np.ones((37, 45)))
    uncovered = ~registrar.register(placed, shifted, refine=0).covered
    with pytest.raises(InputError, match="the mask lies where the moving image shows nothing"):
        registrar.register(placed, shifted, mask=uncovered)


@pytest.mark.parametrize("size", [1, 3, 40])
def test_a_small_mask_is_seen_at_the_models_resolution(size):
    mask = np.zeros((512, 512), bool)
    mask[101 : 101 + size, 200 : 200 + size] = True
    seen = np.asarray(sequence._resampled(mask, (64, 64)))
    assert seen.any()
    rows, columns = np.nonzero(seen)
    centre = (100.5 + size / 2) * 63 / 511, (199.5 + size / 2) * 63 / 511
    np.testing.assert_allclose((rows.mean(), columns.mean()), centre, atol=0.6)
    assert seen.sum() <= 4 + (size * 63 / 511 + 1) ** 2


def test_large_images_are_registered_fewer_at_once(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 16)
    assert registrar_module._at_once((256, 256)) == 5
    assert registrar_module._at_once((1024, 1024)) == registrar_module._at_once((4096, 4096)) == 1


def test_a_result_is_saved_whole_and_once(registrar, tmp_path):
    fixed, moving = images()
    result = registrar.register(itk_image(fixed), itk_image(moving))
    result.save(tmp_path / "pair")
    warped = sitk.ReadImage(str(tmp_path / "pair" / "warped.nii.gz"))
    np.testing.assert_allclose(sitk.GetArrayFromImage(warped), result.warped, rtol=1e-6)
    np.testing.assert_allclose(warped.GetSpacing(), (0.8, 2.5))
    described = json.loads((tmp_path / "pair" / "parameters.json").read_text())
    assert described["steps"] == len(described["transformations"]) == result.steps
    assert described["stopped"] == result.stopped
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
