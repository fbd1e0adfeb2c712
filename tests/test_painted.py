"""Text that is burnt in and the ground around an aperture are found, left out and said; what merely looks like them is not."""

import numpy as np
import pytest

from benchmarks import pairs_of_kinds as kinds
from r2n2_jax import load
from r2n2_jax.evaluation.statuses import left_out_line
from r2n2_jax.registration.painted import painted


@pytest.fixture(scope="module")
def behind():
    """A scene behind an aperture, and behind one with text: whole numbers, as they are stored."""
    found = kinds.behind_an_aperture(masked=False)
    return [one._replace(fixed=np.round(one.fixed), moving=np.round(one.moving)) for one in found]


def whole_numbers(pair, grey_levels=256):
    """Both images of a pair in so many grey levels."""
    low = min(pair.fixed.min(), pair.moving.min())
    step = (max(pair.fixed.max(), pair.moving.max()) - low) / (grey_levels - 1)
    return [np.round((image - low) / step) for image in (pair.fixed, pair.moving)]


def test_text_and_the_ground_are_left_out_and_what_is_near(behind):
    (y, x), (plain, written) = kinds.places(behind[0].fixed.shape), behind
    rim, letters = np.hypot(x, y) - 105, written.fixed != plain.fixed
    ground, both = (painted(one.fixed, one.moving) for one in behind)
    np.testing.assert_array_equal(ground[rim > 0], True)
    assert not ground[rim < -10].any()
    np.testing.assert_array_equal(both[(rim > 0) | letters], True)
    assert not both[(rim < -10) & ~((np.abs(y + 60) < 18) & (np.abs(x) < 58))].any()


def test_text_that_moves_with_the_scene_is_not_painted(behind):
    plain, written = behind
    moving = np.where(np.roll(written.moving == 255, 2, axis=0), 255, plain.moving)
    np.testing.assert_array_equal(painted(written.fixed, moving), painted(plain.fixed, plain.moving))


def test_what_all_of_the_scene_is_beneath_is_not_left_out(behind):
    """More than half of the scene would go: the lines are nearer to each other than what is left out around each."""
    lines = np.arange(256) % 12 < 2
    written = [np.where(lines, 255, getattr(behind[1], name)) for name in ("fixed", "moving")]
    assert not painted(*written).any()


@pytest.mark.parametrize(
    "make", [kinds.hot_pixels, kinds.still_frames_of_low_snr, kinds.uptake, kinds.contrasts, kinds.drift, kinds.patterns]
)
def test_tissue_is_not_painted(make):
    for pair in make():
        assert not painted(pair.fixed, pair.moving).any(), pair.name
        assert not painted(*whole_numbers(pair)).any(), pair.name


def test_what_is_still_without_noise_is_not_painted():
    """A frame and itself; half of a scene that moves; a square beside one that moves, on an empty ground."""
    pair = kinds.pair("", kinds.smooth(6.0), noise=0.0)
    half = np.where(np.arange(256) < 100, pair.moving, pair.fixed)
    for fixed in (pair.moving, half):
        assert not painted(fixed, pair.moving).any()
        assert not painted(np.round(fixed), np.round(pair.moving)).any()
    squares = np.zeros((2, 256, 256))
    squares[:, 20:40, 20:40] = squares[0, 125:150, 125:150] = squares[1, 130:155, 130:155] = 255.0
    assert not painted(*squares).any()


@pytest.fixture(scope="module")
def registrar():
    return load()


def error(found, pair):
    return np.linalg.norm(found.displacement * 127.5 - pair.displacement, axis=-1)[pair.judged].mean()


def test_what_is_painted_does_not_hold_the_scene(registrar, behind):
    """The control is told by its mask that everything counts."""
    for pair in behind:
        found = registrar.register(pair.fixed, pair.moving)
        np.testing.assert_array_equal(found.left_out, painted(pair.fixed, pair.moving))
        assert error(found, pair) < 0.15
        told = registrar.register(pair.fixed, pair.moving, mask=np.ones(pair.fixed.shape))
        assert not told.left_out.any()
        assert error(told, pair) > max(0.15, 2 * error(found, pair))


def test_each_frame_of_a_series_leaves_out_its_own(registrar, behind):
    plain, written = behind
    series = registrar.register_series(np.stack([written.fixed, written.moving, plain.moving]), fixed=0, refine=0)
    np.testing.assert_array_equal(series.left_out[1], painted(written.fixed, written.moving))
    np.testing.assert_array_equal(series.left_out.any(axis=(1, 2)), [False, True, True])
    assert series.frame(1).left_out.sum() > series.frame(2).left_out.sum()


def test_three_dimensions_have_the_same_text():
    random = np.random.default_rng(0)
    volumes = random.normal(100.0, 20.0, (2, 16, 24, 24))
    volumes[:, 4:6, 4:8, 4:12] = 255.0
    found = painted(*volumes)
    np.testing.assert_array_equal(found[4:6, 4:8, 4:12], True)
    assert found.sum() < 0.1 * found.size


def test_the_line_says_how_much_and_what_to_do():
    assert left_out_line([0]) == left_out_line([0, 0]) == left_out_line([]) == ""
    assert left_out_line([40]).startswith("left out: 40 pixels, the same in both images")
    assert left_out_line([0, 40, 30]).startswith("left out: up to 40 pixels of each of 2 frames, the same")
    assert "--mask FILE" in left_out_line([40])
