"""The numerical tests once more as users run them, with all of XLA's optimisations; the other tests do without most of them."""

import os
import re
import subprocess
import sys

import jax
import pytest
from conftest import OPTIMISED, QUICK_TO_COMPILE, ROOT


@pytest.mark.numerical
def test_xla_optimises_where_it_is_to():
    assert jax.config.read("jax_disable_most_optimizations") != OPTIMISED
    assert QUICK_TO_COMPILE not in os.environ["XLA_FLAGS"] or not OPTIMISED


@pytest.mark.skipif(OPTIMISED, reason="is what runs this")
def test_the_numerical_tests_hold_with_all_optimisations():
    """In a process of its own: XLA reads its flags once."""
    names = ("PYTEST_", "JAX_", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "--numprocesses=0", "-m", "numerical"],
        cwd=ROOT,
        env=environment | {"R2N2_JAX_TESTS": "optimised"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ran.returncode == 0, ran.stdout
    assert int(re.search(r"(\d+) passed", ran.stdout)[1]) > 25
