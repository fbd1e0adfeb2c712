"""Strict JAX for every test: fake devices, no silent rank promotion; and the small things that many tests need."""

from pathlib import Path

import chex
import jax
import pytest

chex.set_n_cpu_devices(4)
jax.config.update("jax_numpy_rank_promotion", "raise")

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
