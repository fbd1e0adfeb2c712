"""Sharing the work changes who computes, not what: chunks, devices and processes give what one device gives, to rounding."""

import dataclasses
import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from test_reference import random_params

from r2n2_jax.config import Config, ModelConfig, OptimiserConfig, TrainingConfig
from r2n2_jax.data.dataset import SeriesSource
from r2n2_jax.data.series import Series
from r2n2_jax.errors import InputError
from r2n2_jax.pretrained.checkpoints import Checkpoints
from r2n2_jax.registration.registrar import Registrar
from r2n2_jax.runtime import devices
from r2n2_jax.training.loop import claim, train
from r2n2_jax.training.state import restore_state

ROOT = Path(__file__).resolve().parents[1]
MODEL = ModelConfig(resolution=16, steps=2, channels=(2, 4, 4, 4), residual_blocks=1, hidden=4, noise=0.2, remat=False)
# A rate so low that the weights stand still: AMSGrad divides by the gradient, rounding of which would grow to whole steps.
STILL = OptimiserConfig(learning_rate=1e-7, tv_weight=0.1)


CONFIG = Config(model=MODEL, optimiser=STILL, training=TrainingConfig(steps=4, batch=8, checkpoint_every=2, validation_pairs=2))


@pytest.fixture(scope="module")
def registrar():
    return Registrar(Config(model=MODEL), random_params(MODEL))


@pytest.mark.parametrize(("count", "sizes"), [(1, {1}), (2, {4}), (4, {4}), (5, {8}), (37, {16}), (500, {16})])
def test_chunks_are_of_few_sizes_and_lose_nothing(count, sizes):
    images = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    seen = set()

    def register(fixed, moving):
        seen.add(len(fixed))
        return {"sum": fixed + moving}

    found = devices.in_chunks(register, images, -2 * images, at_once=4)
    np.testing.assert_array_equal(found["sum"], -images)
    assert seen == sizes


def test_a_pair_alone_and_among_others_is_registered_alike(registrar):
    """Five pairs on four devices, each as it is by itself; its control, a neighbour's field, is another one."""
    rng = np.random.default_rng(0)
    fixed = np.cumsum(np.cumsum(rng.normal(size=(5, 40, 36)), axis=1), axis=2).astype(np.float32)
    moving = np.stack([np.roll(image, pixels, axis=0) for image, pixels in zip(fixed, (3, -3, 2, -2, 4), strict=True)])
    together = registrar.register_batch(fixed, moving, refine=1)
    alone = [registrar.register(f, m, refine=1).displacement for f, m in zip(fixed, moving, strict=True)]
    np.testing.assert_allclose(together.displacement, alone, atol=2e-3)
    assert np.abs(together.displacement[0] - alone[1]).max() > 0.02


def moments(state):
    """What the gradients were: AMSGrad's first moments, linear in them."""
    found = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state) if ".mu" in jax.tree_util.keystr(path)]
    assert found
    return np.concatenate([np.ravel(leaf) for leaf in found])


def assert_same_gradients(state, other, share=1e-4):
    assert int(state.step) == int(other.step)
    scale = np.abs(moments(state)).max()
    np.testing.assert_allclose(moments(state), moments(other), atol=share * scale)
    chex.assert_trees_all_close(jax.device_get(state.params), jax.device_get(other.params), atol=1e-5)


def series():
    """Three patients that breathe."""
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    frames = [[np.exp(-3 * ((x - 0.05 * t) ** 2 + (1 + patient) * y**2)) for t in range(6)] for patient in range(3)]
    made = np.asarray(frames, np.float32)
    return [Series(f"p{patient}", 0, made[patient], (1.0, 1.0), 0) for patient in range(3)]


def source(seed=0, kind=SeriesSource):
    return kind(
        series()[:2], series()[2:], dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, seed=seed))
    )


def trained(workdir, count=None, *, data=None):
    """On ``count`` devices, or on all of all processes."""
    chosen = None if count is None else jax.devices()[:count]
    with devices.leader_first():
        claim(workdir, CONFIG, "series")
    data = source() if data is None else data
    return train(CONFIG, workdir, data, params=random_params(MODEL), devices=chosen, progress=False)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Four steps on one device."""
    return trained(tmp_path_factory.mktemp("one") / "run", 1)


def test_four_devices_train_as_one(tmp_path, one):
    four = trained(tmp_path / "four", 4)
    assert len(jax.tree.leaves(four.params)[0].devices()) == 4
    assert_same_gradients(one, four)
    other = trained(tmp_path / "control", 4, data=source(seed=1))
    with pytest.raises(AssertionError):
        assert_same_gradients(one, other)


class StoppedError(Exception):
    """Training was stopped in the middle."""


class TwoSteps(SeriesSource):
    """Stops training after two steps."""

    def batches(self, start):
        yield from itertools.islice(super().batches(start), 2)
        raise StoppedError


def test_a_run_moves_from_four_devices_to_one(tmp_path, one):
    with pytest.raises(StoppedError):
        trained(tmp_path / "moved", 4, data=source(kind=TwoSteps))
    with Checkpoints(tmp_path / "moved") as checkpoints:
        assert checkpoints.latest == 2
    assert_same_gradients(one, trained(tmp_path / "moved", 1))


def test_as_many_devices_as_share_a_batch_evenly():
    assert [devices.training_mesh(batch).size for batch in (8, 6, 3, 1)] == [4, 3, 3, 1]


def test_a_coordinator_without_the_rest_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    with pytest.raises(InputError, match="JAX_NUM_PROCESSES"):
        devices.join_processes()


def test_the_others_do_not_wait_for_a_leader_that_failed(monkeypatch):
    met = []
    monkeypatch.setattr(devices.multihost_utils, "sync_global_devices", met.append)
    with pytest.raises(InputError), devices.leader_first():
        raise InputError
    assert len(met) == 1


def test_every_process_has_its_own_part(monkeypatch):
    batch = {"pairs": np.arange(8)}
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    np.testing.assert_array_equal(devices.own_part(batch)["pairs"], [4, 5])


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, one):
    """Each loads its own half of every batch; the first alone writes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    workdir = tmp_path / "two"
    code = "import sys, pathlib, test_devices as t; t.devices.join_processes(); t.trained(pathlib.Path(sys.argv[1]))"
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "JAX_COORDINATOR_ADDRESS": address}
    environment |= {"JAX_NUM_PROCESSES": "2", "JAX_NUM_CPU_DEVICES": "1"}
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(workdir)],
            env=environment | {"JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    for process in pair:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    with Checkpoints(workdir) as checkpoints:
        assert_same_gradients(one, restore_state(checkpoints, CONFIG))


@pytest.mark.parametrize(("share_cores", "alone"), [(True, True), (False, False)])
def test_cores_that_are_devices_solve_alone(share_cores, alone):
    code = (
        "import scipy.linalg, threadpoolctl\n"
        "threadpoolctl.threadpool_limits(2, user_api='blas')\n"
        "from r2n2_jax.commands.command_line import run\n"
        f"run(lambda: print(*(pool['num_threads'] for pool in threadpoolctl.threadpool_info())), share_cores={share_cores})"
    )
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert (set(ran.stdout.split()) == {"1"}) == alone
