"""Joint looks: what is solved and seen at every look, against float64 NumPy; what it must do, whatever the weights."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from test_reference import apply, random_params, smooth_pair

from r2n2_jax.config import Config, ModelConfig, OptimiserConfig
from r2n2_jax.models.joint import JointStep, distinct, first_carry, quieted, widening
from r2n2_jax.models.r2n2 import R2N2, init_params
from r2n2_jax.ops import outliers
from r2n2_jax.ops.gaussian import Gaussians, displacement
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.joint_weights import weights_step
from r2n2_jax.ops.local_contrast import local_contrast
from r2n2_jax.ops.local_flow import local_flow
from r2n2_jax.ops.matrix import solve_definite
from r2n2_jax.ops.warp import warp
from r2n2_jax.training.losses import contrast_loss, sequence_loss

CONFIG = ModelConfig(
    resolution=32, steps=4, channels=(4, 6, 8, 10), hidden=12, noise=0.0, remat=False, sigma_min=0.005, joint=True
)


def definite(random, size):
    half = random.normal(size=(size, size + 3))
    return half @ half.T / size + 0.1 * np.eye(size)


@pytest.mark.parametrize("size", [1, 5, 24])
def test_a_definite_system_is_solved(size):
    random = np.random.default_rng(size)
    many = np.stack([definite(random, size) for _ in range(3)])
    right = random.normal(size=(3, size))
    expected = np.linalg.solve(many, right[..., None])[..., 0]
    found = jax.vmap(solve_definite)(jnp.asarray(many, jnp.float32), jnp.asarray(right, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


def test_the_slope_of_a_solution_is_its_own():
    random = np.random.default_rng(0)
    matrix, right = jnp.asarray(definite(random, 4), jnp.float32), jnp.asarray(random.normal(size=4), jnp.float32)

    def solution(upper, right):
        return solve_definite(0.5 * (upper + upper.T), right)

    jax.test_util.check_grads(solution, (matrix, right), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-2)


def test_a_bounded_residual_and_its_slope():
    residuals = jnp.linspace(-20.0, 20.0, 41)
    found = outliers.bounded(residuals, 2.0)
    assert float(jnp.abs(found).max()) < 2.0
    np.testing.assert_allclose(outliers.bounded(0.01 * residuals, 2.0), 0.01 * residuals, rtol=0.01)
    slopes = jax.vmap(jax.grad(lambda r: outliers.bounded(r, 2.0)))(residuals)
    np.testing.assert_allclose(outliers.bounded_slope(residuals, 2.0), slopes, rtol=1e-4, atol=1e-6)


def test_the_window_is_wide_at_first_and_narrows():
    factors = [float(widening(jnp.array(look))) for look in range(40)]
    assert factors[0] == factors[2] == 16.0
    assert factors[6:] == [1.0] * 34
    assert [float(distinct(jnp.array(look))) for look in (0, 2, 4, 6, 30)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert all(a >= b for a, b in itertools.pairwise(factors))


def numpy_flow(residual, slopes, deviation, at):
    """Sums under the window around one of the half-size pixels, one by one."""
    shape = tuple(-(-n // 2) for n in residual.shape)

    def halved(image):
        image = np.pad(image, [(0, n % 2) for n in image.shape], mode="edge")
        cells = [axis for n in shape for axis in (n, 2)]
        return image.reshape(cells).mean(axis=tuple(range(1, 2 * len(shape), 2)))

    axes = [(2 * np.arange(n) + 1) / n - 1 for n in shape]
    mesh = np.meshgrid(*axes, indexing="ij")
    apart = sum((axis - axis[at]) ** 2 for axis in mesh)
    window = np.exp(-0.5 * apart / deviation**2)
    b = np.array([(window * halved(residual * slope)).sum() for slope in slopes])
    a = np.array([[(window**2 * halved(one * other)).sum() for other in slopes] for one in slopes])
    pixels = np.prod(shape)
    floor = 0.05 * np.trace(a) + 1e-3 * pixels * deviation ** len(shape)
    shift = np.linalg.solve(a + floor * np.eye(len(slopes)), b)
    return shift @ b / pixels, shift


@pytest.mark.parametrize("shape", [(16, 20), (15, 12), (8, 7, 10)])
def test_the_flow_around_a_pixel_is_that_of_its_window(shape):
    random = np.random.default_rng(1)
    residual, *slopes = random.normal(size=(1 + len(shape), *shape))
    deviations = (0.15, 0.4)
    given = [jnp.asarray(slope, jnp.float32) for slope in slopes]
    gains, shifts = local_flow(jnp.asarray(residual, jnp.float32), given, deviations=deviations)
    chex.assert_shape(gains, (*(-(-n // 2) for n in shape), 2))
    for scale, deviation in enumerate(deviations):
        for at in [(0,) * len(shape), tuple(n // 4 for n in shape)]:
            gain, shift = numpy_flow(residual, slopes, deviation, at)
            np.testing.assert_allclose(gains[at][scale], gain, rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(shifts[at][scale], shift, rtol=1e-3, atol=1e-6)


def test_the_flow_is_largest_where_the_motion_is():
    points = np.asarray(coordinates((48, 48)), np.float64)
    moved = 0.05 * np.exp(-0.5 * ((points - [0.4, -0.3]) ** 2).sum(-1) / 0.2**2)

    def image(x, y):
        return np.sin(9 * x + 2 * y) + np.cos(7 * y - 3 * x)

    fixed, still = image(points[..., 0] + moved, points[..., 1]), image(points[..., 0], points[..., 1])
    slopes = [jnp.asarray(23.5 * np.gradient(still, axis=1 - i), jnp.float32) for i in range(2)]
    gains, shifts = local_flow(jnp.asarray(fixed - still, jnp.float32), slopes, deviations=(0.2,))
    row, column = np.unravel_index(np.argmax(gains[..., 0]), (24, 24))
    found = np.array([2 * column + 1, 2 * row + 1]) / 24 - 1
    assert np.linalg.norm(found - [0.4, -0.3]) < 0.15
    np.testing.assert_allclose(shifts[row, column, 0], [0.05, 0.0], atol=0.012)


def some_gaussians(random, count, d):
    return Gaussians(
        random.uniform(-0.7, 0.7, (count, d)),
        random.uniform(0.02, 0.2, (count, d)),
        random.uniform(0.0, 3.0, (count, d * (d - 1) // 2)),
        random.normal(0.0, 0.1, (count, d)),
    )


def numpy_precision(gaussians, index):
    angles = gaussians.rotation[index]
    turn = [[np.cos(angles[0]), -np.sin(angles[0])], [np.sin(angles[0]), np.cos(angles[0])]]
    return np.linalg.inv(np.array(turn) @ np.diag(gaussians.variance[index]) @ np.array(turn).T)


def numpy_bells(gaussians, points):
    bells = []
    for index, position in enumerate(gaussians.position):
        offset = points - position
        bells.append(np.exp(-0.5 * np.einsum("ni,ij,nj->n", offset, numpy_precision(gaussians, index), offset)))
    return np.stack(bells)


def numpy_step(gaussians, taken, bells, residual, slopes, tv_weight):
    """Damped least squares of every weight, the total variation lagged, written out in the order ``[d, T]``."""
    count, pixels = bells.shape
    coarse = np.asarray(coordinates((16, 16)), np.float64).reshape(-1, 2)
    heights = numpy_bells(gaussians, coarse)
    steep = np.stack([-(h[:, None] * ((coarse - p) @ numpy_precision(gaussians, k))) for k, (h, p) in
                      enumerate(zip(heights, gaussians.position, strict=True))])  # [T, N, 2]  # fmt: skip
    steep = steep * taken[:, None, None]
    field = np.einsum("tna,tc->nca", steep, gaussians.weight)
    share = 1.0 / (2.0 * np.sqrt((field**2).sum((1, 2)) + 0.1**2))
    smooth = tv_weight * np.einsum("tna,sna,n->ts", steep, steep, share) / len(coarse)
    rows = np.concatenate([bells * slope for slope in slopes])
    normal = rows @ rows.T / pixels + np.kron(np.eye(2), smooth)
    pulls = rows @ residual / pixels - np.concatenate([smooth @ gaussians.weight[:, i] for i in range(2)])
    normal = normal + np.diag(0.02 * np.diag(normal) + 1e-3)
    return np.linalg.solve(normal, pulls).reshape(2, count).T


@pytest.mark.parametrize("seed", range(4))
def test_the_weights_are_those_of_damped_least_squares(seed):
    random = np.random.default_rng(seed)
    gaussians, taken = some_gaussians(random, 5, 2), np.array([True, True, True, False, False])
    gaussians = gaussians._replace(weight=gaussians.weight * taken[:, None])
    points = np.asarray(coordinates((20, 24)), np.float64).reshape(-1, 2)
    bells = numpy_bells(gaussians, points) * taken[:, None]
    residual, *slopes = random.normal(size=(3, len(points)))
    expected = numpy_step(gaussians, taken, bells, residual, slopes, 0.1)
    given = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (bells, residual, slopes, gaussians))
    found = weights_step(*given, jnp.asarray(taken), 0.1)
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=1e-4)
    np.testing.assert_array_equal(found[3:], 0.0)
    rough = weights_step(*given, jnp.asarray(taken), 0.0)
    assert np.abs(rough - expected).max() > 1e-3, "without the smoothness it must differ"


def test_volumes_have_weights_as_well():
    random = np.random.default_rng(2)
    gaussians = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), some_gaussians(random, 3, 3))
    points = coordinates((8, 9, 10)).reshape(-1, 3)
    one = Gaussians(*(field[:1] for field in gaussians))
    bell = displacement(one._replace(weight=jnp.array([[1.0, 0.0, 0.0]])), points)[:, 0]
    slopes = [jnp.asarray(random.normal(size=len(points)), jnp.float32) for _ in range(3)]
    wanted = np.array([0.05, -0.02, 0.1])
    residual = sum(float(part) * bell * slope for part, slope in zip(wanted, slopes, strict=True))
    bells = jnp.stack([bell, 0 * bell, 0 * bell])
    still = gaussians._replace(weight=0.0 * gaussians.weight)
    step = weights_step(bells, residual, slopes, still, jnp.array([True, False, False]), 1e-6)
    np.testing.assert_allclose(step[0], wanted, rtol=0.15)
    np.testing.assert_array_equal(step[1:], 0.0)


def numpy_blurred(image, deviation):
    """Under a Gaussian of a deviation in halves of the image, that ends at the border."""
    for axis, n in enumerate(image.shape):
        apart = (np.arange(n)[:, None] - np.arange(n)) / (deviation * (n - 1))
        kernel = np.exp(-0.5 * apart**2)
        image = np.apply_along_axis(lambda line, k=kernel: k @ line / k.sum(1), axis, image)
    return image


def untrained(config):
    """Weights that place Gaussians somewhere, all of one shape, and add nothing of their own to what is solved for."""
    params = random_params(config)
    params["step"]["parameters"]["output"] = jax.tree.map(jnp.zeros_like, params["step"]["parameters"]["output"])
    return params


def test_every_look_solves_for_all_weights(key):
    """Given where an untrained network places them, NumPy finds the same weights from the images alone."""
    fixed, moving = smooth_pair(key)
    sequence = apply(dataclasses.replace(CONFIG, steps=3), untrained(CONFIG), fixed[None], moving[None])
    found = jax.tree.map(lambda a: np.asarray(a[:, 0], np.float64), sequence.gaussians)
    shape = fixed.shape[:-1]
    points = np.asarray(coordinates(shape), np.float64).reshape(-1, 2)
    pair = quieted(fixed[None], moving[None])
    image = np.asarray(pair.moving[0, ..., 0], np.float64)
    weight, warped = np.zeros((3, 2)), image
    for look in range(3):
        # The images are smooth, so the noise is near none and the window of the first looks is all the image.
        contrast = [
            np.asarray(local_contrast(jnp.asarray(i, jnp.float32), pair.noise[0], widened=16.0), np.float64)[..., 0]
            for i in (pair.fixed[0], warped[..., None])
        ]
        contrast = [numpy_blurred(image, 0.5 * 0.0952) for image in contrast]
        difference, mean = contrast[0] - contrast[1], 0.5 * (contrast[0] + contrast[1])
        there = points + numpy_bells(found, points).T @ weight
        counted = (np.abs(there) <= 1.0).all(axis=1)
        ratio = 1.0 + (difference.ravel() / 32.0) ** 2
        slopes = [(n - 1) / 2 * np.gradient(mean, axis=axis).ravel() * ratio**-1.5 * counted
                  for n, axis in ((shape[1], 1), (shape[0], 0))]  # fmt: skip
        taken = np.arange(3) <= look
        gaussians = Gaussians(found.position, found.variance, found.rotation, weight)
        bells = numpy_bells(gaussians, points) * taken[:, None]
        step = numpy_step(gaussians, taken, bells, difference.ravel() / np.sqrt(ratio) * counted, slopes, 0.1)
        weight = weight + 0.5 * np.tanh(step / 0.5)
        field = (points + bells.T @ weight).reshape(*shape, 2)
        at = [(field[..., 1 - axis] + 1) * (n - 1) / 2 for axis, n in enumerate(shape)]
        warped = map_coordinates(image, at, order=1, mode="constant")
        inner = (slice(1, -1),) * 2  # a blurred image does not vanish at the border
        np.testing.assert_allclose(sequence.warped[look, 0, ..., 0][inner], warped[inner], atol=0.02)
    assert np.abs(weight).max() > 0.01, "weights this small would prove nothing"
    np.testing.assert_allclose(found.weight, weight, rtol=0.02, atol=1e-3)


def test_an_image_against_itself_is_not_moved(key):
    fixed = smooth_pair(key)[:1]
    sequence = apply(CONFIG, init_params(key, CONFIG), fixed, fixed)
    np.testing.assert_allclose(sequence.displacement, 0.0, atol=1e-6)


def test_the_gaussians_are_the_result_and_no_look_is_undone(key):
    """The weights at the end are those of the end, and not those that the first looks had solved for."""
    fixed, moving = smooth_pair(key)[:, None]
    sequence = apply(CONFIG, random_params(CONFIG), fixed, moving)
    chex.assert_shape(sequence.gaussians.weight, (4, 1, 2))
    field = displacement(jax.tree.map(lambda a: a[:, 0], sequence.gaussians), coordinates((32, 28)))
    np.testing.assert_allclose(field, sequence.displacement[0], atol=1e-5)
    seen = quieted(fixed, moving).moving[0]
    np.testing.assert_allclose(warp(seen, field)[1:-1, 1:-1], sequence.warped[-1, 0, 1:-1, 1:-1], atol=2e-2)
    fewer = apply(CONFIG, random_params(CONFIG), fixed, moving, steps=2).gaussians.weight
    assert np.abs(fewer - sequence.gaussians.weight[:2]).max() > 1e-3


def test_where_the_image_has_been_left_nothing_is_taken_for_an_edge(key):
    """A bright image that is pulled beyond its border; the control, zeros beyond it, has an edge there."""
    moving = 2.0 + 0.1 * smooth_pair(key)[:1]
    pair = quieted(moving, moving)
    carry = first_carry(CONFIG, pair, 2)
    away = jnp.broadcast_to(jnp.array([0.4, 0.0]), (1, 32, 28, 2))
    step = {"params": untrained(CONFIG)["step"]}
    (following, (shown, mask)) = jax.jit(JointStep(CONFIG).apply)(step, carry._replace(displacement=away), pair)
    assert 0.1 < float(jnp.mean(~mask)) < 0.4
    assert float(shown.min()) > 1.0
    assert float(jax.vmap(warp)(moving, following.displacement).min()) == 0.0


def test_what_the_mask_excludes_does_not_count(key):
    """Whatever is there, in the fixed image and in the moving one; the control is without a mask."""
    fixed, moving = smooth_pair(key)[:, None]
    mask = jnp.broadcast_to(jnp.arange(32)[:, None] < 20, (1, 32, 28))
    spoilt = jnp.where(mask[..., None], moving, moving + 3.0)
    params = untrained(dataclasses.replace(CONFIG, steps=1))

    def solved(moving, mask):
        return apply(CONFIG, params, fixed, moving, mask=mask, steps=1).gaussians.weight

    np.testing.assert_allclose(solved(moving, mask), solved(spoilt, mask), atol=1e-5)
    assert np.abs(solved(moving, None) - solved(spoilt, None)).max() > 1e-3


def test_scan_equals_a_python_loop(key):
    fixed, moving = smooth_pair(key)[:, None]
    params = random_params(CONFIG)
    sequence = apply(CONFIG, params, fixed, moving)
    pair = quieted(fixed, moving)
    carry = first_carry(CONFIG, pair, CONFIG.steps)
    step = jax.jit(JointStep(CONFIG).apply)
    for t in range(CONFIG.steps):
        carry, (warped, _) = step({"params": params["step"]}, carry, pair)
        np.testing.assert_allclose(sequence.warped[t], warped, atol=1e-3)
    np.testing.assert_allclose(sequence.displacement, carry.displacement, atol=1e-4)
    np.testing.assert_allclose(sequence.gaussians.weight[:, 0], carry.gaussians.weight[0], atol=1e-4)


def test_three_dimensions_and_odd_sizes(key):
    config = ModelConfig(
        ndim=3, resolution=16, steps=2, channels=(2, 4, 4, 6), hidden=8, remat=True, sigma_min=0.005, joint=True, noise=0.0
    )
    fixed, moving = jax.random.normal(key, (2, 1, 15, 12, 10, 1))
    sequence = apply(config, random_params(config), fixed, moving)
    chex.assert_shape(sequence.displacement, (1, 15, 12, 10, 3))
    chex.assert_shape(sequence.gaussians.rotation, (2, 1, 3))
    assert 0 < np.abs(sequence.displacement).max() < np.inf


@pytest.mark.numerical
def test_training_follows_the_slope_of_its_loss(key):
    """Through the solutions of two looks, along a random direction of all weights that do not see the motion."""
    config = dataclasses.replace(CONFIG, steps=2, channels=(2, 4, 4, 4), residual_blocks=1, hidden=6)
    fixed, moving = smooth_pair(key)
    params, direction = random_params(config), random_params(config, seed=1)
    for weights in (params, direction):
        # What is seen of the motion is not differentiated through: here the network does not look at it.
        weights["step"]["motion"] = jax.tree.map(jnp.zeros_like, weights["step"]["motion"])
        hidden = weights["step"]["parameters"]["hidden"]
        hidden["kernel"] = hidden["kernel"].at[-12:].set(0.0)

    @jax.jit
    def loss(share):
        moved = jax.tree.map(lambda p, d: p + share * d, params, direction)
        # The images vanish at their border, so that nothing jumps where a pixel leaves.
        return jnp.mean((R2N2(config).apply({"params": moved}, fixed[None], moving[None]).warped - fixed[None, None]) ** 2)

    slope, size = float(jax.grad(loss)(0.0)), 0.01
    assert abs(slope) > 1e-3
    assert float(loss(size) - loss(-size)) / (2 * size) == pytest.approx(slope, rel=0.03)


def test_the_loss_is_eq_6_of_local_contrast(key):
    fixed, moving, *warped = jax.random.normal(key, (9, 16, 17, 1))
    inside = np.asarray(jax.random.uniform(key, (7, 16, 17)) < 0.7)
    field = 0.1 * jax.random.normal(key, (16, 17, 2))
    pair = jax.tree.map(lambda a: a[0], quieted(fixed[None], moving[None]))
    free, charged = [], []
    for look, (image, mask) in enumerate(zip(warped, inside, strict=True)):
        factor = 16.0 ** min(max(1 - (look - 2) / 4, 0.0), 1.0)
        a, b, still = (
            np.asarray(local_contrast(i, pair.noise, widened=factor), np.float64)[..., 0]
            for i in (pair.fixed, image, pair.moving)
        )
        cost, kept = (d**2 / (1 + (d / (2 * factor)) ** 2) for d in (a - b, a - still))
        free.append(cost[mask].mean())
        charged.append(np.where(mask, cost, kept).mean())
    parts = fixed, moving, jnp.stack(warped), inside, field
    tv = float(sequence_loss(fixed, jnp.stack(warped), inside, field, 0.1)[1]["tv"])
    for expected, option in ((free, False), (charged, True)):
        loss, terms = contrast_loss(*parts, 0.1, charge_leaving=option)
        np.testing.assert_allclose(loss, np.mean(expected) + 0.1 * tv, rtol=1e-4)
        np.testing.assert_allclose(terms["mse"], expected[-1], rtol=1e-4)
        assert float(terms["coverage"]) == pytest.approx(inside[-1].mean())


def test_the_late_loss_does_not_see_a_coil(key):
    """A gain that changes across the image; the control is the MSE, which sees it."""
    fixed, _ = smooth_pair(key)
    fixed = fixed + jnp.sin(20.0 * coordinates((32, 28))[..., :1])
    dim = fixed * (1.0 + 0.3 * coordinates((32, 28))[..., :1])
    looks = jnp.broadcast_to(quieted(fixed[None], dim[None]).moving[0], (20, *dim.shape))
    inside, still = jnp.ones((20, 32, 28), bool), jnp.zeros((32, 28, 2))
    seen = float(contrast_loss(fixed, dim, looks, inside, still, 0.0)[1]["mse"])
    assert seen < 0.15 * float(sequence_loss(fixed, looks, inside, still, 0.0)[1]["mse"])


def test_a_config_that_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="joint needs a sigma_min"):
        ModelConfig(joint=True)
    with pytest.raises(ValueError, match="one of both"):
        OptimiserConfig(contrast=True, brightness=True)
    with pytest.raises(ValueError, match="or neither"):
        Config(optimiser=OptimiserConfig(contrast=True))
    with pytest.raises(ValueError, match="or neither"):
        Config(model=ModelConfig(joint=True, sigma_min=0.005))
