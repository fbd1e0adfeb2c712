"""The weights that come with the package: they load without a run, register pairs they never saw, and can be trained on."""

import jax
import numpy as np
import pytest

import r2n2_jax
from r2n2_jax.config import PRESETS
from r2n2_jax.data.dataset import held_out_phantoms
from r2n2_jax.pretrained import package
from r2n2_jax.training.state import fits, init_state


@pytest.fixture(scope="module")
def registrar():
    return r2n2_jax.load()


def test_what_is_written_is_what_is_read(registrar, tmp_path, monkeypatch):
    path = tmp_path / "weights.msgpack"
    package.save(path, registrar.config, jax.tree.map(lambda array: array + 1.0, registrar.params))
    monkeypatch.setattr(package.resources, "files", lambda _: tmp_path)
    monkeypatch.setattr(package, "_FILES", {2: path.name})
    config, params = package.restore()
    assert config == registrar.config
    jax.tree.map(lambda new, old: np.testing.assert_array_equal(new, old + 1.0), params, registrar.params)


@pytest.mark.parametrize(("ndim", "file", "preset"), [(2, "everyday.msgpack", "small"), (3, "volume.msgpack", "volume")])
def test_they_are_small_and_of_their_own_architecture(ndim, file, preset):
    from importlib import resources

    registrar = r2n2_jax.load(ndim=ndim)
    assert resources.files("r2n2_jax.pretrained").joinpath(file).stat().st_size < 16 * 2**20
    assert resources.files("r2n2_jax.pretrained").joinpath("README.md").is_file()
    assert registrar.config.model.ndim == ndim
    assert fits(registrar.params, registrar.config)
    assert fits(registrar.params, PRESETS[preset])
    assert not fits(registrar.params, PRESETS["paper"])
    state = init_state(registrar.config, registrar.params)
    np.testing.assert_array_equal(jax.tree.leaves(state.params)[0], jax.tree.leaves(registrar.params)[0])


def test_the_precision_can_be_chosen(registrar):
    assert r2n2_jax.load(precision="bfloat16").config.model.precision == "bfloat16"
    assert registrar.config.model.precision == "float32"


@pytest.mark.slow
def test_they_register_unseen_phantoms(registrar):
    """The network halves the landmarks' distance at least; refined it is a fifth at most, and no pair is worse or folded."""
    pairs = held_out_phantoms(registrar.config.phantom, (128, 128), "test", 6)
    fixed, moving = (np.asarray(images[..., 0]) for images in (pairs.fixed, pairs.moving))

    def distances(result=None):
        carried = np.asarray(pairs.fixed_landmarks)
        if result is not None:
            carried = np.stack([result.frame(i).points(points) for i, points in enumerate(carried)])
        return np.linalg.norm(carried - pairs.moving_landmarks, axis=-1).mean(axis=1)

    before = distances()
    network = registrar.register_batch(fixed, moving, refine=0)
    refined = registrar.register_batch(fixed, moving, refine=10)
    assert (distances(network) < before).all()
    assert distances(network).mean() < 0.5 * before.mean()
    assert distances(refined).mean() < 0.2 * before.mean()
    slopes = [jax.vmap(r2n2_jax.ops.jacobian.determinant)(result.displacement) for result in (network, refined)]
    assert min(float(slope.min()) for slope in slopes) > 0


@pytest.mark.slow
def test_they_register_unseen_volumes():
    """The network alone halves the landmarks' distance at least, in volumes of any size, and does not fold."""
    registrar = r2n2_jax.load(ndim=3)
    pairs = held_out_phantoms(registrar.config.phantom, (40, 48, 44), "test", 4)
    fixed, moving = (np.asarray(images[..., 0]) for images in (pairs.fixed, pairs.moving))
    before = np.linalg.norm(pairs.fixed_landmarks - pairs.moving_landmarks, axis=-1).mean(axis=1)
    network = registrar.register_batch(fixed, moving, refine=0)
    carried = np.stack([network.frame(i).points(np.asarray(points)) for i, points in enumerate(pairs.fixed_landmarks)])
    after = np.linalg.norm(carried - pairs.moving_landmarks, axis=-1).mean(axis=1)
    assert (after < before).all()
    assert after.mean() < 0.5 * before.mean()
    assert float(jax.vmap(r2n2_jax.ops.jacobian.determinant)(network.displacement).min()) > 0
