"""A small run by the three commands from end to end, and one killed in the middle."""

import json
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT, assert_one_line
from test_data import breathing_frames

from r2n2_jax.config import to_dict
from r2n2_jax.pretrained.checkpoints import Checkpoints
from r2n2_jax.registration.registrar import load
from r2n2_jax.training.state import restore_state

# Used as it is wherever a run is started, so that all share its compiled programs.
TINY = [
    "--model.resolution=16", "--model.steps=2", "--model.channels", "2", "4", "4", "4", "--model.hidden=4",
    "--model.residual-blocks=1", "--training.batch=2", "--training.steps=24", "--training.checkpoint-every=3",
    "--training.validation-pairs=4", "--optimiser.warmup=2", "--model.noise=0.2",
]  # fmt: skip


@pytest.mark.slow
def test_a_network_for_volumes_is_trained_and_judged(command, tmp_path):
    """From the command to the report: the phantom in 3D, two looks of a small network, everything in space."""
    run = tmp_path / "run"
    code, out, err = command("train", "--workdir", run, "--preset", "volume", *TINY, "--training.steps=6")
    assert code == 0, err
    assert "24 pairs" in out
    written = {path.name for path in run.iterdir()}
    assert {"registration.png", "results.json", "config.json"} <= written
    sizes = ["--patients=1", "--frames=3", "--resolution=16", "--refine=2", "--baseline.iterations=10"]
    code, out, err = command("eval", "--checkpoint", run, *sizes)
    assert code == 0, err
    judged = json.loads((run / "eval-phantom" / "results.json").read_text())
    assert (judged["pairs"], list(judged["table"])) == (2, ["Patient 1"])
    assert set(judged["dice"]["refined"]) == {"lungs", "liver"}
    page = (run / "eval-phantom" / "report.html").read_text()
    assert "Three planes through the largest motion" in page
    spacing = [400 / 16, 400 / 16, 256 / 16]
    pixels, millimetres = (judged[unit]["initial"]["mean"] for unit in ("tre_px", "tre_mm"))
    assert min(spacing) * pixels < millimetres < max(spacing) * pixels


def start_training(workdir):
    command = [sys.executable, str(ROOT / "train.py"), "--workdir", str(workdir), *TINY]
    with log(workdir).open("wb") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)


def log(workdir):
    return workdir.with_name(f"{workdir.name}.log")


def saved_step(workdir):
    """The last finished checkpoint; unfinished ones have other names."""
    folder = workdir / "checkpoints"
    return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0) if folder.is_dir() else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert start_training(workdir).wait() == 0, log(workdir).read_text()
    return workdir


@pytest.mark.slow
def test_train_eval_register_from_end_to_end(command, whole, tmp_path):
    fixed, moving = tmp_path / "fixed.mha", tmp_path / "moving.png"
    assert "TRE mean, px" in log(whole).read_text()
    results = json.loads((whole / "results.json").read_text())
    for stage in ("initial", "network"):
        assert set(results["tre_px"][stage]) == {"mean", "median", "max"}
        assert results["mse"][stage] > 0
    assert results["folded_fraction"] >= 0
    assert results["seconds_per_pair"]["network"] > 0
    assert results["versions"]["jax"]
    assert results["config"]["training"]["steps"] == 24
    for name in ("registration.png", "config.json", "checkpoints", "tensorboard"):
        assert (whole / name).exists()

    # The same command again has nothing left to train; another config is refused.
    assert command("train", "--workdir", whole, *TINY)[0] == 0
    code, _, err = command("train", "--workdir", whole, *TINY, "--training.steps=25")
    assert_one_line(code, err, str(whole), "training.steps: 24 -> 25", "--workdir")

    sizes = ["--patients=2", "--slices=1", "--frames=3", "--resolution=32", "--refine=2", "--baseline.iterations=10"]
    code, out, err = command("eval", "--checkpoint", whole, *sizes)
    assert code == 0, err
    assert "Patient 2" in out
    judged = json.loads((whole / "eval-phantom" / "results.json").read_text())
    assert judged["pairs"] == 4
    for measure in ("tre_mm", "seconds_per_pair", "parameters", "mse", "folded"):
        assert set(judged[measure]) == {"initial", "network", "refined", "bspline"}
    assert {name: sum(counts.values()) for name, counts in judged["statuses"].items()} == {"network": 4, "refined": 4}
    assert judged["tre_mm"]["refined"]["mean"] <= judged["tre_mm"]["network"]["mean"]
    assert set(judged["table"]["Patient 1"]["bspline"]) == {"Slice 1", "mean"}
    page = (whole / "eval-phantom" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert page.count("data:image/gif;base64,") == 1
    assert "://" not in page, "the page must need nothing from outside"
    with (whole / "eval-phantom" / "pairs.csv").open() as file:
        assert len(file.readlines()) == 1 + 4 * 4

    frames, _ = breathing_frames()
    pixels = (200 * (frames[:2] - frames.min()) / np.ptp(frames)).astype(np.uint8)
    for path, image in zip((fixed, moving), pixels, strict=True):
        sitk.WriteImage(sitk.GetImageFromArray(image), str(path))
    code, out, err = command(
        "register", "--checkpoint", whole, "--fixed", fixed, "--moving", moving, "--output", tmp_path / "o", "--start", "none",
        "--steps", "2"
    )  # fmt: skip
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [
        "displacement.nii.gz", "parameters.json", "registration.png", "warped.nii.gz",
    ]  # fmt: skip
    parameters = json.loads((tmp_path / "o" / "parameters.json").read_text())
    assert len(parameters["transformations"]) == parameters["steps"] == 2
    numbers = sum(len(value) for value in parameters["transformations"][0].values())
    assert numbers == 7
    assert sitk.ReadImage(str(tmp_path / "o" / "displacement.nii.gz")).GetNumberOfComponentsPerPixel() == 2


@pytest.mark.slow
def test_a_killed_run_started_again_ends_with_the_same_bits(whole, tmp_path):
    killed = start_training(tmp_path / "killed")
    while saved_step(tmp_path / "killed") < 6:
        assert killed.poll() is None, log(tmp_path / "killed").read_text()
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    with Checkpoints(tmp_path / "killed") as checkpoints:
        assert 3 <= checkpoints.latest < 24, "it was not killed in the middle"
    again = start_training(tmp_path / "killed")
    assert again.wait() == 0, log(tmp_path / "killed").read_text()

    config = load(whole).config
    assert json.loads((whole / "results.json").read_text())["config"] == json.loads(json.dumps(to_dict(config)))
    states = []
    for workdir in (whole, tmp_path / "killed"):
        with Checkpoints(workdir) as checkpoints:
            assert checkpoints.latest == 24
            state = restore_state(checkpoints, config)
        states.append(state._replace(key=jax.random.key_data(state.key)))
    chex.assert_trees_all_equal(*states)
