"""The three transformation models against SciPy, and the optimiser and the refinement against fields that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter

from r2n2_jax.baseline.bspline import basis, bspline, intervals
from r2n2_jax.baseline.dense import DENSE
from r2n2_jax.baseline.gaussians import gaussians
from r2n2_jax.baseline.optimise import Settings, fit, pair_loss
from r2n2_jax.baseline.transform import count_parameters
from r2n2_jax.ops import local_contrast
from r2n2_jax.ops.brightness import compensated_mse
from r2n2_jax.ops.gaussian import Gaussians, displacement, displacement_and_determinant, from_free, to_free
from r2n2_jax.ops.grid import components, coordinates
from r2n2_jax.ops.intensity import standardise
from r2n2_jax.ops.jacobian import determinant
from r2n2_jax.ops.regularisers import isotropic_tv
from r2n2_jax.ops.warp import inside, sample, warp
from r2n2_jax.registration.least_squares import flat, linearised, normal_equations, objective, pose, total_variation, unflat
from r2n2_jax.registration.levenberg_marquardt import _along_the_fold, best_fraction, refine

SHAPE = (40, 33)
TRUE = Gaussians(
    position=jnp.array([[0.1, -0.2], [-0.3, 0.3]]),
    variance=jnp.array([[0.08, 0.04], [0.05, 0.05]]),
    rotation=jnp.array([[0.4], [0.0]]),
    weight=jnp.array([[0.12, -0.18], [-0.1, 0.08]]),
)


def pattern(points):
    """A smooth image that is known at every point."""
    x, y = points[..., 0], points[..., 1]
    return jnp.sin(5 * x + 1) * jnp.cos(4 * y) + 0.5 * jnp.sin(9 * x - 3 * y)


def known_pair(shape, field=TRUE):
    """Images of which the first is the second under the known field: ``fixed(x) = moving(x + f(x))``."""
    points = coordinates(shape)
    return pattern(points + displacement(field, points)), pattern(points)


def error_px(found, shape, field=TRUE):
    points = coordinates(shape)
    missed = np.asarray(found - displacement(field, points))[4:-4, 4:-4] * (np.array(shape[::-1]) - 1) / 2
    return float(np.linalg.norm(missed, axis=-1).mean())


def test_a_dense_field_fitted_at_a_coarse_level_is_given_on_the_images_own_grid():
    fixed, moving = (image[None] for image in known_pair((32, 32)))
    found = fit(fixed, moving, DENSE, settings=Settings(shrink=(4, 2), iterations=3))
    assert found.displacement.shape == (1, 32, 32, 2)


def test_the_papers_count_of_parameters():
    assert count_parameters(bspline(8.0), (256, 256)) == 34 * 34 * 2 == 2312
    assert count_parameters(gaussians(25), (256, 256)) == 175
    assert count_parameters(DENSE, (256, 256)) == 2 * 256**2
    assert round(100 * 175 / 2312, 1) == 7.6


@pytest.mark.parametrize(("pixels", "count"), [(33, 4), (20, 1), (64, 7)])
def test_the_basis_is_scipys_cubic_bspline(pixels, count):
    h = 2.0 / count
    knots = -1.0 + h * np.arange(-3, count + 4)
    position = np.linspace(-1, 1, pixels)
    expected = np.stack([BSpline(knots, np.eye(count + 3)[i], 3)(position) for i in range(count + 3)], axis=1)
    np.testing.assert_allclose(basis(pixels, count), expected, atol=1e-6)


def test_control_points_all_alike_are_a_shift():
    model = bspline(5.0)
    params = jnp.broadcast_to(jnp.array([0.3, -0.2]).reshape(1, 1, 2), model.init(SHAPE).shape)
    field = model.displacement(params, SHAPE)
    np.testing.assert_allclose(field, np.broadcast_to([0.3, -0.2], field.shape), atol=1e-6)


@pytest.mark.parametrize("model", [DENSE, bspline(4.0), gaussians(3)], ids=["dense", "bspline", "gaussians"])
def test_models_start_at_the_identity_and_keep_their_field_on_the_next_grid(model, key):
    coarse, fine = (17, 21), (33, 41)
    start = model.init(coarse)
    np.testing.assert_array_equal(model.displacement(start, coarse), 0.0)
    leaves, tree = jax.tree.flatten(start)
    keys = jax.random.split(key, len(leaves))
    params = jax.tree.unflatten(tree, [v + 0.1 * jax.random.normal(k, v.shape) for v, k in zip(leaves, keys, strict=True)])
    carried = model.carry(params, fine)
    # Every second pixel of the fine grid is a pixel of the coarse one. A B-spline on more intervals only comes near.
    tolerance = 0.06 if model is bspline(4.0) else 1e-5
    np.testing.assert_allclose(model.displacement(carried, fine)[::2, ::2], model.displacement(params, coarse), atol=tolerance)


def test_a_bspline_carries_over_exactly_where_the_intervals_divide():
    coarse, fine = (17, 17), (33, 33)
    assert intervals(33, 4.0) == 2 * intervals(17, 4.0)
    params = jax.random.normal(jax.random.key(0), bspline(4.0).init(coarse).shape)
    model = bspline(4.0)
    found = model.displacement(model.carry(params, fine), fine)
    np.testing.assert_allclose(found[::2, ::2], model.displacement(params, coarse), atol=1e-4)


def test_free_gaussians_are_the_gaussians():
    for there, back in zip(TRUE, from_free(to_free(TRUE)), strict=True):
        np.testing.assert_allclose(there, back, rtol=1e-6)


@pytest.mark.parametrize(("model", "allowed"), [(DENSE, 0.8), (bspline(6.0), 0.4), (gaussians(6), 0.35)])
def test_the_engine_recovers_a_known_field(model, allowed):
    shape = (64, 64)
    fixed, moving = known_pair(shape)
    before = error_px(jnp.zeros((*shape, 2)), shape)
    settings = Settings(shrink=(2, 1), iterations=150, learning_rate=5e-3, tv_weight=0.001)
    found = fit(fixed[None], moving[None], model, settings=settings)
    assert before > 0.9
    assert error_px(found.displacement[0], shape) < allowed


def test_the_engine_does_pairs_alone_or_together_and_stops_by_itself():
    fixed, moving = known_pair((32, 32))
    settings = Settings(shrink=(1,), iterations=200, learning_rate=5e-3, patience=20)
    together = fit(jnp.stack([fixed, moving]), jnp.stack([moving, moving]), bspline(6.0), settings=settings)
    alone = fit(fixed[None], moving[None], bspline(6.0), settings=settings)
    np.testing.assert_allclose(together.displacement[0], alone.displacement[0], atol=1e-4)
    # The second pair is registered before it starts: nothing improves, nothing moves.
    np.testing.assert_array_equal(together.displacement[1], 0.0)
    assert np.isfinite(together.losses[0][1]).sum() <= 30
    assert np.nanmin(alone.losses[0][0]) < 0.2 * alone.losses[0][0, 0]


def test_settings_are_checked():
    with pytest.raises(ValueError, match="shrink"):
        Settings(shrink=())
    with pytest.raises(ValueError, match="patience must be positive"):
        Settings(patience=0)
    with pytest.raises(ValueError, match="spacing of control points must be positive"):
        bspline(0.0)


@pytest.mark.numerical
def test_the_jacobian_of_the_refinement_is_that_of_the_residuals():
    fixed, moving = (image[..., None] for image in known_pair(SHAPE))
    points = coordinates(SHAPE)
    # Away from the truth, or the residuals vanish; and off the pixel centres, where the interpolant has a kink.
    free = jax.tree.map(lambda value: value + 0.013, to_free(TRUE))

    def residuals(vector):
        field = displacement(from_free(unflat(vector, free)), points)
        return (sample(moving, points + field) - fixed)[5:-5, 5:-5].ravel()

    expected = jax.jacfwd(residuals)(flat(free))
    value, rows, counted = linearised(pose(fixed, moving, None, outlier=jnp.inf), free)
    inner = np.s_[5:-5, 5:-5]
    assert counted.reshape(SHAPE)[inner].all()
    np.testing.assert_allclose(value.reshape(SHAPE)[inner].ravel(), residuals(flat(free)), atol=1e-5)
    np.testing.assert_allclose(rows.T.reshape(*SHAPE, -1)[inner].reshape(expected.shape), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [SHAPE, (12, 13, 14)])
def test_what_a_smooth_change_of_brightness_explains_is_left_out(shape):
    """Training's mismatch against NumPy's ridge regression in float64, where all pixels count and where some do; and nothing
    left of a difference that is such a change."""
    d = len(shape)
    random = np.random.default_rng(0)
    fixed, difference = (gaussian_filter(random.normal(size=shape), 1.5) for _ in range(2))
    grid = np.asarray(coordinates(shape), np.float64).reshape(-1, d).T
    degrees = [n for n in np.ndindex((3,) * d) if sum(n) <= 2]
    smooth = np.array([np.prod([np.cos(n * np.arccos(np.clip(x, -1, 1))) for n, x in zip(of, grid, strict=True)], axis=0)
                       for of in degrees])  # fmt: skip
    terms = np.concatenate([smooth, smooth * fixed.ravel()]).T

    def expected(difference, mask):
        rows = terms[mask.ravel()]
        system = np.concatenate([rows, np.sqrt(1e-2 * len(rows)) * np.eye(rows.shape[1])])
        wanted = np.concatenate([difference[mask], np.zeros(rows.shape[1])])
        found = np.linalg.lstsq(system, wanted, rcond=None)[0]
        return np.sum((system @ found - wanted) ** 2) / len(rows)

    def ours(difference, mask):
        pair = [jnp.asarray(image, jnp.float32)[..., None] for image in (fixed, fixed + difference)]
        return float(compensated_mse(*pair, mask))

    explained = (0.3 * grid[0] * fixed.ravel() + 0.2 * grid[1]).reshape(shape)
    for mask in (np.ones(shape, bool), random.random(shape) < 0.6):
        assert ours(difference, mask) == pytest.approx(expected(difference, mask), rel=1e-3)
        assert ours(explained, mask) == pytest.approx(expected(explained, mask), rel=1e-2)
        assert ours(explained, mask) < 0.1 * np.mean(explained**2)


@pytest.mark.numerical
def test_the_compensated_mismatch_has_its_own_slope(key):
    """Against finite differences, exact for squares; of no pixels it is zero, and so is its slope."""
    fixed, warped = jax.random.normal(key, (2, 9, 11, 1))
    mask = jax.random.uniform(key, (9, 11)) < 0.7
    check_grads(lambda warped: compensated_mse(fixed, warped, mask), (warped,), order=1, modes=["rev"], eps=0.1, rtol=1e-3)
    nothing, slope = jax.value_and_grad(compensated_mse, argnums=1)(fixed, warped, jnp.zeros_like(mask))
    assert nothing == 0
    assert not slope.any()


def many(count):
    """So many narrower copies of the known Gaussians, each somewhere else."""
    rng = np.random.default_rng(4)
    copies = jax.tree.map(lambda value: jnp.tile(value, (count, 1))[:count], to_free(TRUE))
    places = jnp.asarray(rng.uniform(-0.8, 0.8, copies.position.shape), jnp.float32)
    weights = jnp.asarray(rng.normal(size=copies.weight.shape), jnp.float32)
    return copies._replace(position=places, log_variance=copies.log_variance - 1.0, weight=0.02 * weights)


@pytest.mark.numerical
@pytest.mark.parametrize("count", [len(TRUE.weight), 24])
def test_the_normal_equations_have_the_objectives_slope(count):
    """Half of it, where the total variation has no weight; of many Gaussians as well."""
    fixed, moving = (image[..., None] for image in known_pair(SHAPE))
    seen = pose(fixed, 1.1 * moving, None)
    free = jax.tree.map(lambda value: value + 0.013, to_free(TRUE) if count == len(TRUE.weight) else many(count))
    value, _, slope = normal_equations(seen, free, 0.0)
    assert value == pytest.approx(float(objective(seen, free, 0.0)[0]), rel=1e-5)
    expected = jax.grad(lambda vector: objective(seen, unflat(vector, free), 0.0)[0])(flat(free))
    np.testing.assert_allclose(slope, 0.5 * expected, atol=1e-3 * float(jnp.abs(expected).max()))


def test_a_cell_of_pixels_curves_as_they_do():
    """The curvature of many Gaussians against that of every pixel; the control: the cells of an image that varies less."""
    fixed, moving = (jnp.asarray(image)[..., None] for image in known_pair((96, 96)))
    seen, free = pose(fixed, moving, None), many(24)
    _, rows, _ = linearised(seen, free)
    expected = rows @ rows.T / len(seen.points)
    scale = jnp.sqrt(jnp.diag(expected))

    def apart(seen):
        found = normal_equations(seen, free, 0.0)[1]
        return float(jnp.abs((found - expected) / jnp.outer(scale, scale)).max())

    assert apart(seen) < 0.1
    assert apart(seen._replace(moving=0.9 * moving)) > 0.15


@pytest.mark.xfail(reason="local contrast leaves 0.24 px, a polynomial of brightness less than 0.12", strict=True)
def test_refinement_is_not_misled_by_a_smooth_change_of_brightness(monkeypatch):
    """As a coil's sensitivity makes it; the control, whose neighbourhood is the whole image, is misled."""
    shape = (64, 64)
    fixed, moving = known_pair(shape)
    x, y = jnp.moveaxis(coordinates(shape), -1, 0)
    pair = [standardise(image[..., None]) for image in (fixed * (1.0 + 0.4 * x) + 0.4 * y, moving)]
    start = TRUE._replace(weight=0.5 * TRUE.weight)

    def missed(iterations):
        found = refine(*pair, start, iterations=iterations).gaussians
        return error_px(displacement(found, coordinates(shape)), shape)

    modelled = missed(20)
    monkeypatch.setattr(local_contrast, "_WINDOW", 1e3)
    jax.clear_caches()
    assert modelled < 0.12
    assert missed(21) > 3.0 * modelled


