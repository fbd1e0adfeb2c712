"""What intensities are made of: outliers, empty fields of view and masks must not decide how an image is seen."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from r2n2_jax.ops.intensity import cut_outliers, prepare, standardise
from r2n2_jax.ops.local_contrast import quiet


@pytest.fixture
def image():
    return gaussian_filter(np.random.default_rng(0).normal(size=(160, 128)), 3.0).astype(np.float32)[..., None]


@pytest.mark.parametrize("count", [1, 5, 15])
def test_hot_pixels_change_nothing_else(count, image):
    random = np.random.default_rng(1)
    hot = image.copy()
    hot[random.integers(0, 160, count), random.integers(0, 128, count)] = random.uniform(1e3, 1e5, (count, 1))
    clean, cut = np.asarray(cut_outliers(image)), np.asarray(cut_outliers(hot))
    assert cut.max() <= image.max()
    assert np.mean(np.abs(cut - clean) > 1e-3 * np.ptp(image)) < 0.004
    assert np.abs(prepare(image[..., 0], (64, 64)) - prepare(hot[..., 0], (64, 64))).mean() < 0.02
    plain = (hot - hot.mean()) / hot.std()
    assert plain.std() == pytest.approx(1.0, abs=1e-3)
    assert np.percentile(np.abs(plain), 90) < 0.2, "the control: by mean and deviation of all nothing else is seen"


def test_a_thousandth_is_cut_on_either_side(image):
    cut = np.asarray(cut_outliers(image))
    low, high = np.quantile(image.astype(np.float64), [0.001, 0.999])
    assert cut.min() == pytest.approx(low, abs=0.02 * float(np.ptp(image)))
    assert cut.max() == pytest.approx(high, abs=0.02 * float(np.ptp(image)))
    inner = (image > cut.min()) & (image < cut.max())
    np.testing.assert_array_equal(cut[inner], image[inner])


def test_what_would_be_left_constant_is_not_cut():
    dots = np.zeros((96, 96, 1), np.float32)
    dots[10, 10] = dots[60, 70] = 7.0
    np.testing.assert_array_equal(cut_outliers(dots), dots)


@pytest.mark.parametrize("side", [20, 30])
def test_an_empty_field_of_view_does_not_flatten_what_lies_in_it(side, image):
    field = np.zeros((128, 128, 1), np.float32)
    part = (slice(40, 40 + side), slice(50, 50 + side))
    field[part] = 10.0 + image[:side, :side] / image[:side, :side].std()
    ours = np.asarray(standardise(field))[part]
    assert (np.abs(ours) < 2.0).all(), "clipped"
    # Of the background as much counts as of the rest: two halves, 0 and the part.
    rest = np.ravel(field[part]).astype(np.float64)
    mean, square = 0.5 * rest.mean(), 0.5 * (rest**2).mean()
    np.testing.assert_allclose(ours, (field[part] - mean) / np.sqrt(square - mean**2), rtol=1e-4)
    plain = (field - field.mean()) / field.std()
    assert (plain[part] > 2.0).mean() > 0.5, "the control: by all pixels it would be clipped"


def test_without_an_empty_field_all_pixels_count_alike(image):
    expected = (image - image.mean(dtype=np.float64)) / image.std(dtype=np.float64)
    np.testing.assert_allclose(standardise(image), np.clip(expected, -2.0, 2.0), atol=1e-4)


def test_a_mask_names_the_pixels_whose_statistics_count(image):
    mask = np.arange(128)[None] < np.full((160, 1), 50)
    spoilt = np.where(mask[..., None], image, 100.0 * image[::-1])
    inside = image[mask].astype(np.float64)
    expected = np.clip((image[mask] - inside.mean()) / inside.std(), -2.0, 2.0)
    np.testing.assert_allclose(np.asarray(standardise(spoilt, jnp.asarray(mask)))[mask], expected, atol=1e-4)
    assert np.abs(np.asarray(standardise(spoilt))[mask] - expected).max() > 0.5


@pytest.mark.parametrize(
    ("noise", "deviation"), [(0.0, 0.6), (0.05, 0.6), (0.2, np.hypot(0.6, 1.0)), (3.0, np.hypot(0.6, 2.5))]
)
def test_noise_is_blurred_away_by_its_own_measure(noise, deviation):
    """SciPy's Gaussian away from the border; of a volume without noise nothing is."""
    image = np.random.default_rng(0).normal(size=(48, 40, 1)).astype(np.float32)
    expected = gaussian_filter(image[..., 0].astype(np.float64), deviation, truncate=8.0)
    inner = (slice(16, -16),) * 2
    np.testing.assert_allclose(quiet(image, jnp.asarray(noise))[..., 0][inner], expected[inner], atol=2e-5)
    volume = image.reshape(8, 6, 40, 1)
    np.testing.assert_allclose(quiet(volume, jnp.asarray(0.0)), volume, atol=1e-6)


def test_nothing_from_outside_a_mask_is_blurred_into_it():
    random = np.random.default_rng(1)
    image = random.normal(size=(32, 32, 1)).astype(np.float32)
    mask = random.uniform(size=(32, 32)) > 0.4
    spoilt = np.where(mask[..., None], image, 50.0)
    for noise in (0.0, 0.3):
        kept, changed = (np.asarray(quiet(one, jnp.asarray(noise), mask))[mask] for one in (image, spoilt))
        np.testing.assert_array_equal(kept, changed)
        assert np.abs(np.asarray(quiet(spoilt, jnp.asarray(noise)))[mask] - kept).max() > 1.0
