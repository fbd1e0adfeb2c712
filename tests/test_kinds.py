"""Kinds of image that went wrong in someone's hands, each under a motion that is known."""

import numpy as np
import pytest

from benchmarks import pairs_of_kinds as kinds
from benchmarks.kinds import judge
from r2n2_jax import load


@pytest.fixture(scope="module")
def registered():
    registrar = load()
    return lambda pairs: judge(registrar, pairs)


def beyond(found, pixels):
    """A line for each that is off by more than so many pixels, or by a number that is none."""
    lines = (f"{one.name}: {one.before:.2f} -> {one.after:.2f} px, {one.status}" for one in found if not one.after < pixels)
    return "\n".join(lines)


def silently_wrong(found):
    """What is wrong by a pixel or more, and called good."""
    return beyond([one for one in found if one.status == "good"], 1.0)


def test_hot_pixels_change_nothing(registered):
    clean, *hot = registered(kinds.hot_pixels())
    assert clean.before > 3.0
    assert beyond([clean], 0.2) == ""
    assert beyond(hot, clean.after + 0.1) == ""


def test_noise_is_no_motion(registered):
    assert beyond(registered(kinds.still_frames_of_low_snr()), 0.3) == ""


def test_a_jump_is_found_in_noise(registered):
    assert beyond(registered(kinds.jumps_of_low_snr()), 0.6) == ""


def test_contrast_that_arrives_is_no_motion_in_silence(registered):
    assert silently_wrong(registered(kinds.uptake())) == ""


def test_dark_for_bright_is_found_and_another_modality_is_not_wrong_in_silence(registered):
    inverted, *others = registered(kinds.contrasts())
    assert beyond([inverted], 0.3) == ""
    assert inverted.status == "good"
    assert silently_wrong(others) == ""


def test_what_has_drifted_away_is_found(registered):
    assert beyond(registered(kinds.drift()), 1.0) == ""


def test_what_is_turned_is_found(registered):
    assert beyond(registered(kinds.turns()), 1.0) == ""


def test_what_stays_before_the_scene_does_not_pull(registered):
    assert beyond(registered(kinds.behind_an_aperture(masked=False)), 0.3) == ""


def test_a_mask_tells_the_scene_from_what_stays_before_it(registered):
    assert beyond(registered(kinds.behind_an_aperture(masked=True)), 0.3) == ""


def test_what_repeats_itself_or_is_sparse_is_found(registered):
    assert beyond(registered(kinds.patterns()), 0.3) == ""


@pytest.mark.slow
@pytest.mark.parametrize("size", [(24, 24), (100, 600)])
def test_any_size_is_registered(size, registered):
    found = registered(kinds.of_size(*size))
    assert beyond(found, 0.2 * found[0].before) == ""


def test_a_square_becomes_a_larger_one_and_back():
    """Judged by their overlap: a square does not say which of its points goes where."""

    def overlap(one, other):
        return 2 * np.sum((one > 127) & (other > 127)) / (np.sum(one > 127) + np.sum(other > 127))

    small, large = np.zeros((2, 256, 256), np.float32)
    small[125:150, 125:150] = large[130:170, 130:170] = 255.0
    assert overlap(small, large) < 0.4
    found = load().register_batch(np.stack([small, large]), np.stack([large, small]))
    assert overlap(small, found.warped[0]) > 0.95
    assert overlap(large, found.warped[1]) > 0.95


def test_the_displacement_is_the_one_that_made_the_pair():
    """Where the fixed image has no noise of its own, it shows what the moving image shows there."""
    pair = kinds.pair("", kinds.turn(30.0, 8.0, -5.0), noise=0.0)
    y, x = kinds.places(pair.fixed.shape)
    there = kinds.tissue(y + pair.displacement[..., 1], x + pair.displacement[..., 0])
    np.testing.assert_allclose(pair.fixed, there, atol=1e-9)
    assert np.abs(pair.fixed - pair.moving).max() > 50.0


def test_a_jump_is_found_in_any_noise(registered):
    """Bumps two to five times as high as the noise's deviation at most: none is moved that is still, and no jump is missed."""
    jumps = [(3.0, 0.0, 0.0), (3.5, 0.0, 0.0), (3.5, 4.0, 4.0), (4.0, -3.0, 4.0), (5.0, 6.0, -6.0), (7.0, 2.0, 8.0)]
    pairs = [
        kinds.pair(f"noise {noise:g}, a jump of {x:g}, {y:g} px", kinds.shift(x, y), kinds.bumps, shown=kinds.everywhere,
                   noise=noise, seed=20 + index)
        for index, (noise, x, y) in enumerate(jumps)
    ]  # fmt: skip
    assert beyond(registered(pairs), 0.8) == ""


def test_a_small_motion_is_found_in_noise(registered):
    """Two pixels at most, half a pixel of what the network looks at, in noise of up to a tenth of the contrast."""
    pairs = [
        kinds.pair(f"2 px, noise {noise:g}, seed {seed}", kinds.smooth(2.0), noise=noise, seed=seed)
        for noise in (5.0, 10.0)
        for seed in (40, 41)
    ]
    found = registered(pairs)
    assert min(one.before for one in found) > 1.0
    assert beyond(found, 0.5) == ""


def test_stripes_are_followed_that_the_network_can_hardly_see(registered):
    """Of 256 pixels; at 64 per axis those less than 8 apart turn up as wider ones that move the other way."""

    def striped(apart):
        return lambda y, x: kinds.tissue(y, x) * (0.6 + 0.4 * np.cos(2 * np.pi * x / apart))

    pairs = [
        kinds.pair(f"stripes {apart:g} px apart, {largest:g} px", kinds.smooth(largest), striped(apart))
        for apart in (6.0, 7.5, 9.0)
        for largest in (4.0, 9.0)
    ]
    assert beyond(registered(pairs), 0.3) == ""
