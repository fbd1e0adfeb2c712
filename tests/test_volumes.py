"""Volumes, against exact motions, SimpleITK and closed forms."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import assert_one_line

import r2n2_jax
from r2n2_jax.config import Config, ModelConfig, OptimiserConfig
from r2n2_jax.errors import InputError
from r2n2_jax.evaluation.pair_figure import _section
from r2n2_jax.models.r2n2 import init_params
from r2n2_jax.ops.gaussian import Gaussians, covariance, displacement, displacement_and_determinant
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.registration.course import View, Wanted
from r2n2_jax.registration.growth import grow
from r2n2_jax.registration.levenberg_marquardt import _steepest
from r2n2_jax.registration.registrar import Registrar
from r2n2_jax.registration.sequence import _shapes, views
from r2n2_jax.registration.volume import _unfolded, _unmoved, find

SHAPE = (13, 34, 30)  # thick slices: looked at by 16, 32, 32 voxels
SPACING = (1.5, 1.25, 4.0)


def texture(points):
    """Blobs of all widths, anywhere: float64 NumPy."""
    rng = np.random.default_rng(5)
    total = np.zeros(points.shape[:-1])
    for centre, width, height in zip(
        rng.uniform(-1, 1, (60, 3)), rng.uniform(0.12, 0.35, 60), rng.uniform(-1, 1, 60), strict=True
    ):
        total += height * np.exp(-0.5 * np.sum((points - centre) ** 2, axis=-1) / width**2)
    return 100.0 + 40.0 * total


def motion(points):
    """Up to 0.25, four voxels of 34: two regions that move apart."""
    up = np.exp(-0.5 * np.sum((points - np.array([-0.3, -0.2, 0.0])) ** 2, axis=-1) / 0.35**2)
    down = np.exp(-0.5 * np.sum((points - np.array([0.4, 0.4, 0.1])) ** 2, axis=-1) / 0.3**2)
    return up[..., None] * np.array([0.05, -0.25, 0.0]) + down[..., None] * np.array([0.0, 0.2, 0.1])


def placed(pixels):
    """A SimpleITK image, oblique and anisotropic."""
    image = sitk.GetImageFromArray(pixels.astype(np.float32))
    image.SetSpacing(SPACING)
    image.SetOrigin((-20.0, 11.0, 35.0))
    turn = sitk.VersorTransform((0.3, 0.8, 0.5), 0.6)
    image.SetDirection(turn.GetMatrix())
    return image


@pytest.fixture(scope="module")
def points():
    return np.asarray(coordinates(SHAPE), np.float64)


@pytest.fixture(scope="module")
def pair(points):
    return texture(points + motion(points)), texture(points)


@pytest.fixture(scope="module")
def result(pair):
    return r2n2_jax.load(ndim=3).register(*map(placed, pair), steps=16)


def test_a_volume_is_registered(result, points):
    half = (np.array(SHAPE[::-1]) - 1) / 2
    inner = np.all(np.abs(points) < 0.9, axis=-1)
    before = np.linalg.norm(motion(points) * half, axis=-1)[inner]
    after = np.linalg.norm((motion(points) - result.displacement) * half, axis=-1)[inner]
    assert before.max() > 3.5
    assert after.mean() < 0.35 * before.mean()
    assert np.percentile(after, 95) < 0.35 * np.percentile(before, 95)
    assert (result.status, 2 <= result.steps <= 16) == ("good", True)
    determinants = displacement_and_determinant(result.parameters, coordinates(SHAPE))[1]
    assert determinants.min() > 0


TRUE = Gaussians(
    position=jnp.array([[-0.3, -0.2, 0.0], [0.4, 0.4, 0.1]]),
    variance=jnp.array([[0.35] * 3, [0.3] * 3]) ** 2,
    rotation=jnp.zeros((2, 3)),
    weight=jnp.array([[0.05, -0.25, 0.0], [0.0, 0.2, 0.1]]),
)


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["right", "wrong"])
def test_a_network_begins_a_volume_unless_it_is_wrong(pair, points, sign):
    """Given the true motion nothing is searched for; given its opposite, which matches worse than none, all is."""
    model = r2n2_jax.load(ndim=3).config.model
    images = [image[None].astype(np.float32) for image in pair]
    seen = views(model, *images, np.ones(images[0].shape, bool), refine=10)
    proposed = jax.tree.map(lambda part: part[None], TRUE._replace(weight=sign * TRUE.weight))
    wanted = Wanted(np.float32(0.0), np.ones(3, np.float32))
    found = find(seen, wanted, most=16, refine=10, propose=lambda _: proposed)
    gaussians = jax.tree.map(lambda part: part[0], found.gaussians)
    used = int(np.any(gaussians.weight != 0, axis=-1).sum())
    error = np.linalg.norm(motion(points) - np.asarray(displacement(gaussians, coordinates(SHAPE))), axis=-1)
    assert error.mean() < (0.1 if sign > 0 else 0.35) * np.linalg.norm(motion(points), axis=-1).mean()
    assert (used == 2) == (sign > 0)


def test_an_untrained_network_does_no_harm(pair, points):
    model = ModelConfig(ndim=3, resolution=32, steps=2, channels=(2, 2, 2, 2), hidden=4, sigma_min=0.005, joint=True, noise=0.0)
    config = Config(model=model, optimiser=OptimiserConfig(contrast=True))
    registrar = Registrar(config, init_params(jax.random.key(0), model))
    alone = registrar.register(*pair, refine=0)
    assert alone.displacement.shape == (*SHAPE, 3)
    refined = registrar.register(*pair, steps=16)
    error = np.linalg.norm(motion(points) - refined.displacement, axis=-1)
    assert error.mean() < 0.35 * np.linalg.norm(motion(points), axis=-1).mean()
    assert refined.status == "good"


def test_itk_applies_the_field_of_an_oblique_volume_as_we_do(result, pair):
    resampled = sitk.Resample(placed(pair[1]), placed(pair[0]), result.transform(), sitk.sitkLinear, 0.0)
    inside = result.inside & (sitk.GetArrayFromImage(resampled) != 0)
    assert inside.mean() > 0.8
    np.testing.assert_allclose(sitk.GetArrayFromImage(resampled)[inside], result.warped[inside], atol=0.02)


def test_how_sure_a_volume_is(result):
    deviations = result.uncertainty()
    assert deviations.shape == SHAPE
    assert np.isfinite(deviations).all()
    assert (deviations >= 0).all()
    assert len(result.describe()["transformations"]) == result.steps
    assert len(result.describe()["transformations"][0]["rotation"]) == 3


def test_images_of_four_dimensions_are_refused():
    with pytest.raises(InputError, match="4 dimensions"):
        r2n2_jax.load(ndim=4)


def test_a_volume_by_the_network_alone(pair, points):
    found = r2n2_jax.load(ndim=3).register(*pair, refine=0)
    error = np.linalg.norm(motion(points) - found.displacement, axis=-1)
    assert error.mean() < 0.75 * np.linalg.norm(motion(points), axis=-1).mean()
    assert found.steps > 0


def test_the_command_registers_volumes(command, pair, tmp_path):
    for name, pixels in zip(("fixed.nii.gz", "moving.nii.gz"), pair, strict=True):
        sitk.WriteImage(placed(pixels), str(tmp_path / name))
    words = ["register", "--fixed", tmp_path / "fixed.nii.gz", "--moving", tmp_path / "moving.nii.gz", "--output"]
    code, out, err = command(*words, tmp_path / "out", "--steps", "16")
    assert (code, err) == (0, "")
    assert "status: good" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "displacement.nii.gz",
        "parameters.json",
        "registration.png",
        "warped.nii.gz",
    ]
    field = sitk.ReadImage(str(tmp_path / "out" / "displacement.nii.gz"))
    assert (field.GetSize(), field.GetNumberOfComponentsPerPixel()) == (SHAPE[::-1], 3)
    assert json.loads((tmp_path / "out" / "parameters.json").read_text())["status"] == "good"
    assert command(*words, tmp_path / "alone", "--refine", "0")[0] == 0
    assert json.loads((tmp_path / "alone" / "parameters.json").read_text())["transformations"]
    sitk.WriteImage(placed(pair[0])[:, :, 6], str(tmp_path / "slice.nii.gz"))
    assert_one_line(
        *command(*words[:3], "--moving", tmp_path / "slice.nii.gz", "--output", tmp_path / "no")[::2], "slice.nii.gz"
    )


def test_a_volume_is_looked_at_by_as_many_voxels_as_it_has():
    model = r2n2_jax.load(ndim=3).config.model
    assert _shapes(model, (300, 512, 512), 10) == ((32, 32, 32), (64, 64, 64))
    assert _shapes(model, (14, 120, 45), 10) == ((16, 32, 32), (16, 64, 32))
    assert _shapes(model, (7, 30, 24), 10) == ((8, 32, 32),)


def shifted(pixels):
    """A disc that moves by so many of 64 pixels before a texture that stays; the moving image is undisplaced."""
    points = np.asarray(coordinates((64, 64)), np.float64)
    rng = np.random.default_rng(2)
    still = np.zeros((64, 64))
    for centre, height in zip(rng.uniform(-1, 1, (40, 2)), rng.uniform(-0.3, 0.3, 40), strict=True):
        still += height * np.exp(-0.5 * np.sum((points - centre) ** 2, axis=-1) / 0.1**2)

    def at(x):
        return still + 3.0 * np.exp(-((np.sum((points - np.array([x, 0.1])) ** 2, axis=-1) / 0.15**2) ** 2))

    return [jnp.asarray(at(x)[..., None], jnp.float32) for x in (-0.2, -0.2 + pixels / 31.5)]


@pytest.mark.parametrize(("reach", "grows"), [(0, False), (10, True)])
def test_growth_finds_a_shift_that_no_other_place_has(reach, grows):
    """Ten pixels are twice the disc's radius: small steps do not find it, and there is no motion to copy."""
    fixed, moving = shifted(10.0)
    none = Gaussians(jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.zeros((1, 1)), jnp.zeros((1, 2)))
    grown, taken = grow(fixed, moving, none, jnp.zeros(1, bool), outlier=2.0, reach=reach)
    assert bool(taken[0]) == grows
    if grows:
        np.testing.assert_allclose(grown.weight[0], 0.7 * np.array([10.0 / 31.5, 0.0]), atol=0.05)
        np.testing.assert_allclose(grown.position[0], (-0.2, 0.1), atol=0.2)


