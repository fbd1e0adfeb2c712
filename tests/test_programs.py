"""Kept programs: the next process computes the same without tracing, and nothing that is in the folder can do harm."""

import dataclasses
import errno
import functools
import hashlib
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from jax.sharding import NamedSharding, PartitionSpec

from r2n2_jax.commands import command_line
from r2n2_jax.config import Config, ModelConfig, OptimiserConfig, TrainingConfig
from r2n2_jax.data.dataset import PhantomSource
from r2n2_jax.runtime import folders, programs
from r2n2_jax.runtime.folders import make_own
from r2n2_jax.runtime.programs import kept
from r2n2_jax.training import step
from r2n2_jax.training.loop import train
from r2n2_jax.training.losses import sequence_loss

ROOT = Path(__file__).resolve().parents[1]

of_users = pytest.mark.skipif(not hasattr(os, "getuid"), reason="a system without users' numbers")


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

        return kept(moments, depends=scale, returns=[Moments], **settings)

    new.traces = 0
    return new


def files(folder):
    return sorted(folder.glob("moments-*-export"))


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


def test_other_libraries_and_settings_are_other_programs(folder, moments, monkeypatch):
    moments()(X)
    monkeypatch.setattr(programs.importlib.metadata, "version", lambda name: f"{name} of tomorrow")
    programs._environment.cache_clear()
    moments()(X)
    programs._environment.cache_clear()
    assert moments.traces == 2
    one = moments()
    one(X)
    with jax.default_matmul_precision("highest"):
        one(X)
    with jax.threefry_partitionable(not jax.config.jax_threefry_partitionable):
        one(X)
    assert moments.traces == 4
    assert len(files(folder)) == 4


def test_the_code_is_in_the_name(folder, moments, tmp_path, monkeypatch):
    found = []
    for text in ("x = 1\n", "x = 2\n", "x = 1\n"):
        (tmp_path / "module.py").write_text(text)
        found.append(programs._code(tmp_path))
    assert found[0] == found[2] != found[1]
    for code in found:
        monkeypatch.setattr(programs, "_CODE", code)
        moments()(X)
    assert moments.traces == 2


def test_functions_of_one_name_are_told_apart(folder):
    def new(add):
        if add:

            def one(x):
                return x + add
        else:

            def one(x):
                return -x

            one.__qualname__ = "another"
        return kept(jax.jit(one))

    assert float(new(1.0)(jnp.ones(()))) == 2.0
    assert float(new(0)(jnp.ones(()))) == -1.0
    assert len(list(folder.glob("one-*"))) == 2


def test_several_processes_and_debugging_keep_nothing(folder, moments, monkeypatch):
    with monkeypatch.context() as several:
        several.setattr(programs.jax, "process_count", lambda: 2)
        moments()(X)
    with jax.debug_nans(True):
        moments()(X)
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        moments()(X)
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert moments.traces == 3
    assert not files(folder)


def test_what_cannot_be_written_down_runs_all_the_same(folder, capfd):
    @jax.jit
    def loud(x):
        jax.debug.print("x = {}", x)
        return 2.0 * x

    both = kept(loud)
    assert float(both(jnp.ones(()))) == float(both(jnp.ones(()))) == 2.0
    jax.effects_barrier()
    assert capfd.readouterr().out == "x = 1.0\n" * 2
    assert not list(folder.glob("loud-*"))


def test_it_can_be_transformed_like_the_function(folder, moments):
    for _ in range(2):
        mean = moments()
        mean(X)
        slope = jax.grad(lambda x, mean=mean: mean({"x": x}).mean)(X["x"])
        np.testing.assert_allclose(slope, 1 / 7, rtol=1e-6)
        means = jax.vmap(lambda x, mean=mean: mean({"x": x}).mean)(np.stack([X["x"], 2 * X["x"]]))
        np.testing.assert_allclose(means, [0.5, 1.0], rtol=1e-6)


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


class Hostile:
    """Pickled, it is a command: whoever unpickles it makes a folder."""

    def __init__(self, mark):
        self._mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self._mark),)


