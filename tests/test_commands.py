"""The three commands: a small run from end to end, and one line with exit code 2 for every kind of bad input."""

import csv
import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import assert_one_line
from dicom_files import write_series
from test_data import breathing_frames, write_patient
from test_files import BAD, bad_images, ramp, write
from test_runs import TINY
from test_training import CONFIG, fresh_state
from test_volume_series import series_file

from r2n2_jax.commands.evaluate import _of_volumes
from r2n2_jax.config import to_dict
from r2n2_jax.data.dataset import held_out_phantoms
from r2n2_jax.evaluation.statuses import MEANING
from r2n2_jax.io.files import write_json
from r2n2_jax.pretrained.checkpoints import Checkpoints
from r2n2_jax.registration.registrar import Registrar
from r2n2_jax.training.state import init_state, save_state


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained network, saved as training saves it."""
    workdir = tmp_path_factory.mktemp("run")
    with Checkpoints(workdir, create=True) as checkpoints:
        save_state(checkpoints, fresh_state()._replace(step=jnp.int32(1)), CONFIG, 1.0)
    return workdir


@pytest.mark.slow
def test_the_package_has_weights_to_register_with_and_to_train_on(command, tmp_path):
    pair = held_out_phantoms(CONFIG.phantom, (64, 64), "test", 1)
    for name, image in (("fixed", pair.fixed), ("moving", pair.moving)):
        sitk.WriteImage(sitk.GetImageFromArray(np.asarray(image[0, ..., 0])), str(tmp_path / f"{name}.mha"))
    words = ["--fixed", tmp_path / "fixed.mha", "--moving", tmp_path / "moving.mha", "--output", tmp_path / "out"]
    code, out, err = command("register", *words)
    assert code == 0, err
    assert "compiled programs are kept in" in out
    before, after = map(float, re.search(r"MSE .*: ([\d.]+) before, ([\d.]+) after", out).groups())
    assert after < 0.25 * before

    short = ["--training.steps=1", "--training.batch=2", "--training.validation-pairs=2"]
    short.append("--optimiser.learning-rate=1e-6")  # AMSGrad's first step has the size of the rate, whatever the gradient
    code, out, err = command("train", "--workdir", tmp_path / "run", "--init", "pretrained", *short)
    assert code == 0, err
    assert "the warm-up is lowered from 50 to 0 of the 1 steps; --optimiser.warmup sets another" in out
    code, _, err = command("train", "--workdir", tmp_path / "asked", *short, "--optimiser.warmup", 1)
    assert_one_line(code, err, "warmup (1) must be below training.steps (1)")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["tre_px"]["network"]["mean"] < 0.5 * results["tre_px"]["initial"]["mean"]
    code, _, err = command("train", "--workdir", tmp_path / "other", "--init", "pretrained", "--model.hidden=7", *short)
    assert_one_line(code, err, "--init pretrained", "another architecture")
    assert not (tmp_path / "other").exists()
    code, _, err = command("train", "--workdir", tmp_path / "run", *short)
    assert_one_line(code, err, "data.init: pretrained -> None")


@pytest.mark.slow
def test_train_and_eval_on_a_folder_of_series(command, tmp_path):
    for patient in range(4):
        frames, _ = breathing_frames(6, seed=patient)
        (tmp_path / "data").mkdir(exist_ok=True)
        write_patient(tmp_path / "data" / f"p{patient}.nii.gz", frames)
    code, out, err = command("train", "--workdir", tmp_path / "run", "--data", tmp_path / "data", *TINY)
    assert code == 0, err
    assert "4 patients: 2 train, 1 validation, 1 test" in out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["tre_px"] is None
    assert results["pairs"] == 2 * 5
    code, out, err = command("eval", "--checkpoint", tmp_path / "run", "--data", tmp_path / "data")
    assert code == 0, err
    assert "1 unseen patients" in out


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_register_with_a_bad_image(name, which, command, checkpoint, tmp_path):
    bad, message = bad_images(tmp_path)[name]
    good = write(tmp_path / "good.mha", ramp(12, 12))
    images = {"fixed": good, "moving": good} | {which: bad}
    words = [word for role, path in images.items() for word in (f"--{role}", path)]
    code, _, err = command("register", "--checkpoint", checkpoint, *words, "--output", tmp_path / "out")
    assert_one_line(code, err, str(bad), message)
    assert not (tmp_path / "out").exists()


def test_register_a_series(command, checkpoint, tmp_path):
    frames = (1000 * (breathing_frames(6)[0] + 0.1)).astype(np.uint16)
    write_series(tmp_path / "series", frames[:, None])
    mask = write(tmp_path / "mask.png", (np.arange(24 * 20) % 24 > 3).reshape(20, 24).astype(np.uint8))
    (tmp_path / "points.csv").write_text("frame,point,x_mm,y_mm\n2,apex,15,20\n")
    words = ["--checkpoint", checkpoint, "--series", tmp_path / "series", "--output", tmp_path / "out", "--fixed-frame", "2"]
    words += ["--refine", "2", "--mask", mask, "--points", tmp_path / "points.csv"]
    code, out, err = command("register", *words)
    assert code == 0, err
    assert "1 slice(s), 6 frames in the order of trigger-time, 24 x 20 pixels" in out
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert [name for name in written if name.startswith("fields")] == [f"fields/slice_0/frame_{t:04d}.nii.gz" for t in range(6)]
    assert [name for name in written if name.startswith("warped")] == [f"warped/IM{t:04d}.dcm" for t in range(6)]
    assert [name for name in written if name.startswith("log")] == [
        f"log_jacobian/slice_0/frame_{t:04d}.nii.gz" for t in range(6)
    ]
    others = ["frames.csv", "parameters.json", "points.csv", "report.html", "slice_0.gif"]
    assert [name for name in written if not name.startswith(("fields", "warped", "log"))] == others
    assert (tmp_path / "out" / "points.csv").read_text().count("apex") == 6
    assert_one_line(*command("register", *words)[::2], "exists already")
    words[5] = tmp_path / "lean"
    assert command("register", *words, "--no-fields", "--uncertainty", "--strain")[0] == 0
    assert not (tmp_path / "lean" / "fields").exists()
    for name in ("uncertainty", "largest_strain", "smallest_strain"):
        assert len(list((tmp_path / "lean" / name / "slice_0").iterdir())) == 6
    rows = list(csv.DictReader((tmp_path / "lean" / "frames.csv").read_text().splitlines()))
    assert float(rows[2]["deviation_mm"]) < min(float(row["deviation_mm"]) for row in rows if row["frame"] != "2")


def test_a_series_says_which_frames_to_look_at(command, checkpoint, tmp_path, monkeypatch):
    """Every doubt there is about the last two frames, and one of slice 1 is blank."""
    frames = (1000 * (np.stack([breathing_frames(6)[0]] * 2, axis=1) + 0.1)).astype(np.uint16)
    frames[1, 1] = 7
    write_series(tmp_path / "series", frames)

    def register_chunks(self, fixed, moving, **asked):
        doubt = np.where(np.arange(len(moving)) < len(moving) - 2, 0.0, np.inf)
        for chunk in chunks(self, fixed, moving, **asked):
            yield dataclasses.replace(chunk, doubt=doubt[: len(chunk.doubt)])
            doubt = doubt[len(chunk.doubt) :]

    chunks = Registrar.register_chunks
    monkeypatch.setattr(Registrar, "register_chunks", register_chunks)
    words = ["--checkpoint", checkpoint, "--series", tmp_path / "series", "--output", tmp_path / "out", "--fixed-frame", "5"]
    code, out, err = command("register", *words, "--refine", "0", "--no-fields")
    assert code == 0, err
    line, written = out.splitlines()[-2:]
    assert line == f"status: 9 of 11 frames good; failed: slice 0 (4), slice 1 (4). {MEANING}"
    assert written.startswith("written: ")
    expected = [["good"] * 4 + ["failed", "good"], ["good", "blank", "good", "good", "failed", "good"]]
    with (tmp_path / "out" / "frames.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == [*expected[0], *expected[1]]
    described = json.loads((tmp_path / "out" / "parameters.json").read_text())
    assert [[frame["status"] for frame in one["frames"]] for one in described] == expected
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<td>1</td><td>4</td><td>0</td><td>1</td><td>none</td><td>4</td>" in page
    assert page.index(MEANING) < page.index("Frames that failed")


def test_a_pair_says_whether_to_look_at_it(command, checkpoint, tmp_path, monkeypatch):
    images = {"fixed": write(tmp_path / "a.mha", ramp(12, 14)), "moving": write(tmp_path / "b.mha", ramp(12, 14) ** 2)}
    words = [word for role, path in images.items() for word in (f"--{role}", path)]
    register = Registrar.register
    for doubt, status, said in ((0.0, "good", ""), (np.inf, "failed", f". {MEANING}")):

        def doubted(*pair, doubt=doubt, **asked):
            return dataclasses.replace(register(*pair, **asked), doubt=np.array(doubt))

        monkeypatch.setattr(Registrar, "register", doubted)
        code, out, err = command("register", "--checkpoint", checkpoint, *words, "--output", tmp_path / status, "--refine", "0")
        assert code == 0, err
        assert f"status: {status}{said}\n" in out
        assert json.loads((tmp_path / status / "parameters.json").read_text())["status"] == status


def test_what_is_painted_is_left_out_and_said(command, checkpoint, tmp_path):
    """Of a pair and of a series; not where a mask says what counts."""
    random = np.random.default_rng(0)
    frames = random.uniform(0, 900, (3, 24, 20)).astype(np.uint16)
    frames[:, 4:8, 3:8] = 4000
    (tmp_path / "series").mkdir()
    for number, frame in enumerate(frames):
        write(tmp_path / "series" / f"{number}.png", frame)
    mask = write(tmp_path / "mask.png", np.ones((24, 20), np.uint8))
    pair = ["--fixed", tmp_path / "series" / "0.png", "--moving", tmp_path / "series" / "1.png"]
    series = ["--series", tmp_path / "series", "--fixed-frame", "0"]
    for name, words, where in (("pair", pair, "38 pixels"), ("frames", series, "up to 38 pixels of each of 2 frames")):
        words = ["--checkpoint", checkpoint, *words, "--refine", "0"]
        code, out, err = command("register", *words, "--output", tmp_path / name)
        assert code == 0, err
        assert f"left out: {where}, " in out
        code, out, err = command("register", *words, "--output", tmp_path / f"{name}-masked", "--mask", mask)
        assert code == 0, err
        assert "left out" not in out
    assert "Left out: up to 38 pixels" in (tmp_path / "frames" / "report.html").read_text()


def test_register_several_series(command, tmp_path, monkeypatch):
    """Each gets a folder of its name; of two processes the second takes the second one alone."""
    frames = (1000 * (breathing_frames(3)[0] + 0.1)).astype(np.uint16)
    for name in "ab":
        write_series(tmp_path / name, frames[:, None])
    series = [tmp_path / "a", tmp_path / "b"]
    words = ["register", "--no-fields", "--refine", "0", "--output", tmp_path / "out", "--series"]
    assert_one_line(*command(*words, *series, tmp_path / "c")[::2], "c: no such file or folder")
    assert_one_line(*command(*words, *series, "--points", "p.csv")[::2], "--points is of one series")
    (tmp_path / "other").mkdir()
    (tmp_path / "a").rename(tmp_path / "other" / "b")
    assert_one_line(*command(*words, tmp_path / "b", tmp_path / "other" / "b")[::2], "same name")
    (tmp_path / "other" / "b").rename(tmp_path / "a")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index, done in ((1, ["b"]), (0, ["a", "b"])):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        code, _, err = command(*words, *(series if index else series[:1]))
        words[words.index("--output") + 1] = tmp_path / "out" / "a"
        assert code == 0, err
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == done
    assert (tmp_path / "out" / "b" / "report.html").is_file()


def test_register_a_series_that_cannot_be(command, checkpoint, tmp_path, monkeypatch):
    frames = (1000 * (breathing_frames(4)[0] + 0.1)).astype(np.uint16)
    write_series(tmp_path / "series", frames[:, None], InstanceNumber=lambda t, s: 9 - t)
    words = ["register", "--checkpoint", checkpoint, "--output", tmp_path / "out", "--series", tmp_path / "series"]
    assert_one_line(*command(*words)[::2], "disagree", "--order-by")
    words += ["--order-by", "trigger-time"]
    small = write(tmp_path / "small.png", np.ones((8, 8), np.uint8))
    assert_one_line(*command(*words, "--mask", small)[::2], "small.png", "size (8, 8)", "has (24, 20, 1)")
    empty = write(tmp_path / "empty.png", np.zeros((20, 24), np.uint8))
    assert_one_line(*command(*words, "--mask", empty)[::2], "zero everywhere")
    assert_one_line(*command(*words, "--points", tmp_path / "none.csv")[::2], "none.csv")
    assert_one_line(*command(*words, "--fixed-frame", "9")[::2], "--fixed-frame 9", "0 to 3")
    for bad in ("0", "nan", "inf"):
        assert_one_line(*command(*words, "--spacing", bad, "1")[::2], "--spacing", "positive")
    assert_one_line(*command(*words, "--steps", "0")[::2], "0 steps")
    assert_one_line(*command(*words, "--fixed", small)[::2], "name --fixed and --moving", "--series")
    assert_one_line(*command(*words[:5], "--fixed", small, "--moving", small, "--no-fields")[::2], "--fields is for --series")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("r2n2_jax.commands.motion_correction.write_json", full)
    assert_one_line(*command(*words)[::2], "No space left on device")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.png", "series", "small.png"]


def test_register_with_images_that_do_not_match(command, checkpoint, tmp_path):
    a, b = write(tmp_path / "a.mha", ramp(12, 14)), write(tmp_path / "b.mha", ramp(14, 12))
    volume = write(tmp_path / "v.mha", ramp(12, 14, 10))
    words = ["register", "--checkpoint", checkpoint, "--output", tmp_path / "out", "--fixed"]
    assert_one_line(*command(*words, a, "--moving", b)[::2], "b.mha is of size (12, 14)", "a.mha of (14, 12)", "must match")
    assert_one_line(*command(*words, volume, "--moving", volume)[::2], "v.mha is 3D", "2D", "one of its slices")
    thin = write(tmp_path / "thin.nii", ramp(5, 14, 10))
    assert_one_line(
        *command(*words, thin, "--moving", thin)[::2], "thin.nii: a volume of size (10, 14, 5)", "one of its slices"
    )
    far = write(tmp_path / "far.mha", ramp(12, 14), spacing=(0.1, 0.1))
    assert_one_line(*command(*words, a, "--moving", far)[::2], "far.mha is of size", "a.mha of")
    near = write(tmp_path / "near.mha", ramp(12, 14), spacing=(2.0, 2.0))
    assert_one_line(*command(*words, near, "--moving", far)[::2], "far.mha lies apart: it covers", "near.mha")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--refine", "2.5"), "--refine: not a whole number: '2.5'; For"),
        (("--fixed-frame", "middle"), "mean-intensity} could be instantiated from ['middle']; For"),
    ],
)
def test_a_word_that_is_no_value_is_told_without_the_whole_help(words, message, command, tmp_path):
    code, _, err = command("register", "--series", tmp_path, "--output", tmp_path / "out", *words)
    assert_one_line(code, err, message)
    assert len(err) < 250


@pytest.mark.parametrize("item", ["config/metadata", "metrics/metrics", "params/_METADATA"])
def test_a_damaged_checkpoint_is_named(item, command, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "run")
    (file,) = (tmp_path / "run" / "checkpoints").glob(f"*/{item}")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    image = write(tmp_path / "a.mha", ramp(12, 14))
    words = ["--checkpoint", tmp_path / "run", "--fixed", image, "--moving", image, "--output", tmp_path / "out"]
    assert_one_line(*command("register", *words)[::2], str(tmp_path / "run"), "damaged")
    assert not (tmp_path / "out").exists()


def test_register_never_overwrites(command, checkpoint, tmp_path):
    image = write(tmp_path / "a.mha", ramp(12, 14))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    words = ["--checkpoint", checkpoint, "--fixed", image, "--moving", image, "--output", tmp_path / "out"]
    code, _, err = command("register", *words)
    assert_one_line(code, err, "exists already")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_full_disk_leaves_nothing_behind(command, checkpoint, tmp_path, monkeypatch):
    image = write(tmp_path / "a.mha", ramp(12, 14) ** 2)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("r2n2_jax.registration.result.write_json", full)
    words = ["--checkpoint", checkpoint, "--fixed", image, "--moving", image, "--output", tmp_path / "out"]
    code, _, err = command("register", *words)
    assert_one_line(code, err, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mha"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["train"], ["--workdir"]),
        (["train", "--workdir", "W", "--model.nonsense", "3"], ["--model.nonsense"]),
        (["train", "--workdir", "W", "--training.steps", "many"], ["--training.steps"]),
        (["train", "--workdir", "W", "--training.steps", "0"], ["training.steps", "at least 1"]),
        (["train", "--workdir", "W", "--model.ndim", "4"], ["model.ndim", "2 or 3"]),
        (["train", "--workdir", "W", "--model.depth", "16"], ["model.depth", "ndim 3"]),
        (["train", "--workdir", "W", "--preset", "huge"], ["huge", "small"]),
        (["train", "--workdir", "W", "--data", "nowhere"], ["nowhere", "no such folder"]),
        (["eval", "--checkpoint", "nowhere"], ["nowhere", "no checkpoint here"]),
        (["eval", "--order-by", "trigger-time"], ["--order-by", "the phantom has no use for it"]),
        (["train", "--workdir", "w", "--order-by", "trigger-time"], ["--order-by", "the phantom has no use for it"]),
        (["eval", "--checkpoint", "nowhere", "--frames", "1"], ["--frames 1", "at least 2"]),
        (["register", "--checkpoint", "nowhere", "--speed", "9"], ["--speed"]),
    ],
)
def test_bad_words_get_one_line(words, parts, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = command(*words)
    assert_one_line(code, err, *parts)
    assert list(tmp_path.iterdir()) == [], "something was left behind"


def test_a_network_for_volumes_is_not_taken_for_one_of_slices(command, tmp_path):
    workdir, config = tmp_path / "run", dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, ndim=3))
    with Checkpoints(workdir, create=True) as checkpoints:
        save_state(checkpoints, init_state(config)._replace(step=jnp.int32(1)), config, 1.0)
    assert not _of_volumes(workdir)
    write_json(workdir / "config.json", to_dict(config))
    code, _, err = command("eval", "--checkpoint", workdir, "--slices", 2)
    assert_one_line(code, err, str(workdir), "volumes", "--slices")
    code, _, err = command("eval", "--checkpoint", workdir, "--volumes")
    assert_one_line(code, err, str(workdir), "--volumes is of the weights that come with the package")
    assert _of_volumes(workdir), "what the cores are shared by"
    code, _, err = command("train", "--workdir", tmp_path / "other", "--init", workdir)
    assert_one_line(code, err, str(workdir), "volumes", "--preset small")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_network_of_other_dimensions_than_the_series_is_refused(checkpoint, command, tmp_path):
    """A network for slices on a file whose thin slices would be registered as volumes."""
    series_file(tmp_path / "thin.nii.gz", np.random.default_rng(0).normal(size=(3, 12, 40, 40)))
    words = ["register", "--checkpoint", checkpoint, "--series", tmp_path / "thin.nii.gz", "--output", tmp_path / "out"]
    code, _, err = command(*words)
    assert_one_line(code, err, "thin.nii.gz", "volumes", str(checkpoint), "--slices")
    assert [path.name for path in tmp_path.iterdir()] == ["thin.nii.gz"]


def test_training_on_a_folder_that_cannot_be_used(command, tmp_path):
    data, words = tmp_path / "data", ["train", "--workdir", tmp_path / "run", *TINY, "--data", tmp_path / "data"]
    data.mkdir()
    assert_one_line(*command(*words)[::2], str(data), "no series here")
    frames, _ = breathing_frames()
    write_patient(data / "a.nii.gz", frames)
    assert_one_line(*command(*words)[::2], "only 1 patient")
    (data / "b.nii.gz").write_bytes(b"nothing")
    code, _, err = command(*words)
    assert code == 2
    assert "b.nii.gz: not an image" in err.strip().splitlines()[-1]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_workdir_that_holds_something_else_is_left_alone(command, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    code, _, err = command("train", "--workdir", tmp_path, *TINY)
    assert_one_line(code, err, "holds something else")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_help_is_not_an_error(command):
    with pytest.raises(SystemExit) as stopped:
        command("train", "--help")
    assert stopped.value.code == 0