def test_the_slope_of_thetotal_variation_is_that_of_thetotal_variation():
    """Half of it; its curvature is the Gauss-Newton one of the same weighted squares."""
    free = jax.tree.map(lambda value: value + 0.01, to_free(TRUE))
    points = coordinates((9, 9))

    def field(vector):
        return displacement(from_free(unflat(vector, free)), points)

    def variation(vector):
        down, right = (8 / 255 * jnp.diff(field(vector), axis=axis) for axis in (0, 1))
        squared = jnp.sum(down[:, :-1] ** 2 + right[:-1] ** 2, axis=-1)
        return jnp.mean(jnp.sqrt(squared + 1e-6))

    value, normal, slope = total_variation(free)
    assert value == pytest.approx(float(variation(flat(free))) - 1e-3, rel=1e-4)
    np.testing.assert_allclose(slope, 0.5 * jax.grad(variation)(flat(free)), rtol=1e-3, atol=1e-7)
    # Along the weights the field is linear, so that there the curvature is that of the squares, to be had by differences.
    weights = np.zeros(slope.size, bool)
    weights[-4:] = True
    step = np.where(weights, np.random.default_rng(0).normal(size=slope.size), 0.0).astype(np.float32)
    moved = field(flat(free) + step) - field(flat(free))
    down, right = (8 / 255 * jnp.diff(moved, axis=axis) for axis in (0, 1))
    down_now, right_now = (8 / 255 * jnp.diff(field(flat(free)), axis=axis) for axis in (0, 1))
    length = jnp.sqrt(jnp.sum(down_now[:, :-1] ** 2 + right_now[:-1] ** 2, axis=-1) + 1e-6)
    expected = jnp.mean(jnp.sum(down[:, :-1] ** 2 + right[:-1] ** 2, axis=-1) / length)
    np.testing.assert_allclose(step @ normal @ step, 0.5 * expected, rtol=1e-3)


