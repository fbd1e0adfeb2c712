"""Every compiled program is lowered for the accelerators, which this machine need not have: nothing in it is a CPU's alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from jax import export

from r2n2_jax.baseline.bspline import bspline
from r2n2_jax.baseline.optimise import Settings, _programs
from r2n2_jax.config import PRESETS, PhantomConfig
from r2n2_jax.data.dataset import _phantom_batch
from r2n2_jax.io.geometry import same_place
from r2n2_jax.models.r2n2 import init_params
from r2n2_jax.ops.affine import Affine
from r2n2_jax.ops.gaussian import Gaussians
from r2n2_jax.registration import levenberg_marquardt, sequence
from r2n2_jax.registration.course import View, Wanted
from r2n2_jax.runtime.devices import mesh
from r2n2_jax.training.state import init_state
from r2n2_jax.training.step import make_train_step

ACCELERATORS = ("cuda", "tpu")
KEY = jax.eval_shape(lambda: jax.random.key(0))


def lowered(function, *arguments, **options):
    """The programs for both, as StableHLO; ``options`` are static."""
    jitted = getattr(function, "__wrapped__", function) if not hasattr(function, "lower") else function
    return export.export(jitted, platforms=ACCELERATORS)(*arguments, **options)


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.fixture
def on_an_accelerator(monkeypatch):
    """What asks which backend there is, is told of an accelerator; its traces are nobody else's."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.clear_caches()
    yield
    jax.clear_caches()


def gaussians(*leading):
    return Gaussians(*(floats(*leading, n) for n in (2, 2, 1, 2)))


def weights(model):
    return jax.eval_shape(functools.partial(init_params, model=model), KEY)


@pytest.mark.parametrize("preset", PRESETS)
def test_training_step(preset):
    config = PRESETS[preset]
    images = floats(config.training.batch, *config.model.shape, 1)
    state = jax.eval_shape(functools.partial(init_state, config, None))
    assert lowered(make_train_step(config), state, images, images).platforms == ACCELERATORS


@pytest.mark.parametrize("refine", [0, 10])
def test_search(refine, on_an_accelerator):
    model, wanted = PRESETS["small"].model, Wanted(floats(), floats(2))
    views = [View(*(floats(2, size, size, 1),) * 2, None) for size in ((64, 128) if refine else (64,))]
    options = {"model": model, "looks": 3, "refine": refine, "devices": mesh(1)}
    given = weights(model), views, wanted, jnp.ones(2, bool), jnp.asarray(False)
    lowered(sequence._found, *given, **options)
    if refine:
        found = jax.eval_shape(functools.partial(sequence._found, **options), *given)
        lowered(sequence._continued, views, found, wanted, most=11, refine=refine, devices=mesh(1))


def test_view_and_field():
    images = floats(2, 100, 90)
    mask = jax.ShapeDtypeStruct((2, 100, 90), jnp.bool_)
    lowered(sequence._viewed, images, images, mask, shapes=((64, 64), (128, 128)), devices=mesh(1))
    affine = Affine(floats(2, 2, 2), floats(2, 2))
    lowered(sequence._moved, images, affine, devices=mesh(1))
    lowered(sequence._applied, gaussians(2, 8), images, affine, same_place(2), shape=(100, 90), devices=mesh(1))


def test_start():
    pairs = View(*(floats(2, 64, 64, 1),) * 2, None)
    wanted = jax.ShapeDtypeStruct((2,), jnp.bool_)
    lowered(sequence._started, pairs, wanted, floats(2), kind="affine", devices=mesh(1))


def test_refinement(on_an_accelerator):
    image = floats(64, 64, 1)
    lowered(levenberg_marquardt.refine, image, image, gaussians(8), iterations=3)


def test_phantom_batch():
    config = dataclasses.replace(PhantomConfig(), variety=0.5)
    lowered(_phantom_batch, KEY, config=config, size=2, shape=(64, 64))


def test_baseline():
    model = bspline(8.0)
    run, start = _programs(model, Settings(shrink=(1,), iterations=1))
    params = jax.tree.map(lambda leaf: floats(2, *leaf.shape), jax.eval_shape(lambda: model.init((64, 64))))
    images = floats(2, 64, 64, 1)
    lowered(run, jax.eval_shape(start, params), images, images)


def only_on_a_cpu(x):
    return jax.lax.platform_dependent(x, cpu=jnp.sin)


def of_lapack(x):
    return jnp.linalg.eig(x)[0]


@pytest.mark.parametrize("function", [only_on_a_cpu, of_lapack])
def test_what_a_cpu_alone_can_do_is_noticed(function):
    jitted = jax.jit(function)
    export.export(jitted, platforms=("cpu",))(floats(3, 3))
    with pytest.raises(NotImplementedError):
        lowered(jitted, floats(3, 3))