def narrow(weight):
    """Two Gaussians of which a heavy weight folds the map between them."""
    position = jnp.asarray([[-0.1, 0.0, 0.0], [0.1, 0.0, 0.0]])
    weights = jnp.asarray([[weight, 0.0, 0.0], [-weight, 0.0, 0.0]])
    return Gaussians(position, jnp.full((2, 3), 0.01), jnp.zeros((2, 3)), weights)


def test_a_fit_that_folds_is_followed_only_so_far():
    shape = (16, 16, 16)
    views = [View(*(jnp.zeros((*shape, 1)),) * 2)]
    start, folded = narrow(0.02), narrow(0.5)
    assert displacement_and_determinant(folded, coordinates(shape))[1].min() < 0
    found = _unfolded(views, start, folded)
    assert displacement_and_determinant(found, coordinates(shape))[1].min() > 0
    assert 0.02 <= found.weight[0, 0] < 0.5
    np.testing.assert_allclose(_unfolded(views, start, narrow(0.03)).weight, narrow(0.03).weight, rtol=1e-5)
    assert _unfolded(views, folded, folded) is None
    # What has just grown may fold itself: then the way begins at the field before.
    found = _unfolded(views, _unmoved(folded, narrow(0.0)), folded)
    assert displacement_and_determinant(found, coordinates(shape))[1].min() > 0
    assert 0.0 < found.weight[0, 0] < 0.5


