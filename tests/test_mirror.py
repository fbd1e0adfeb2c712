"""A second look at a pair, in a mirror: what it shows, and when it is believed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_reference import random_params, smooth_pair

from r2n2_jax.config import ModelConfig
from r2n2_jax.ops.gaussian import Gaussians, displacement, mirror
from r2n2_jax.registration import search, sequence
from r2n2_jax.registration.course import Found, Stages, Wanted
from r2n2_jax.registration.judgement import Judged

MODEL = ModelConfig(resolution=32, steps=3, channels=(4, 6, 8, 10), hidden=12, sigma_min=0.005, joint=True)


def drawn(seed, d, count=5):
    random = np.random.default_rng(seed)
    turns = random.uniform(-3.0, 3.0, (count, d * (d - 1) // 2))
    parts = random.uniform(-1, 1, (count, d)), random.uniform(0.02, 0.3, (count, d)), turns, random.normal(size=(count, d))
    return Gaussians(*(jnp.asarray(part, jnp.float32) for part in parts))


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("seed", range(10))
def test_a_mirror_shows_the_same_field(seed, d):
    """In float64 NumPy ``M f(M x)``; the control leaves the rotations as they are."""
    gaussians = drawn(seed, d)
    points = np.random.default_rng(seed + 100).uniform(-1, 1, (50, d)).astype(np.float32)
    turned = np.array([-1.0, 1.0, 1.0][:d], np.float32)
    expected = turned * np.asarray(displacement(gaussians, jnp.asarray(turned * points)))
    seen = mirror(gaussians)
    np.testing.assert_allclose(displacement(seen, jnp.asarray(points)), expected, atol=2e-5)
    control = displacement(seen._replace(rotation=gaussians.rotation), jnp.asarray(points))
    assert np.abs(control - expected).max() > 1e-3


def test_a_mirror_twice_is_none():
    jax.tree.map(np.testing.assert_array_equal, mirror(mirror(drawn(0, 3))), drawn(0, 3))


def test_the_network_looks_at_what_the_mirror_shows(key):
    """Pairs looked at in a mirror are the mirrored pairs looked at as they are, mirrored; the control is not mirrored back.

    Two pairs with a mask that is not the same from both sides, and of two more that are not needed nothing is said.
    """
    pairs = np.stack([np.asarray(smooth_pair(jax.random.fold_in(key, n)))[..., 0] for n in range(4)])
    fixed, moving = pairs[:, 0], pairs[:, 1]
    mask = np.broadcast_to(np.arange(28) < 18, fixed.shape)
    needed = np.array([True, False, True, False])
    find = functools.partial(
        sequence.find, random_params(MODEL), MODEL, wanted=Wanted(jnp.zeros(()), jnp.ones(2)), looks=3, refine=0
    )
    mirrored = find(sequence.views(MODEL, fixed, moving, mask, refine=0), needed=needed, mirrored=True).gaussians
    turned = (image[:, :, ::-1] for image in (fixed, moving, mask))
    as_it_is = find(sequence.views(MODEL, *turned, refine=0)).gaussians
    shown, expected = (jax.tree.map(lambda part: np.asarray(part)[needed], one) for one in (mirrored, mirror(as_it_is)))
    assert np.abs(shown.weight).max() > 1e-3
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), shown, expected)
    assert np.abs(shown.position - np.asarray(as_it_is.position)[needed]).max() > 1e-2
    assert not np.asarray(mirrored.weight)[~needed].any()


def found(doubt):
    doubt = np.asarray(doubt, np.float32)
    judged = Judged(*(doubt,) * 4)
    return Found(drawn(0, 2, len(doubt)), judged, doubt, doubt, Stages(*(doubt,) * 3))


def test_a_mirror_is_believed_where_it_leaves_far_less_doubt():
    """Of four pairs the first is good; of the others one is much better in the mirror, one a little, one worse."""
    asked = []

    def find(seen, *, needed=None, mirrored=False):
        asked.append(needed)
        return found([0.0, 0.03, 0.046, 0.09] if mirrored else [0.01, 0.05, 0.05, 0.05])

    chosen = search._from_both_sides(find, [])
    np.testing.assert_allclose(chosen.judged.doubt, [0.01, 0.03, 0.05, 0.05], atol=1e-7)
    assert asked[0] is None
    assert asked[1].tolist() == [False, True, True, True]


def test_only_the_pairs_that_matter_are_looked_at_again():
    asked = []

    def find(seen, *, needed=None, mirrored=False):
        asked.append(needed)
        return found([0.05, 0.01, 0.01] if mirrored else [0.05, 0.05, 0.09])

    chosen = search._from_both_sides(find, [], np.array([True, False, True]))
    assert asked[1].tolist() == [True, False, True]
    np.testing.assert_allclose(chosen.judged.doubt, [0.05, 0.05, 0.01], atol=1e-7)


def test_where_all_are_good_no_mirror_is_asked():
    asked = []
    search._from_both_sides(lambda seen, **how: asked.append(how) or found([0.01, 0.0]), [])
    assert asked == [{}]