def test_a_larger_weight_of_thetotal_variation_smooths():
    fixed, moving = (standardise(image[..., None]) for image in known_pair((48, 48)))
    start = TRUE._replace(weight=0.5 * TRUE.weight)
    found = (refine(fixed, moving, start, iterations=10, tv_weight=weight).gaussians for weight in (0.0, 300.0))
    rough, smooth = (isotropic_tv(displacement(gaussians, coordinates((48, 48)))) for gaussians in found)
    assert smooth < 0.7 * rough


def test_refinement_brings_gaussians_that_are_near_to_the_truth():
    shape = (64, 64)
    fixed, moving = (standardise(image[..., None]) for image in known_pair(shape))
    start = TRUE._replace(position=TRUE.position + 0.08, weight=0.5 * TRUE.weight, variance=1.5 * TRUE.variance)
    result = refine(fixed, moving, start, iterations=20)
    found = displacement(result.gaussians, coordinates(shape))
    assert error_px(displacement(start, coordinates(shape)), shape) > 0.4
    assert error_px(found, shape) < 0.1
    # What the warped image is compared with moves between the steps, by less and less.
    assert (np.diff(result.losses) <= 1e-5 * result.losses[0]).all(), "a step was taken that did not help"


@pytest.mark.parametrize("weight", [-1.0, 12.0])
def test_refinement_of_a_field_that_is_worse_than_none(weight):
    """Away from the truth, and folded: it goes back towards none first, and on from there."""
    shape = (64, 64)
    fixed, moving = (standardise(image[..., None]) for image in known_pair(shape))
    start = TRUE._replace(weight=weight * TRUE.weight)
    nothing = pair_loss(fixed, moving, jnp.zeros((*shape, 2)), 0.01)
    assert pair_loss(fixed, moving, displacement(start, coordinates(shape)), 0.01) > nothing
    result = refine(fixed, moving, start, iterations=30)
    assert float(result.losses[0]) <= nothing
    assert float(result.losses[-1]) < 0.5 * nothing
    assert float(determinant(displacement(result.gaussians, coordinates(shape))).min()) > 0.0


