"""Strict JAX for every test: fake devices, no silent rank promotion; and the small things that many tests need."""

import atexit
import importlib
import os
import sys
import tempfile
from pathlib import Path

import chex
import jax
import pytest

from r2n2_jax.commands.command_line import run

# One process of the tests runs some of them as users run the package.
OPTIMISED = os.environ.get("R2N2_JAX_TESTS") == "optimised"
QUICK_TO_COMPILE = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

chex.set_n_cpu_devices(4)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Many tests, and the commands that they start, compile the same programs: all workers share them for the length of the session.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _programs = tempfile.TemporaryDirectory(prefix="r2n2_jax-tests-")
    atexit.register(_programs.cleanup)
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": _programs.name, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    if not OPTIMISED:
        # What the programs compute is tested and not how fast: most of the time would go into making them fast.
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        if jax.__version_info__ < (0, 11):  # XLA ends the process at a flag that it does not know: no promise for later ones
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_TO_COMPILE}"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_disable_most_optimizations", not OPTIMISED)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture
def key():
    return jax.random.key(20190605)


@pytest.fixture
def shared_data():
    """Real images kept outside the project."""
    if not SHARED.is_dir():
        pytest.skip(f"real images are not at {SHARED}")
    return SHARED


def call(monkeypatch, capfd, script, *words):
    """Exit code, standard output and standard error of a command, run in this process."""
    module = importlib.import_module(f"r2n2_jax.commands.{'evaluate' if script == 'eval' else script}")
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, words)])
    capfd.readouterr()
    code = run(module.main)
    output = capfd.readouterr()
    return code, output.out, output.err


@pytest.fixture
def command(monkeypatch, capfd):
    return lambda script, *words: call(monkeypatch, capfd, script, *words)


def assert_one_line(code, err, *parts):
    assert code == 2
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


def pytest_collection_modifyitems(items):
    """The long ones first, so that no worker is left with one when the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
