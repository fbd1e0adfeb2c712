"""The open-ended sequence: what it adds and where, when it ends, and that every pair of a batch has its own length."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from r2n2_jax import load
from r2n2_jax.errors import InputError
from r2n2_jax.ops.gaussian import Gaussians, displacement, displacement_and_determinant
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.registration import sequence
from r2n2_jax.registration.course import View, Wanted, begin, folds, go_on
from r2n2_jax.registration.growth import grow
from r2n2_jax.registration.levenberg_marquardt import refine, refine_batch
from r2n2_jax.registration.posterior import posterior
from r2n2_jax.registration.registrar import Registrar

SIZE = 128
LOOKS = 6
WHERE_THEY_AGREE = Wanted(jnp.asarray(0.0), jnp.ones(2))


@pytest.fixture(scope="module")
def registrar():
    """With fewer looks than it is trained for, so that there is something to go on with."""
    everyday = load()
    model = dataclasses.replace(everyday.config.model, steps=LOOKS)
    return Registrar(dataclasses.replace(everyday.config, model=model), everyday.params)


def texture(seed, fine=3.0):
    rng = np.random.default_rng(seed)
    image = gaussian_filter(rng.normal(size=(SIZE, SIZE)), fine) + 2 * gaussian_filter(rng.normal(size=(SIZE, SIZE)), 3 * fine)
    return (image / image.std()).astype(np.float32)


def shifted(image, down):
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(float)
    return map_coordinates(image, [rows - down, columns], order=3, mode="nearest").astype(np.float32)


def sliding(pixels, seed=3):
    """An organ that slides by so many pixels along a wall that stands still; where the wall is."""
    wall = np.arange(SIZE) >= 80
    fixed = np.where(wall, texture(seed), texture(seed + 1))
    moving = np.where(wall, texture(seed), shifted(texture(seed + 1), pixels))
    return fixed, moving, wall


def error_of(result, wall, pixels, within=12):
    """The mean error in pixels on both sides of the wall, away from what enters the image."""
    found = result.displacement[16:-16] * (SIZE - 1) / 2
    columns = np.arange(SIZE)
    still = wall & (columns < 80 + within) & (columns >= 83)
    moves = ~wall & (columns >= 80 - within) & (columns < 77)
    true = np.array([0.0, pixels])
    return [float(np.linalg.norm(found[:, side] - truth, axis=-1).mean()) for side, truth in ((still, 0 * true), (moves, true))]


def as_view(fixed, moving):
    return View(*(jnp.asarray(image)[..., None] for image in (fixed, moving)))


def padded(gaussians, slots):
    more = slots - len(gaussians.weight)
    grown = jax.tree.map(lambda part: jnp.concatenate([part, jnp.zeros((more, *part.shape[1:]))]), gaussians)
    variance = grown.variance.at[slots - more :].set(1.0)
    return grown._replace(variance=variance), jnp.arange(slots) < slots - more


def one_gaussian(weight, position=(0.0, 0.0), deviation=0.5):
    shape = jnp.full((1, 2), deviation**2), jnp.zeros((1, 1))
    return Gaussians(jnp.asarray([position], jnp.float32), *shape, jnp.asarray([weight], jnp.float32))


def test_a_wall_that_stands_still_is_let_go(registrar):
    pixels = 20.0
    fixed, moving, wall = sliding(pixels, seed=7)
    grown = registrar.register(fixed, moving, start="none")
    control = registrar.register(fixed, moving, steps=LOOKS, start="none")
    assert control.steps <= LOOKS < grown.steps
    assert sum(error_of(grown, wall, pixels)) < 0.6 * sum(error_of(control, wall, pixels))
    assert np.linalg.det(grown.jacobian(np.asarray(coordinates((255, 255)))).matrix).min() > 0


def test_an_image_against_itself_needs_nothing(registrar):
    image = texture(1)
    result = registrar.register(image, image)
    assert (result.steps, result.stopped) == (0, "sure")
    assert np.abs(result.displacement).max() == 0
    assert result.describe()["transformations"] == []


def test_each_pair_of_a_batch_has_its_own_length(registrar):
    fixed, moving, _ = sliding(16.0)
    pairs = np.stack([fixed, fixed]), np.stack([moving, fixed])
    both = registrar.register_batch(*pairs, steps=28)
    alone = registrar.register(fixed, moving, steps=28)
    assert both.steps[0] > LOOKS
    assert both.steps[1] == 0
    assert both.stopped.tolist() == [both.stopped[0], "sure"]
    np.testing.assert_allclose(both.displacement[0], alone.displacement, atol=2e-3)


def test_where_all_are_sure_no_round_is_compiled(registrar, monkeypatch):
    rounds, continued = [], sequence._continued
    monkeypatch.setattr(sequence, "_continued", lambda *pairs, **how: rounds.append(how["refine"]) or continued(*pairs, **how))
    for fixed, moving in ((texture(1),) * 2, sliding(16.0)[:2]):
        registrar.register(fixed, moving)
    assert rounds[0] == 0 < rounds[1]


def test_the_stages_say_how_it_went(registrar):
    """They end with what the result says of itself; more local transformations come only with another round."""
    fixed, moving, _ = sliding(16.0)
    result = registrar.register(fixed, moving)
    stages = result.describe()["stages"]
    steps = [stage["steps"] for stage in stages]
    assert steps == sorted(set(steps))
    assert steps[0] <= LOOKS < steps[-1] == result.steps
    assert stages[-1]["doubt"] == pytest.approx(float(result.doubt))
    expected = result.deviation(np.asarray(coordinates((16, 16)))).mean()
    assert stages[-1]["deviation_mm"] == pytest.approx(float(expected), rel=1e-3)
    alone = registrar.register(fixed, moving, refine=0)
    assert [stage["steps"] for stage in alone.describe()["stages"]] == [alone.steps]


def test_a_tolerance_ends_the_sequence(registrar):
    fixed, moving, _ = sliding(3.0)
    loose = registrar.register(fixed, moving, tolerance_mm=50.0)
    tight = registrar.register(fixed, moving, tolerance_mm=1e-3, steps=20)
    assert loose.stopped == "sure"
    assert loose.steps <= LOOKS < tight.steps <= 20
    assert tight.stopped in ("nothing left to gain", "budget")
    described = tight.describe()
    assert (described["steps"], described["stopped"]) == (tight.steps, tight.stopped)
    assert len(described["transformations"]) == tight.steps


def test_a_fold_between_the_pixels_is_seen():
    """A needle that is steepest midway between two pixels of 33; the control: their own determinants."""
    needle = one_gaussian((0.03, 0.0), position=(1 / 32 - 0.012, 0.0), deviation=0.012)
    points = coordinates((33, 33))
    assert displacement_and_determinant(needle, points)[1].min() > 0
    assert folds(needle, (33, 33))
    assert not folds(needle._replace(weight=0.1 * needle.weight), (33, 33))


@pytest.mark.parametrize("options", [{"tolerance_mm": 0.0}, {"tolerance_mm": np.nan}, {"tolerance_mm": 1.0, "refine": 0}])
def test_a_tolerance_that_says_nothing_is_refused(registrar, options):
    with pytest.raises(InputError, match="tolerance"):
        registrar.register(texture(1), texture(2), **options)


def test_growth_proposes_the_motion_that_is_missing():
    """A field that carries all of the image, where one half stands still: the first further Gaussian undoes it."""
    down = 8.0
    fixed = texture(5)
    moving = np.where(np.arange(SIZE) < 64, shifted(fixed, down), fixed)
    everywhere = one_gaussian((0.0, down * 2 / (SIZE - 1)), deviation=20.0)
    gaussians, taken = padded(everywhere, 2)
    mask = jnp.zeros((SIZE, SIZE), bool).at[16:-16].set(True)  # what leaves the image matches nowhere
    grown, used = grow(*as_view(fixed, moving)[:2], gaussians, taken, mask=mask, outlier=2.0)
    assert used.tolist() == [True, True]
    assert grown.position[1, 0] > 0.0
    assert -1.0 < grown.weight[1, 1] / everywhere.weight[0, 1] < -0.5
    right = moving * 0 + shifted(fixed, down)
    unneeded = grow(*as_view(fixed, right)[:2], gaussians, taken, mask=mask, outlier=2.0)[0]
    assert abs(unneeded.weight[1, 1] / everywhere.weight[0, 1]) < 0.1


def test_slots_that_are_not_taken_stay_empty():
    fixed, moving, _ = sliding(3.0)
    first = one_gaussian((0.01, 0.02))
    gaussians, taken = padded(first, 4)
    pair = as_view(fixed, moving)[:2]
    alone = refine(*pair, first, taken=jnp.ones(1, bool), iterations=4, prior=0.0).gaussians
    among = refine(*pair, gaussians, taken=taken, iterations=4, prior=0.0).gaussians
    assert not np.any(among.weight[1:])
    np.testing.assert_allclose(among.weight[0], alone.weight[0], atol=1e-4)
    freed = refine(*pair, gaussians, iterations=4, prior=0.0).gaussians
    assert np.any(freed.weight[1:])


def test_there_is_no_doubt_of_empty_slots():
    fixed, moving, _ = sliding(3.0)
    first = one_gaussian((0.01, 0.02))
    gaussians, taken = padded(first, 3)
    pair = as_view(fixed, moving)[:2]
    alone, among = posterior(*pair, first), posterior(*pair, gaussians, taken=taken)
    kept = jnp.tile(taken, 7)
    np.testing.assert_allclose(among[kept][:, kept], alone, rtol=1e-2, atol=1e-4 * np.abs(alone).max())
    assert not np.any(among[~kept])


def test_the_sequence_is_traced_once_for_all_lengths():
    fixed, moving, _ = sliding(5.0)
    looks = jax.tree.map(lambda part: jnp.repeat(part, 2, axis=0), one_gaussian((0.0, 0.01)))
    wanted = WHERE_THEY_AGREE

    @jax.jit
    def run(seen, looks):
        begun = begin([seen], looks, wanted, iterations=2)
        return go_on([seen], begun, wanted, most=6, iterations=2)

    ends = [run(as_view(*pair), looks) for pair in ((fixed, moving), (fixed, fixed))]
    assert run._cache_size() == 1
    lengths = [int(np.any(end.gaussians.weight, axis=-1).sum()) for end in ends]
    assert lengths[0] > lengths[1] == 0
    assert np.isfinite(displacement(ends[0].gaussians, coordinates((8, 8)))).all()


def test_on_a_cpu_no_pair_takes_a_branch_that_is_not_its_own():
    """A batch, even of one, would compute both branches of every condition on a pair: the control, one by ``vmap``."""
    pair = as_view(*sliding(3)[:2])
    start = Gaussians(jnp.zeros((2, 2)), jnp.full((2, 2), 0.1), jnp.zeros((2, 1)), jnp.full((2, 2), 0.01))

    def one(fixed, moving, gaussians):
        return refine(fixed, moving, gaussians, iterations=2).gaussians

    batch = jax.tree.map(lambda array: array[None], (pair.fixed, pair.moving, start))
    conditions = [
        str(jax.make_jaxpr(function)(*batch)).count(" cond[")
        for function in (lambda *pairs: refine_batch(*pairs, iterations=2), jax.vmap(one))
    ]
    assert conditions[0] > conditions[1]