@pytest.mark.parametrize(("weight", "fraction"), [(1.0, 1.0), (2.0, 0.5), (4.0, 0.25), (-1.0, 0.0)])
def test_the_fraction_of_an_answer_that_matches_best(weight, fraction):
    """Too much of the truth is taken in part, what leads away from it not at all."""
    fixed, moving = (standardise(image[..., None]) for image in known_pair((64, 64)))
    answer = TRUE._replace(weight=weight * TRUE.weight)
    found = best_fraction(fixed, moving, answer)
    np.testing.assert_allclose(found.weight, fraction * answer.weight, atol=1e-6)


def test_an_answer_that_folds_is_taken_in_part_however_well_it_matches():
    """These images are each other's under a map that folds; the control, the mismatch, speaks for all of it."""
    narrow = Gaussians(*(jnp.array([one]) for one in ([0.4, 0.5], [0.005, 0.005], [0.0], [0.15, 0.0])))
    answer = jax.tree.map(lambda *parts: jnp.concatenate(parts), TRUE, narrow)
    half = answer._replace(weight=0.5 * answer.weight)
    shape = (64, 64)
    fixed, moving = (standardise(image[..., None]) for image in known_pair(shape, answer))
    whole_field, half_field = (displacement(some, coordinates(shape)) for some in (answer, half))
    assert float(determinant(whole_field).min()) < 0.0 < float(determinant(half_field).min())
    assert pair_loss(fixed, moving, whole_field, 0.01) < pair_loss(fixed, moving, half_field, 0.01)
    np.testing.assert_allclose(best_fraction(fixed, moving, answer).weight, half.weight, atol=1e-6)
    np.testing.assert_allclose(refine(fixed, moving, answer, iterations=0).gaussians.weight, half.weight, atol=1e-6)
    refined = refine(fixed, moving, answer, iterations=10).gaussians
    assert float(determinant(displacement(refined, coordinates(shape))).min()) > 0.0