def test_the_flanks_know_the_smallest_determinant():
    """Of one Gaussian it lies one deviation from the centre, along the axis along which it pushes."""
    deviation, weight = 0.1, 0.12
    one = Gaussians(jnp.full((1, 3), 0.03), jnp.full((1, 3), deviation**2), jnp.zeros((1, 3)), jnp.array([[weight, 0.0, 0.0]]))
    free = r2n2_jax.ops.gaussian.to_free(one)
    exact = 1.0 - weight * np.exp(-0.5) / deviation
    np.testing.assert_allclose(_steepest(free, 3).min(), exact, atol=1e-5)
    assert _steepest(jax.tree.map(lambda part: part[:, :2], free), 2).shape == (0,)


def test_sections_of_ellipsoids_lie_on_them():
    key = jax.random.split(jax.random.key(0), 3)
    gaussians = Gaussians(
        jax.random.uniform(key[0], (5, 3), minval=-0.2, maxval=0.2),
        jax.random.uniform(key[1], (5, 3), minval=0.02, maxval=0.3),
        jax.random.uniform(key[2], (5, 3), maxval=3.0),
        jnp.ones((5, 3)),
    )
    for normal, along in ((0, (1, 2)), (1, (0, 2)), (2, (0, 1))):
        cut = _section(gaussians, normal, 0.05, list(along))
        precisions = np.linalg.inv(covariance(gaussians.variance, gaussians.rotation))
        assert len(cut.position) == 5
        angle = np.linspace(0, 2 * np.pi, 17)
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        for index in range(5):
            c, s = np.cos(cut.rotation[index, 0]), np.sin(cut.rotation[index, 0])
            outline = cut.position[index] + (circle * np.sqrt(cut.variance[index])) @ np.array([[c, -s], [s, c]]).T
            there = np.full((17, 3), 0.05)
            there[:, along] = outline
            offset = there - np.asarray(gaussians.position)[index]
            np.testing.assert_allclose(np.einsum("ni,ij,nj->n", offset, precisions[index], offset), 1.0, rtol=1e-4)
    far = _section(gaussians, 2, 5.0, [0, 1])
    assert len(far.position) == 0


def test_the_field_of_a_volume_is_that_of_its_parameters(result):
    some = np.random.default_rng(0).uniform(-1, 1, (20, 3)).astype(np.float32)
    np.testing.assert_allclose(result.points(some) - some, displacement(result.parameters, some), atol=1e-5)


def test_a_series_of_volumes_is_brought_to_one(points):
    frames = np.stack([texture(points + part * motion(points)) for part in (0.0, 0.3, 0.7, 1.0)])
    series = r2n2_jax.load(ndim=3).register_series(frames, fixed=0, steps=16)
    inner = np.all(np.abs(points) < 0.8, axis=-1)
    assert series.warped.shape == frames.shape
    assert list(series.status) == ["good"] * 4
    assert not series.displacement[0].any()
    before = np.abs(frames - frames[:1])[:, inner].mean(axis=1)
    after = np.abs(series.warped - frames[:1])[:, inner].mean(axis=1)
    assert (after[1:] < 0.4 * before[1:]).all()
