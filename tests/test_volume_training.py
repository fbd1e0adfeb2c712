"""A folder of 3D+t files: what a network for volumes is trained and judged on."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import assert_one_line
from test_runs import TINY
from test_volume_series import DEPTHS, SHAPE, SPACING, breath, frames, series_file  # noqa: F401

from r2n2_jax.commands.train import _depth_line
from r2n2_jax.config import PRESETS, Config, ModelConfig, TrainingConfig
from r2n2_jax.data.dataset import PhantomSource, SeriesSource
from r2n2_jax.data.series import Series, describe_series, find_patients, read_series
from r2n2_jax.errors import InputError
from r2n2_jax.evaluation.cases import series_cases
from r2n2_jax.registration.sequence import views

POINTS = np.array([[-0.2, 0.1, -0.3], [0.1, -0.2, 0.2], [0.3, 0.3, 0.4]])


def write_truth(folder, name):
    """Where the points are in every frame, millimetres from the first voxel; and a ball that moves with them."""
    half = 0.5 * (np.array(SHAPE[::-1]) - 1) * np.array(SPACING)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["frame", "point", "x_mm", "y_mm", "z_mm"])
        for frame, depth in enumerate(DEPTHS):
            for index, point in enumerate(POINTS + depth * breath(POINTS)):
                writer.writerow([frame, index, *((point + 1.0) * half)])


@pytest.fixture
def folder(tmp_path, frames):  # noqa: F811
    """Three patients; the first with landmarks and labels."""
    place = tmp_path / "patients"
    (place / "masks").mkdir(parents=True)
    for number, name in enumerate(("ann", "bob", "cay")):
        series_file(place / f"{name}.nii.gz", frames + 0.01 * number)
    write_truth(place, "ann")
    labels = (frames > np.quantile(frames, 0.7)).astype(np.uint8)
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(one) for one in labels]), str(place / "masks" / "ann.nii.gz"))
    return place


def test_a_recording_is_one_series_of_volumes(folder):
    series = read_series(find_patients(folder), ndim=3)
    assert [one.frames.shape for one in series] == [(len(DEPTHS), *SHAPE)] * 3
    np.testing.assert_allclose(series[0].spacing, SPACING, rtol=1e-5)
    assert [one.name for one in series] == ["volume"] * 3
    size = " x ".join(map(str, SHAPE[::-1]))
    assert f"3 series of volumes of 4 frames, 12 frames in all, {size} voxels of 1.5 x 1.25 x 4.0 mm" in describe_series(series)
    assert len(read_series(find_patients(folder))) == 3 * SHAPE[0], "the control: slices"


def test_landmarks_and_labels_in_space_go_with_their_volumes(folder):
    """Moved by the breath that the frames were made with; the labels are those of the frames."""
    case = next(one for one in series_cases(read_series(find_patients(folder), ndim=3), folder) if one.patient == "ann")
    assert case.slice == "volume"
    apart = np.array(DEPTHS)[case.frames] - DEPTHS[case.fixed_frame]
    moved = apart[:, None] * breath(POINTS)[:, 1][None]
    found = case.moving_landmarks - case.fixed_landmarks
    np.testing.assert_allclose(found[..., 1], moved, atol=1e-4)
    np.testing.assert_allclose(found[..., [0, 2]], 0.0, atol=1e-6)
    assert case.moving_masks["label 1"].shape == (3, *SHAPE)
    level = np.quantile(np.concatenate([case.moving, case.fixed[:1]]), 0.7)
    np.testing.assert_array_equal(case.moving_masks["label 1"], case.moving > level)


def test_slices_that_make_up_no_volume_are_named(tmp_path, frames):  # noqa: F811
    series_file(tmp_path / "thin.nii.gz", frames[:, :4])
    with pytest.raises(InputError, match=r"thin\.nii\.gz: no volumes.*6 slices, and there are 4; one for slices"):
        read_series(find_patients(tmp_path), ndim=3)


def test_one_slice_is_no_volume(tmp_path):
    series_file(tmp_path / "flat.nii.gz", np.random.default_rng(0).normal(size=(3, 1, 20, 20)))
    with pytest.raises(InputError, match=r"flat\.nii\.gz: no volumes.*it has one slice"):
        read_series(find_patients(tmp_path), ndim=3)


def test_recordings_of_one_patient_are_numbered_and_have_no_truth_in_common(folder):
    for name in ("one", "two"):
        (folder / "ann").mkdir(exist_ok=True)
        (folder / "ann" / f"{name}.nii.gz").write_bytes((folder / "bob.nii.gz").read_bytes())
    (folder / "ann.nii.gz").unlink()
    patients = {"ann": find_patients(folder)["ann"]}
    series = read_series(patients, ndim=3)
    assert [one.name for one in series] == ["volume", "volume 1"]
    with pytest.raises(InputError, match=r"ann\.csv: ann has 2 recordings of volumes"):
        series_cases(series, folder)
    (folder / "ann.csv").unlink()
    with pytest.raises(InputError, match=r"ann\.nii\.gz: ann has 2 recordings of volumes"):
        series_cases(series, folder)


def test_spacings_are_said_axis_by_axis_unless_all_are_equal(frames):  # noqa: F811
    for spacing, said in (((1, 1, 4), "1 x 1 x 4 mm"), ((2, 2, 2), "of 2 mm")):
        assert said in describe_series([Series("p", 0, frames, spacing, 0)])


def test_volumes_of_fewer_slices_than_a_network_is_trained_for_are_named(frames):  # noqa: F811
    series = [Series("p", 0, frames[:, :10], SPACING, 0)]
    assert "--model.depth 8 trains" in _depth_line(PRESETS["volume"].model, series)
    assert _depth_line(dataclasses.replace(PRESETS["volume"].model, depth=8), series) == ""
    assert _depth_line(PRESETS["small"].model, [series[0]._replace(frames=frames[:, 0])]) == ""


def test_volumes_of_few_slices_are_looked_at_as_such(frames):  # noqa: F811
    """``depth`` voxels along z, for the phantom, for a folder and where a pair is registered."""
    model = ModelConfig(ndim=3, resolution=16, depth=8, channels=(2, 2, 2, 2), hidden=2)
    config = Config(model=model, training=TrainingConfig(batch=2))
    series = [Series("p", 0, frames, SPACING, 1)]
    for source in (PhantomSource(config), SeriesSource(series, series, config)):
        assert next(source.batches(0)).fixed.shape == (2, 8, 16, 16, 1)
        assert source.examples(2).fixed.shape == (2, 8, 16, 16, 1)
    pair = np.random.default_rng(0).normal(size=(2, 1, 40, 40, 40)).astype(np.float32)
    assert [view.fixed.shape[1:-1] for view in views(model, *pair, refine=4)] == [(8, 16, 16), (16, 32, 32)]
    cube = dataclasses.replace(model, depth=None)
    assert [view.fixed.shape[1:-1] for view in views(cube, *pair, refine=4)] == [(16, 16, 16), (32, 32, 32)]


def test_depth_is_checked():
    assert PRESETS["volume"].model.shape == (32, 32, 32)
    assert PRESETS["small"].model.shape == (64, 64)
    with pytest.raises(ValueError, match="depth is of volumes"):
        ModelConfig(depth=16)
    with pytest.raises(ValueError, match="at least 8"):
        ModelConfig(ndim=3, depth=4)


@pytest.mark.slow
def test_a_network_is_trained_and_judged_on_volumes_of_a_folder(command, folder, tmp_path):
    run = tmp_path / "run"
    words = ["--preset", "volume", *TINY, "--training.steps=6", "--model.depth=8"]
    code, out, err = command("train", "--workdir", run, "--data", folder, *words)
    assert code == 0, err
    assert "3 patients, 3 series of volumes" in out
    splits = json.loads((run / "splits.json").read_text())
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [1, 1, 1]
    assert json.loads((run / "results.json").read_text())["mse"]["network"] > 0

    # Every patient is unseen to a run that knows none of them.
    (run / "splits.json").write_text(json.dumps({"train": [], "validation": [], "test": []}))
    code, out, err = command("eval", "--checkpoint", run, "--data", folder, "--refine=2", "--baseline.iterations=5")
    assert code == 0, err
    judged = json.loads((run / "eval-patients" / "results.json").read_text())
    assert judged["pairs"] == 9
    assert judged["tre_mm"]["initial"]["max"] > 1
    assert "label 1" in judged["dice"]["refined"]

    # Too few slices are no volumes.
    image = sitk.ReadImage(str(folder / "bob.nii.gz"))
    sitk.WriteImage(image[:, :, :3], str(folder / "thin.nii.gz"))
    code, _, err = command("eval", "--checkpoint", run, "--data", folder)
    assert_one_line(code, err, "thin.nii.gz", "no volumes", "6 slices")