def test_a_motion_that_a_change_of_brightness_speaks_for_is_taken_while_the_plain_mismatch_falls():
    """Apart from brightness the whole motion matches best, and a refinement starts there; as they are, the images disagree."""
    fixed, moving = (image[..., None] for image in known_pair((64, 64)))
    points = coordinates((64, 64))
    x, y = (part.ravel() for part in components(points))
    smooth = jnp.stack([jnp.ones_like(x), x, y, x * y, x**2, y**2])
    projected = jnp.linalg.lstsq(smooth.T, (moving - fixed).ravel())[0] @ smooth
    dimmed = fixed + 14.0 * projected.reshape(fixed.shape)

    def mismatch(answer):
        """What leaves is charged what it cost undisplaced, times what the others have gained."""
        field = displacement(answer, points)
        there, cost = inside(points + field), (moving - dimmed)[..., 0] ** 2
        ungained = 0.05 * cost.sum()
        total = jnp.sum(jnp.where(there, (warp(moving, field) - dimmed)[..., 0] ** 2, 0.0))
        gain = (total + ungained) / (jnp.sum(jnp.where(there, cost, 0.0)) + ungained)
        return (gain * (cost.sum() + ungained) - ungained) / cost.size

    taken, started = best_fraction(dimmed, moving, TRUE), refine(dimmed, moving, TRUE, iterations=0).gaussians
    nothing = mismatch(TRUE._replace(weight=0.0 * TRUE.weight))
    np.testing.assert_allclose(started.weight, TRUE.weight, atol=1e-6)
    assert mismatch(started) > nothing
    np.testing.assert_allclose(taken.weight, 0.5 * TRUE.weight, atol=1e-6)
    assert mismatch(taken) < nothing


