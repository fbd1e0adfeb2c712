"""The cell and the whole sequence against the independent float64 NumPy version, and against what must differ from it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import Reference

from r2n2_jax.config import ModelConfig
from r2n2_jax.models.conv_gru import ConvGRU
from r2n2_jax.models.r2n2 import R2N2

CONFIG = ModelConfig(resolution=32, steps=4, channels=(4, 6, 8, 10), hidden=12, noise=0.0, remat=False)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("steps", "noise"))
def apply(config, params, fixed, moving, key=None, **options):
    rngs = None if key is None else {"noise": key}
    return R2N2(config).apply({"params": params}, fixed, moving, rngs=rngs, **options)


def smooth_pair(key):
    """Two smooth images that vanish at the border: there the zero outside is a jump, and rounding decides its side."""
    images = jax.image.resize(jax.random.normal(key, (2, 7, 6)), (2, 32, 28), "cubic")
    window = jnp.sin(jnp.linspace(0, jnp.pi, 32))[:, None] * jnp.sin(jnp.linspace(0, jnp.pi, 28))[None]
    return (2.0 * images * window[None])[..., None]


def random_params(config, seed=0):
    """Weights of useful size everywhere: the zeros that training starts from would hide mistakes."""
    pair = jnp.zeros((1, *(32,) * config.ndim, 1))
    shapes = jax.eval_shape(lambda: R2N2(config).init(jax.random.key(0), pair, pair, steps=1))["params"]
    random = np.random.default_rng(seed)

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1])
        scale = 1.0 / np.sqrt(fan_in) if leaf.ndim > 1 else 0.1
        return jnp.asarray(scale * random.normal(size=leaf.shape), jnp.float32)

    return jax.tree.map(draw, shapes)


def both(config, key, **mistakes):
    """The network's sequence and the reference's, on the same weights and images."""
    params, (fixed, moving) = random_params(config), smooth_pair(key)
    ours = apply(config, params, fixed[None], moving[None])
    plain = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)["step"]
    options = {"activation": config.activation, "sigma_max": config.sigma_max, "std": config.sigma_is == "std"}
    options["flow"] = config.flow
    reference = Reference(plain, **options | mistakes)
    images = (np.asarray(image[..., 0], np.float64) for image in (fixed, moving))
    return ours, reference.sequence(*images, config.steps, config.channels[:-1])


VARIANTS = {
    "paper": CONFIG,
    "authors": dataclasses.replace(CONFIG, activation="leaky_relu", norm="instance", sigma_is="std"),
    "flow": dataclasses.replace(CONFIG, flow=True),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_sequence_equals_numpy(variant, key):
    config = VARIANTS[variant]
    ours, (field, looks) = both(config, key)
    assert np.abs(field).max() > 0.05, "a field this small would prove nothing"
    np.testing.assert_allclose(ours.displacement[0], field, atol=1e-5)
    for t, (warped, (position, variance, angle, weight)) in enumerate(looks):
        np.testing.assert_allclose(ours.warped[t, 0, ..., 0], warped, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ours.gaussians.position[t, 0], position, atol=1e-5)
        np.testing.assert_allclose(ours.gaussians.variance[t, 0], variance, atol=1e-5)
        np.testing.assert_allclose(ours.gaussians.rotation[t, 0, 0], angle, atol=1e-5)
        np.testing.assert_allclose(ours.gaussians.weight[t, 0], weight, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "mistake"),
    [
        ("paper", {"reset_late": True}),
        ("paper", {"warp_warped": True}),
        ("paper", {"skip": False}),
        ("flow", {"flow": False}),
        ("flow", {"unfaded": True}),
    ],
)
def test_mistakes_are_noticed(variant, mistake, key):
    ours, (field, _) = both(VARIANTS[variant], key, **mistake)
    assert np.abs(np.asarray(ours.displacement[0]) - field).max() > 1e-3


def test_gru_equals_numpy(key):
    x, h = jax.random.normal(key, (2, 1, 9, 7, 5))
    cell = ConvGRU(5)
    params = cell.init(key, x, h)["params"]
    output, state = cell.apply({"params": params}, x, h)
    plain = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    expected = Reference({}).gru(plain, np.asarray(x[0], np.float64), np.asarray(h[0], np.float64))
    np.testing.assert_allclose(state[0], expected, atol=1e-5)
    np.testing.assert_array_equal(output, state)
    late = Reference({}, reset_late=True).gru(plain, np.asarray(x[0], np.float64), np.asarray(h[0], np.float64))
    assert np.abs(late - expected).max() > 1e-3


@pytest.mark.numerical
def test_the_gradient_is_the_slope_of_the_numpy_reference(key):
    """Through the recurrence, weight by weight along a random direction; the control, one kernel's gradient turned, is not."""
    config = dataclasses.replace(CONFIG, steps=2, channels=(2, 4, 4, 4), residual_blocks=1, hidden=6)
    params, (fixed, moving) = random_params(config), smooth_pair(key)
    images = [np.asarray(image[..., 0], np.float64) for image in (fixed, moving)]
    plain, tree = jax.tree.flatten(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params))
    random = np.random.default_rng(1)
    directions = [random.normal(size=leaf.shape) for leaf in plain]
    paired = list(zip(plain, directions, strict=True))

    def expected(index):
        losses = []
        for step in (1e-5, -1e-5):
            leaves = [leaf + step * direction * (i == index) for i, (leaf, direction) in enumerate(paired)]
            _, looks = Reference(jax.tree.unflatten(tree, leaves)["step"]).sequence(*images, 2, config.channels[:-1])
            losses.append(np.mean([np.mean((warped - images[0]) ** 2) for warped, _ in looks]))
        return (losses[0] - losses[1]) / 2e-5

    slopes = np.array([expected(index) for index in range(len(plain))])

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.mean((R2N2(config).apply({"params": params}, fixed[None], moving[None]).warped - fixed[None, None]) ** 2)

    def along(gradient):
        return np.array([np.vdot(leaf, way) for leaf, way in zip(jax.tree.leaves(gradient), directions, strict=True)])

    found, largest = gradient(params), np.abs(slopes).max()
    assert largest > 1e-2
    np.testing.assert_allclose(along(found), slopes, atol=1e-3 * largest)
    found["step"]["stem"]["conv"]["kernel"] = found["step"]["stem"]["conv"]["kernel"][::-1, ::-1]
    assert np.abs(along(found) - slopes).max() > 1e-2 * largest