@pytest.mark.parametrize("suffix", ["-export", "-program"])
def test_nothing_that_lies_in_the_folder_is_unpickled(folder, moments, tmp_path, suffix):
    first = moments()(X)
    (path,) = files(folder)
    hostile = pickle.dumps((Hostile(tmp_path / "mark"), None))
    path.unlink()
    planted = path.with_name(path.name.removesuffix("-export") + suffix)
    planted.write_bytes(hashlib.sha256(hostile).digest() + hostile)
    chex.assert_trees_all_equal(moments()(X), first)
    assert not (tmp_path / "mark").exists()
    assert files(folder) == list(folder.glob("moments-*")) == [path]
    assert hostile not in path.read_bytes()
    chex.assert_trees_all_equal(moments()(X), first)
    assert moments.traces == 2, "the file was not made anew"
    pickle.loads(hostile)
    assert (tmp_path / "mark").exists(), "the control: it does harm where it is unpickled"


@of_users
@pytest.mark.parametrize(
    ("mode", "trusted"), [(0o700, True), (0o755, True), (0o775, False), (0o757, False), (0o1777, False)], ids="{:o}".format
)
def test_a_folder_that_others_can_write_to_is_neither_read_nor_written(folder, moments, mode, trusted):
    moments()(X)
    folder.chmod(mode)
    moments()(X)
    assert moments.traces == (1 if trusted else 2)
    moments()(X, power=5)
    assert len(files(folder)) == (2 if trusted else 1)


@of_users
def test_another_users_folder_is_neither_read_nor_written(folder, moments, monkeypatch):
    moments()(X)
    user = os.getuid()
    monkeypatch.setattr(folders.os, "getuid", lambda: user + 1)
    assert float(moments()(X).mean) == pytest.approx(0.5)
    moments()(X, power=5)
    assert moments.traces == 3
    assert len(files(folder)) == 1
    monkeypatch.delattr(folders.os, "getuid")
    moments()(X)
    assert moments.traces == 3, "a system without users' numbers is trusted"