def test_refinement_looks_at_the_mask_alone():
    """What the fixed image shows outside the mask changes nothing; without the mask it does."""
    shape = (48, 48)
    fixed, moving = (standardise(image[..., None]) for image in known_pair(shape))
    mask = jnp.arange(48)[None, :] < jnp.full((48, 1), 30)
    spoilt = jnp.where(mask[..., None], fixed, fixed[::-1])
    start = TRUE._replace(weight=0.5 * TRUE.weight)
    weights = {
        (name, kept): refine(image, moving, start, iterations=4, mask=mask if kept else None).gaussians.weight
        for name, image in (("whole", fixed), ("spoilt", spoilt))
        for kept in (True, False)
    }
    np.testing.assert_array_equal(weights["whole", True], weights["spoilt", True])
    assert np.abs(weights["whole", False] - weights["spoilt", False]).max() > 1e-3


def test_refinement_leaves_a_registered_pair_alone():
    moving = standardise(known_pair(SHAPE)[1][..., None])
    nothing = TRUE._replace(weight=jnp.zeros((2, 2)))
    result = refine(moving, moving, nothing, iterations=3)
    np.testing.assert_allclose(displacement(result.gaussians, coordinates(SHAPE)), 0.0, atol=1e-6)


def test_refinement_never_folds(key):
    """Two images that have nothing in common, and steps that nothing but the fold would refuse."""
    fixed, moving = (
        standardise(jax.image.resize(noise, (48, 48, 1), "cubic")) for noise in jax.random.normal(key, (2, 6, 6, 1))
    )
    start = TRUE._replace(weight=0.2 * TRUE.weight)
    result = refine(fixed, moving, start, iterations=30, tv_weight=0.0, prior=0.0)
    assert float(result.losses[-1]) < 0.9 * float(result.losses[0])
    assert float(determinant(displacement(result.gaussians, coordinates((48, 48)))).min()) > 0.09


