"""A coil's gain: what two images differ by smoothly is no contrast."""

import jax.numpy as jnp
import numpy as np
import pytest

from r2n2_jax.ops.gain_field import even
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.local_contrast import local_contrast

_SHAPE = (48, 64)
_X, _Y = np.moveaxis(np.asarray(coordinates(_SHAPE)), -1, 0)


def _texture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    waves = (np.cos(rng.uniform(4, 20) * _X + rng.uniform(4, 20) * _Y + rng.uniform(0, 6)) for _ in range(30))
    return (sum(waves) / 15).astype(np.float32)[..., None]


def _apart(fixed: np.ndarray, moving: np.ndarray, mask: np.ndarray | None = None) -> float:
    """By how much two images' local contrast differs, in the mean."""
    contrast = [local_contrast(jnp.asarray(image), jnp.zeros(()), mask) for image in (fixed, moving)]
    return float(jnp.abs(contrast[0] - contrast[1]).mean())


@pytest.mark.parametrize("seed", range(4))
def test_images_that_differ_by_a_smooth_gain_have_one_contrast(seed):
    """The control: as they come, their contrast differs by several times as much."""
    image = _texture(seed)
    gained = (np.exp(0.5 * _X - 0.3 * _Y + 0.3 * _X * _Y)[..., None] * image).astype(np.float32)
    evened = even(jnp.asarray(gained), jnp.asarray(image), jnp.zeros(()))
    assert _apart(*evened) < 0.3 * _apart(gained, image)
    np.testing.assert_allclose(evened[0] * evened[1], gained * image, rtol=1e-4, atol=1e-6)


def test_images_of_one_gain_stay_as_they_are():
    image = jnp.asarray(_texture(7))
    for evened in even(image, image, jnp.zeros(())):
        np.testing.assert_allclose(evened, image, atol=1e-5)


def test_what_a_mask_leaves_out_does_not_count():
    """A bright implant in one image; the control: without the mask it takes its share of the gain."""
    image = _texture(3)
    marred = image.copy()
    marred[:16, :16] *= 20.0
    mask = np.ones(_SHAPE, bool)
    mask[:24, :24] = False
    with_mask, without = (
        even(jnp.asarray(marred), jnp.asarray(image), jnp.zeros(()), where)[1] for where in (jnp.asarray(mask), None)
    )
    inside = np.s_[30:, 30:]
    np.testing.assert_allclose(with_mask[inside], image[inside], atol=0.02)
    assert np.abs(without - image)[inside].max() > 0.05


def test_an_empty_mask_and_empty_images_leave_all_as_it_is():
    image = jnp.asarray(_texture(1))
    for pair, mask in (((image, image), jnp.zeros(_SHAPE, bool)), ((jnp.zeros_like(image),) * 2, None)):
        for evened, before in zip(even(*pair, jnp.zeros(()), mask), pair, strict=True):
            np.testing.assert_allclose(evened, before, atol=1e-5)
