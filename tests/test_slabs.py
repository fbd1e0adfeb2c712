"""What large volumes are computed by, a part at a time, against the whole at once."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from r2n2_jax.commands import maps as module
from r2n2_jax.evaluation import metrics
from r2n2_jax.evaluation.cases import Case
from r2n2_jax.ops.grid import coordinates, over_planes

SHAPE = (11, 14, 12)


@pytest.fixture(scope="module")
def case():
    """A pair, a region, and a field that folds in places."""
    rng = np.random.default_rng(0)
    fixed, other = (gaussian_filter(rng.normal(size=SHAPE), 1.5).astype(np.float32) for _ in range(2))
    field = np.stack([1.5 * gaussian_filter(rng.normal(size=SHAPE), 1.0) for _ in range(3)], axis=-1).astype(np.float32)
    region = rng.random(SHAPE) > 0.2
    return Case("", "", fixed[None], (fixed + 0.3 * other)[None], (1.0, 1.0, 2.0), region=region[None]), field[None]


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 4)])
def test_points_come_a_plane_at_a_time(shape):
    rng = np.random.default_rng(1)
    weight = jnp.asarray(rng.normal(size=shape), jnp.float32)
    found = over_planes(lambda points, weight: (points, weight * points[..., 0]), shape, weight)
    np.testing.assert_array_equal(found[0], coordinates(shape))
    np.testing.assert_allclose(found[1], weight * coordinates(shape)[..., 0], rtol=1e-6)


@pytest.mark.parametrize("planes", [2, 3, 5, 10, 11, 100])
def test_measures_of_volumes_do_not_depend_on_how_many_planes_are_held(case, planes, monkeypatch):
    """Folds and SDlogJ against NumPy's gradient of the whole."""
    pair, field = case
    monkeypatch.setattr(metrics, "_MOST_PIXELS", planes * SHAPE[1] * SHAPE[2])
    found = metrics.measure(pair, field)
    steps = [2.0 / (n - 1) for n in SHAPE]
    slopes = np.stack([np.stack(np.gradient(field[0, ..., i].astype(np.float64), *steps)[::-1], -1) for i in range(3)], -2)
    determinants = np.linalg.det(np.eye(3) + slopes)
    assert (determinants <= 0).any()
    assert found.folded[0] == pytest.approx(np.mean(determinants <= 0), abs=1e-3)
    assert found.sd_log_jacobian[0] == pytest.approx(np.std(np.log(np.maximum(determinants, 1e-3))), rel=1e-2)


def test_measures_of_volumes_are_those_of_all_voxels_at_once(case):
    pair, field = case
    found = metrics.measure(pair, field)
    mse, ncc = metrics._similarity(pair.fixed, pair.moving, field, pair.region)
    np.testing.assert_allclose(found.mse, mse, rtol=1e-4)
    np.testing.assert_allclose(found.ncc, ncc, rtol=1e-4)


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 6)])
def test_maps_are_made_of_the_points_of_all_pixels(shape, monkeypatch):
    monkeypatch.setattr(module, "_MOST_POINTS", 2 * np.prod(shape[1:]) + 1)
    found = np.full((*shape, len(shape)), np.nan)
    parts = list(module._slabs(shape))
    for part, points in parts:
        found[part] = points
    assert len(parts) == 5
    np.testing.assert_array_equal(found, coordinates(shape))