@pytest.mark.numerical
def test_determinants_at_the_points_are_those_of_fine_differences():
    points = coordinates(SHAPE)[3:-3:4, 3:-3:4]
    step = 1e-3

    def along(axis):
        offset = jnp.broadcast_to(step * jnp.eye(2)[axis], points.shape)
        ahead, behind = displacement(TRUE, points + offset), displacement(TRUE, points - offset)
        return np.asarray(ahead - behind, np.float64) / (2 * step)

    expected = np.linalg.det(np.stack([along(0), along(1)], axis=-1) + np.eye(2))
    assert np.ptp(expected) > 0.1
    field, found = displacement_and_determinant(TRUE, points)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    np.testing.assert_allclose(field, displacement(TRUE, points), atol=1e-6)


@pytest.mark.numerical
def test_determinants_in_3d_are_those_of_the_derivative(key):
    position, variance, rotation, weight = (jax.random.uniform(k, (4, 3)) for k in jax.random.split(key, 4))
    gaussians = Gaussians(position - 0.5, 0.1 + variance, rotation, 0.5 * weight)
    points = coordinates((3, 4, 5))
    derivative = jax.vmap(jax.jacfwd(lambda point: displacement(gaussians, point)))(points.reshape(-1, 3))
    expected = np.linalg.det(np.eye(3) + np.asarray(derivative, np.float64)).reshape(3, 4, 5)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(displacement_and_determinant(gaussians, points)[1], expected, atol=1e-4)


def test_a_step_slides_along_a_fold():
    """Against the closed form: off the fold the plain solution; at it, the minimum of the quadratic on the constraint."""
    rng = np.random.default_rng(0)
    root, downhill, rise = rng.normal(size=(5, 5)), rng.normal(size=5), rng.normal(size=5)
    matrix = root @ root.T + np.eye(5)
    plain = np.linalg.solve(matrix, downhill)
    arguments = [jnp.asarray(array, jnp.float32) for array in (matrix, downhill)]
    away = _along_the_fold(*arguments, jnp.asarray(1.0), jnp.asarray(0.1 * rise, jnp.float32))
    np.testing.assert_allclose(away, plain, atol=1e-5)
    # Over the step itself the smallest determinant would fall from 0.5 to far below 0.2.
    steep = -rise * np.sign(rise @ plain) * 2.0 / abs(rise @ plain)
    slid = np.asarray(_along_the_fold(*arguments, jnp.asarray(0.5), jnp.asarray(steep, jnp.float32)))
    kept = 0.5 + steep @ slid
    assert 0.5 + steep @ plain < 0.0 < kept < 0.5
    # Lagrange: what is left of the slope is along the constraint.
    left = matrix @ slid - downhill
    np.testing.assert_allclose(left, steep * (left @ steep) / (steep @ steep), atol=1e-4)


@pytest.mark.parametrize("mask", [False, True])
def test_nothing_is_won_by_carrying_pixels_out(mask):
    """A field that carries all of them out, or all but a few, costs what no field costs."""
    fixed, moving = (standardise(image[..., None]) for image in known_pair((64, 64)))
    middle = jnp.all(jnp.abs(coordinates((64, 64))) < 0.4, axis=-1)
    problem = pose(fixed, moving, middle if mask else None)
    far = TRUE._replace(position=jnp.zeros_like(TRUE.position), variance=jnp.full_like(TRUE.variance, 50.0))
    costs = [
        float(objective(problem, to_free(far._replace(weight=jnp.zeros_like(TRUE.weight).at[0, 0].set(push))), 0.0)[0])
        for push in (0.0, 1.9, 5.0)
    ]
    none, most, all_ = costs
    assert none > 0.01
    assert all_ == pytest.approx(none, rel=1e-3)
    assert most > 0.5 * none
    gone = far._replace(weight=jnp.zeros_like(TRUE.weight).at[0, 0].set(5.0))
    assert not inside(problem.points + displacement(gone, problem.points)).any(), "the control: nothing is left to compare"
