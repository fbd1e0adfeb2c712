"""Random keys: no two draws of a run share one."""

import itertools

import jax
import numpy as np
import pytest

from r2n2_jax.config import Config, PhantomConfig, TrainingConfig
from r2n2_jax.data import dataset
from r2n2_jax.data.streams import Streams, streams

STEPS = 12


def bits(key):
    return tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())


def test_a_fold_is_a_split_with_this_generator():
    """Why one key is never used for both."""
    key = jax.random.key(3)
    assert bits(jax.random.split(key, 5)[2]) == bits(jax.random.fold_in(key, 2))


def test_no_two_streams_of_a_run_meet():
    """The roots, the keys of the steps, and what these are split into: all of them differ, over two seeds."""
    keys = {}
    for seed in (0, 1):
        for name, root in zip(Streams._fields, streams(seed), strict=True):
            derived = [jax.random.fold_in(root, step) for step in range(STEPS)]
            for key in [root, *derived, *itertools.chain(*(jax.random.split(one, 8) for one in derived))]:
                keys.setdefault(bits(key), set()).add((seed, name))
    shared = {owners for owners in map(frozenset, keys.values()) if len(owners) > 1}
    assert not shared
    assert len(keys) == 2 * len(Streams._fields) * (1 + STEPS + 8 * STEPS)


@pytest.mark.parametrize(("size", "variety"), [(4, 0.5), (3, 0.25)])
def test_a_batch_splits_or_folds_a_key_and_never_both(size, variety, monkeypatch):
    """Counts what every key is used for while a batch is made: twice is a fault, whichever way."""
    used = {}

    def counting(name):
        original = getattr(jax.random, name)

        def wrapped(key, *args, **kwargs):
            if isinstance(key, jax.core.Tracer):
                return original(key, *args, **kwargs)
            used.setdefault(bits(key), []).append(name)
            return original(key, *args, **kwargs)

        return wrapped

    for name in ("split", "fold_in", "bernoulli", "uniform", "normal"):
        monkeypatch.setattr(jax.random, name, counting(name))
    monkeypatch.setattr(dataset, "sample_batch", lambda keys, *_: _noted(used, keys) or _pairs(len(keys)))
    monkeypatch.setattr(dataset, "vary", lambda key, fixed, moving, shapes: (fixed, moving))
    config = PhantomConfig(variety=variety)
    key = jax.random.fold_in(streams(0).data, 5)
    with jax.disable_jit():
        dataset._phantom_batch.__wrapped__.__wrapped__(key, config=config, size=size, shape=(16, 16))
    twice = {key: names for key, names in used.items() if len(names) > 1}
    assert not twice
    assert len(used) > size // 2


def _noted(used, keys):
    for key in keys:
        used.setdefault(bits(key), []).append("sample")


def _pairs(count):
    image = np.random.default_rng(0).normal(size=(count, 16, 16, 1)).astype(np.float32)
    return dataset.Pair(image, image + 1, None, None, None, None)


def test_the_initial_weights_the_noise_and_the_data_have_streams_of_their_own():
    from r2n2_jax.training.state import init_state

    config = Config(training=TrainingConfig(seed=7))
    noise = jax.eval_shape(lambda: init_state(config)).key
    assert noise.shape == ()
    assert bits(streams(7).noise) != bits(dataset.PhantomSource(config)._key) == bits(streams(7).data)