@of_users
def test_another_users_link_to_ones_own_folder_is_not_trusted(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("own")
    assert make_own(tmp_path / "link")
    owners = {"own": os.getuid(), "link": os.getuid() + 1}
    monkeypatch.setattr(folders.Path, "lstat", lambda path: SimpleNamespace(st_uid=owners[path.name]))
    assert make_own(tmp_path / "own")
    assert not make_own(tmp_path / "link")


def test_the_folder_is_made_for_its_user_alone(folder, moments):
    before = os.umask(0)
    try:
        moments()(X)
    finally:
        os.umask(before)
    assert len(files(folder)) == 1
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A user's empty home and folder of temporary files, and JAX without a folder of compiled programs; JAX is restored."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(command_line.Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(command_line.platform, "node", lambda: "host")
    monkeypatch.setattr(command_line.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def homeless():
    raise RuntimeError("Could not determine home directory.")


def test_commands_keep_programs_in_the_users_cache(commands, monkeypatch):
    assert command_line._keep_compiled_programs() == f"kept in {commands}/home/.cache/r2n2_jax/host"
    assert jax.config.jax_compilation_cache_dir == f"{commands}/home/.cache/r2n2_jax/host"
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(commands / "elsewhere"))
    assert command_line._keep_compiled_programs() == f"kept in {commands}/elsewhere/r2n2_jax/host"


def temporary(commands):
    return commands / "temporary" / f"r2n2_jax-{os.getuid()}"


def no_home(commands, monkeypatch):
    monkeypatch.setattr(command_line.Path, "home", homeless)


def no_writable_home(commands, monkeypatch):
    (commands / "home").write_text("a file in the way")


def open_home(commands, monkeypatch):
    (commands / "home" / ".cache" / "r2n2_jax" / "host").mkdir(parents=True)
    (commands / "home" / ".cache" / "r2n2_jax" / "host").chmod(0o777)


@of_users
@pytest.mark.parametrize("lack", [no_home, no_writable_home, open_home])
def test_without_an_own_folder_at_home_commands_keep_programs_in_a_private_one(commands, monkeypatch, lack):
    lack(commands, monkeypatch)
    before = os.umask(0)
    try:
        assert command_line._keep_compiled_programs() == f"kept in {temporary(commands)}"
    finally:
        os.umask(before)
    assert jax.config.jax_compilation_cache_dir == str(temporary(commands))
    assert temporary(commands).stat().st_mode & 0o777 == 0o700


def open_to_others(commands, monkeypatch):
    temporary(commands).mkdir(parents=True)
    temporary(commands).chmod(0o777)


def another_users(commands, monkeypatch):
    user = os.getuid()
    monkeypatch.setattr(folders.os, "getuid", lambda: user + 1)
    temporary(commands).mkdir(parents=True)


def missing(commands, monkeypatch):
    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(command_line.tempfile, "gettempdir", none)


@of_users
@pytest.mark.parametrize("harm", [open_to_others, another_users, missing])
def test_without_any_own_folder_commands_keep_nothing_and_say_so(commands, monkeypatch, capsys, harm):
    no_home(commands, monkeypatch)
    harm(commands, monkeypatch)
    command_line.announce_device()
    assert jax.config.jax_compilation_cache_dir is None
    assert "compiled programs are not kept: no folder is yours alone to write to\n" in capsys.readouterr().out


@of_users
def test_a_named_folder_is_taken_and_what_is_kept_there_is_said(commands):
    named = commands / "named"
    jax.config.update("jax_compilation_cache_dir", str(named))
    assert command_line._keep_compiled_programs() == f"kept in {named}"
    assert named.stat().st_mode & 0o777 == 0o700
    named.chmod(0o777)
    assert command_line._keep_compiled_programs().startswith(f"kept in {named}, but JAX's alone")
    for name, said in {"gs://bucket/programs": "kept in gs://bucket/programs", "": "not kept"}.items():
        jax.config.update("jax_compilation_cache_dir", name)
        assert command_line._keep_compiled_programs() == said
        assert jax.config.jax_compilation_cache_dir == name


def test_what_was_used_last_stays_and_other_peoples_files_too(folder, moments, monkeypatch):
    monkeypatch.setattr(programs, "_MOST_KEPT", 3)
    folder.mkdir()
    name = "moments-" + "0" * 64
    others = ["notes", "my-program", "my-export", f"jit_{name}-cache", f"{name}-program.txt", f"{name}-exported"]
    stale = [f"{name}-program", f"{name}-program.{'0' * 32}"]
    for file in (*others, *stale):
        (folder / file).write_text("")
        os.utime(folder / file, (0, 0))
    (folder / f"{'1' * 64}-{'1' * 64}-program").mkdir()  # nobody's file, and in the way of the others if it stopped them

    def write(power):
        before = files(folder)
        moments()(X, power=power)
        (path,) = set(files(folder)) - set(before)
        os.utime(path, (power, power))
        return path

    first, second, third = map(write, (2, 3, 4))
    assert not any((folder / file).exists() for file in stale)
    moments()(X, power=2)
    assert moments.traces == 3
    fourth = write(5)
    assert files(folder) == sorted([first, third, fourth])
    assert not second.exists()
    killed = folder / f"{first.name}.{'0' * 32}"
    killed.write_text("half of it")
    os.utime(killed, (0, 0))
    write(6)
    assert not killed.exists()
    assert all((folder / file).exists() for file in others)


@pytest.mark.parametrize("failing", ["iterdir", "unlink"])
def test_pruning_that_fails_stops_nothing(folder, moments, monkeypatch, failing):
    folder.mkdir()
    stale = folder / f"moments-{'0' * 64}-program"
    stale.write_text("")
    real = getattr(Path, failing)
    refused = []

    def refuse(path, **options):
        if path not in (folder, stale):
            return real(path, **options)
        refused.append(path)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as locked:
        locked.setattr(Path, failing, refuse)
        assert float(moments()(X).mean) == pytest.approx(0.5)
    assert refused
    assert stale.exists()
    moments()(X)
    assert moments.traces == 1


class Nothing(NamedTuple):
    pass


def test_trees_of_every_kind_come_back_as_they_were(folder):
    traces = []

    def new():
        def turned(tree, key):
            traces.append(tree)
            return tree, {"key": jax.random.split(key), "noise": jax.random.normal(key)}

        return kept(jax.jit(turned))

    moments = Moments(jnp.ones(2), {"power": jnp.zeros(())})
    tree = {"list": [jnp.arange(3), None], "none": None, "tuple": (), "empty": Nothing(), "moments": moments}
    tree |= {"frozen": FrozenDict({"b": {"c": jnp.ones(1)}, "a": jnp.zeros(1)}), "ordered": OrderedDict(b=1.0, a=2.0)}
    tree["optimiser"] = optax.amsgrad(1e-3).init({"w": jnp.ones(2)})
    first, again = new()(tree, jax.random.key(3)), new()(tree, jax.random.key(3))
    assert len(traces) == 1
    plain = (tree, {"key": jax.random.split(jax.random.key(3)), "noise": jax.random.normal(jax.random.key(3))})
    for found in (first, again):
        assert jax.tree.structure(found) == jax.tree.structure(plain)
        assert (found[1]["key"] == plain[1]["key"]).all()
        chex.assert_trees_all_equal((found[0], found[1]["noise"]), (plain[0], plain[1]["noise"]))


def test_what_jax_cannot_name_is_not_kept_and_runs_all_the_same(folder):
    numbered = kept(jax.jit(lambda tree: {1: 2.0 * tree[1]}))
    assert float(numbered({1: jnp.ones(())})[1]) == 2.0

    class Unannounced(NamedTuple):
        value: jax.Array

    unnamed = kept(jax.jit(lambda x: Unannounced(x)))
    assert isinstance(unnamed(jnp.ones(())), Unannounced)
    assert not list(folder.glob("*-export"))


def test_types_of_one_name_are_not_taken_for_each_other(folder):
    def new():
        class Twin(NamedTuple):
            value: jax.Array

        def double(x):
            return Twin(2.0 * x)

        return Twin, kept(jax.jit(double), returns=[Twin])

    for _ in range(2):
        twin, double = new()
        assert type(double(jnp.ones(()))) is twin


def test_a_functions_own_error_is_seen(folder):
    @jax.jit
    def wrong(x):
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        kept(wrong)(jnp.ones(()))


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
    whole = NamedSharding(mesh, PartitionSpec())
    np.testing.assert_array_equal(new()(jax.device_put(jnp.zeros(8), whole)), np.repeat(np.arange(4), 2))
    assert len(traces) == 2, "arrays that lie elsewhere were given the old program"


def test_training_again_traces_nothing_and_learns_the_same(folder, tmp_path, monkeypatch):
    model = ModelConfig(resolution=16, steps=2, channels=(2, 4, 4, 4), residual_blocks=1, hidden=4, remat=False)
    config = Config(model=model, training=TrainingConfig(steps=2, batch=4, checkpoint_every=2, validation_pairs=2))
    traced = []

    def counted(*arguments, **options):
        traced.append(options)
        return sequence_loss(*arguments, **options)

    monkeypatch.setattr(step, "sequence_loss", counted)
    first = train(config, tmp_path / "first", PhantomSource(config), progress=False)
    assert len(traced) == 1
    again = train(config, tmp_path / "again", PhantomSource(config), progress=False)
    assert len(traced) == 1
    chex.assert_trees_all_equal(first.params, again.params)
    other = dataclasses.replace(config, optimiser=OptimiserConfig(tv_weight=0.2))
    train(other, tmp_path / "other", PhantomSource(other), progress=False)
    assert len(traced) == 2, "the step of another config was answered by the old program"


_COMMAND = """
import sys, chex, jax, numpy as np
chex.set_n_cpu_devices(2)
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
from r2n2_jax.registration import sequence
traced, propose = [], sequence.propose
sequence.propose = lambda *arguments, **options: traced.append(1) or propose(*arguments, **options)
from r2n2_jax.data import dataset
sample_batch = dataset.sample_batch
dataset.sample_batch = lambda *arguments: traced.append(1) or sample_batch(*arguments)
import r2n2_jax
fixed, moving = np.random.default_rng(0).normal(size=(2, 2, 40, 36)).cumsum(2).cumsum(3).astype(np.float32)
found = r2n2_jax.load().register_batch(fixed, moving, steps=2, refine=2)
config = r2n2_jax.config.Config(model=r2n2_jax.config.ModelConfig(resolution=16))
pair = dataset.held_out_phantoms(config.phantom, (16, 16), "test", 1)
batch = next(dataset.PhantomSource(config).batches(0))
print(len(traced), *(array.tobytes().hex() for array in map(np.asarray, (found.displacement, *pair, *batch))))
"""


def test_a_second_command_registers_without_tracing_to_the_same_bits(tmp_path):
    found = []
    for _ in range(2):
        words = [sys.executable, "-c", _COMMAND, str(tmp_path)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        found.append(done.stdout.split())
    (traced, *first), (again, *second) = found
    assert int(traced) > 2
    assert len(first) == 9
    assert int(again) == 0
    assert first == second
