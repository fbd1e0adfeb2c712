"""Kept programs: the next process computes the same without tracing, and nothing that is in the folder can do harm."""

import errno
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from r2n2_jax import programs
from r2n2_jax.programs import kept

ROOT = Path(__file__).resolve().parents[1]


class Moments(NamedTuple):
    mean: jax.Array
    spread: dict[str, jax.Array]


@pytest.fixture
def folder(tmp_path):
    """An empty folder of compiled programs, for one test."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "programs"))
    yield tmp_path / "programs"
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture
def moments():
    """``new()`` is the function as a new process has it; ``new.traces`` counts how often any of them was traced."""

    def new(scale=1.0, **settings):
        @functools.partial(jax.jit, static_argnames="power")
        def moments(values, *, power=2):
            new.traces += 1
            return Moments(scale * jnp.mean(values["x"]), {"power": jnp.mean(values["x"] ** power)})

        return kept(moments, depends=scale, **settings)

    new.traces = 0
    return new


def files(folder):
    return sorted(folder.glob("moments-*-program"))


X = {"x": np.linspace(0.0, 1.0, 7, dtype=np.float32)}


def test_the_next_process_reads_what_the_first_one_traced(folder, moments):
    first, again = moments()(X, power=3), moments()(X, power=3)
    assert moments.traces == 1
    assert len(files(folder)) == 1
    assert isinstance(again, Moments)
    chex.assert_trees_all_equal(first, again)
    np.testing.assert_allclose(again.spread["power"], np.mean(X["x"].astype(float) ** 3), rtol=1e-6)


def test_without_a_folder_it_is_the_plain_function(monkeypatch, tmp_path, moments):
    monkeypatch.chdir(tmp_path)
    before = jax.config.jax_compilation_cache_dir
    try:
        for nowhere in (None, "gs://bucket/programs"):
            jax.config.update("jax_compilation_cache_dir", nowhere)
            moments()(X)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert moments.traces == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "of"),
    [
        ("another shape", lambda new: new()({"x": np.ones(8, np.float32)})),
        ("another type", lambda new: new()({"x": np.ones(7, np.int32)})),
        ("another structure", lambda new: new()({"x": X["x"], "y": X["x"]})),
        ("another option", lambda new: new()(X, power=4)),
        ("another closure", lambda new: new(scale=3.0)(X)),
    ],
)
def test_what_a_trace_depends_on_names_the_file(folder, moments, change, of):
    moments()(X)
    of(moments)
    assert moments.traces == 2, f"{change} was answered by the old program"
    assert len(files(folder)) == 2


def test_changed_code_and_another_jax_are_other_programs(folder, moments, monkeypatch):
    moments()(X)
    for _ in range(2):
        known = programs._environment()
        monkeypatch.setattr(programs, "_environment", lambda known=known: (*known, "changed"))
        moments()(X)
    assert moments.traces == 3


def test_the_code_is_in_the_name(tmp_path, monkeypatch):
    (tmp_path / "module.py").write_text("x = 1\n")
    monkeypatch.setattr(programs, "_PACKAGE", tmp_path)
    found = []
    for text in ("x = 1\n", "x = 2\n", "x = 1\n"):
        (tmp_path / "module.py").write_text(text)
        programs._environment.cache_clear()
        found.append(programs._environment())
    programs._environment.cache_clear()
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("harm", [lambda whole: whole[:-1], lambda whole: b"", lambda whole: whole[:40] + b"?" + whole[41:]])
def test_a_damaged_file_is_made_anew(folder, moments, harm):
    first = moments()(X)
    (path,) = files(folder)
    whole = path.read_bytes()
    path.write_bytes(harm(whole))
    chex.assert_trees_all_equal(moments()(X), first)
    assert moments.traces == 2
    chex.assert_trees_all_equal(moments()(X), first)
    assert moments.traces == 2, "the file was not made anew"


def test_a_full_disk_stops_nothing_and_leaves_nothing(folder, moments, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder.mkdir()
    monkeypatch.setattr(programs.os, "replace", full)
    assert float(moments()(X).mean) == pytest.approx(0.5)
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_made_stops_nothing(folder, moments):
    folder.write_text("a file in the way")
    assert float(moments()(X).mean) == pytest.approx(0.5)


def test_donated_arrays_are_given_away_by_read_programs_too(folder):
    def new():
        return kept(jax.jit(lambda state, x: jax.tree.map(lambda one: one + x, state), donate_argnums=0), donate=1)

    for _ in range(2):
        state, x = {"a": jnp.zeros(3), "b": jnp.ones(3)}, jnp.ones(3)
        found = new()(state, x)
        np.testing.assert_array_equal(found["b"], 2.0)
        assert all(leaf.is_deleted() for leaf in state.values())
        assert not x.is_deleted()


def test_arrays_spread_over_devices_stay_spread(folder):
    mesh = jax.make_mesh((4,), ("pairs",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("pairs"))
    traces = []

    def new():
        @jax.jit
        def own(x):
            traces.append(x.shape)
            part = PartitionSpec("pairs")
            return jax.shard_map(lambda x: x + jax.lax.axis_index("pairs"), mesh=mesh, in_specs=part, out_specs=part)(x)

        return kept(own)

    for _ in range(2):
        found = new()(jax.device_put(jnp.zeros(8), spread))
        np.testing.assert_array_equal(found, np.repeat(np.arange(4), 2))
        assert found.sharding.is_equivalent_to(spread, 1)
    assert len(traces) == 1
    assert len(list(folder.glob("own-*"))) == 1


_COMMAND = """
import sys, chex, jax, numpy as np
chex.set_n_cpu_devices(2)
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
from r2n2_jax import inference
traced, propose = [], inference.propose
inference.propose = lambda *arguments, **options: traced.append(1) or propose(*arguments, **options)
import r2n2_jax
fixed, moving = np.random.default_rng(0).normal(size=(2, 2, 40, 36)).cumsum(2).cumsum(3).astype(np.float32)
found = r2n2_jax.load().register_batch(fixed, moving, steps=2, refine=2)
print(len(traced), found.displacement.tobytes().hex())
"""


def test_a_second_command_registers_without_tracing_to_the_same_bits(tmp_path):
    found = []
    for _ in range(2):
        words = [sys.executable, "-c", _COMMAND, str(tmp_path)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        found.append(done.stdout.split())
    (traced, first), (again, second) = found
    assert int(traced) > 0
    assert int(again) == 0
    assert first == second
