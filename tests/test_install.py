"""A wheel, installed in a fresh environment, registers the sample pair outside of the checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest
from conftest import ROOT

_CODE_OF_OURS = "import r2n2_jax; print(r2n2_jax.__file__)"


def run(*words, **options):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_registers_the_sample_pair_outside_of_the_checkout(tmp_path):
    pip = ("-m", "pip", "--disable-pip-version-check")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "r2n2_jax", source / "r2n2_jax", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, *pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path / "wheels", source)
    (wheel,) = (tmp_path / "wheels").glob("r2n2_jax-*.whl")
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh" / "bin" / "python"
    run(python, *pip, "install", "--no-deps", "--no-index", wheel)
    # The libraries are those of the environment that tests; the package itself is the wheel's, which comes before them.
    places = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    with open(os.path.join(places, "libraries.pth"), "w", encoding="utf-8") as file:
        file.write(sysconfig.get_path("purelib") + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    assert run(python, "-c", _CODE_OF_OURS, cwd=elsewhere, env=surroundings).startswith(places)
    command = tmp_path / "fresh" / "bin" / "r2n2-jax"
    said = run(command, "register", "--sample", "--output", "out", cwd=elsewhere, env=surroundings)
    before, after = map(float, re.search(r"TRE.*: ([\d.]+) mm before, ([\d.]+) mm after", said).groups())
    assert after < 0.1 * before
    assert sorted(path.name for path in (elsewhere / "out").iterdir()) == [
        "displacement.nii.gz",
        "parameters.json",
        "registration.png",
        "warped.nii.gz",
    ]
