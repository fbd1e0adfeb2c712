"""Series from a folder: found, split by patient, and served in an order that depends on the step alone."""

import dataclasses

import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk
from dicom_files import write_series

from r2n2_jax.config import Config, ModelConfig, TrainingConfig
from r2n2_jax.data.dataset import Batch, SeriesSource, _load_any, _vary, at_resolution, series_examples
from r2n2_jax.data.fixed_frame import mean_position_frame
from r2n2_jax.data.series import Series, describe_series, find_patients, read_series
from r2n2_jax.data.splits import claim_splits, seen_patients, split_patients, unseen_patients
from r2n2_jax.errors import InputError
from r2n2_jax.evaluation.cases import series_cases

CONFIG = Config(model=ModelConfig(resolution=16), training=TrainingConfig(batch=3))


def breathing_frames(count=12, shape=(20, 24), seed=0):
    """A blob that moves up and down; returns the frames and the position in each."""
    random = np.random.default_rng(seed)
    position = 10 + 4 * np.sin(np.linspace(0.3, 9.0, count))
    y, x = np.mgrid[: shape[0], : shape[1]]
    frames = np.stack([np.exp(-((y - p) ** 2 + (x - 11) ** 2) / 18) for p in position])
    return (frames + 0.01 * random.normal(size=frames.shape)).astype(np.float32), position


def write_patient(path, frames, spacing=(1.5, 2.0)):
    image = sitk.GetImageFromArray(np.stack([frames, frames[::-1]], axis=1), isVector=False)
    image.SetSpacing((*spacing, 8.0, 1.0))
    sitk.WriteImage(image, str(path))


def series(count, frames=5):
    random = np.random.default_rng(1)
    return [
        Series(f"p{i}", 0, random.normal(size=(frames, 16, 16)).astype(np.float32), (1, 1), i % frames) for i in range(count)
    ]


def test_a_folder_of_files_becomes_series(tmp_path):
    frames, _ = breathing_frames()
    write_patient(tmp_path / "b.nii.gz", frames)
    write_patient(tmp_path / "a.mha", frames)
    (tmp_path / "notes.txt").write_text("not a series")
    patients = find_patients(tmp_path)
    assert list(patients) == ["a", "b"]
    found = read_series(patients)
    assert [(s.patient, s.slice) for s in found] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    np.testing.assert_allclose(found[0].frames, frames, atol=1e-6)
    np.testing.assert_allclose(found[1].frames, frames[::-1], atol=1e-6)
    np.testing.assert_allclose(found[2].spacing, (1.5, 2.0))


def test_a_3d_file_is_one_slice_over_time(tmp_path):
    frames, _ = breathing_frames()
    sitk.WriteImage(sitk.GetImageFromArray(frames), str(tmp_path / "one.nrrd"))
    (only,) = read_series(find_patients(tmp_path))
    np.testing.assert_allclose(only.frames, frames, atol=1e-6)


def test_blank_frames_are_left_out(tmp_path, capfd):
    frames, _ = breathing_frames()
    write_patient(tmp_path / "b.nii.gz", frames)
    spoilt = frames.copy()
    spoilt[[0, 5]] = 3.0
    write_patient(tmp_path / "a.nii.gz", spoilt)
    found = read_series(find_patients(tmp_path))
    assert (
        "a.nii.gz: blank (every pixel the same), not registered: frame 0, 5 of slice 0; frame 6, 11 of slice 1"
        in capfd.readouterr().out
    )
    assert [one.blank for one in found] == [(0, 5), (6, 11), (), ()]
    assert found[0].fixed not in (0, 5)
    small = at_resolution(found, (16, 16))
    assert [len(one.frames) for one in small] == [10, 10, 12, 12]
    assert all(frame.std() > 0.1 for one in small for frame in one.frames)
    chosen = at_resolution([found[0]._replace(blank=())], (16, 16))[0].frames[found[0].fixed]
    np.testing.assert_array_equal(small[0].frames[small[0].fixed], chosen)
    cases = series_cases(found, tmp_path)
    assert list(cases[0].frames) == [t for t in range(12) if t not in (0, 5, found[0].fixed)]
    assert len(cases[2].frames) == 11


def test_stacks_of_pictures_are_patients_too(tmp_path):
    stored = (np.abs(breathing_frames()[0]) * 200).astype(np.uint8)
    pages = [PIL.Image.fromarray(frame) for frame in stored]
    for name in ("anna.tif", "bert.ome.tiff", "cleo.gif"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    for folder in ("dora", "emil"):
        (tmp_path / folder).mkdir()
    pages[0].save(tmp_path / "dora" / "left.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "dora" / "right.tif", save_all=True, append_images=pages[1:])
    for number, page in enumerate(pages):
        page.save(tmp_path / "emil" / f"{number}.tif")
    pages[0].save(tmp_path / "overview.tif")
    patients = find_patients(tmp_path)
    assert {name: len(paths) for name, paths in patients.items()} == {"anna": 1, "bert": 1, "cleo": 1, "dora": 2, "emil": 1}
    found = read_series(patients)
    assert len(found) == 6
    for one in found:
        np.testing.assert_allclose(one.frames, stored, atol=1e-3)


def test_two_pictures_of_a_patient_are_a_series(tmp_path):
    for patient, size in (("anna", 20), ("bert", 36)):
        (tmp_path / patient).mkdir()
        for visit, frame in enumerate(breathing_frames(2, (size, 24))[0]):
            PIL.Image.fromarray((200 * frame.clip(0, 1)).astype(np.uint8)).save(tmp_path / patient / f"visit_{visit}.png")
    found = read_series(find_patients(tmp_path))
    assert [one.frames.shape for one in found] == [(2, 20, 24), (2, 36, 24)]
    assert [one.frames.shape for one in at_resolution(found, (16, 16))] == [(2, 16, 16)] * 2


def test_folders_of_dicom_files_and_pictures_are_patients_too(tmp_path):
    stored = (1000 * breathing_frames()[0]).astype(np.int16)
    stored = (stored - stored.min()).astype(np.uint16)
    both = np.stack([stored, stored[::-1]], axis=1)
    write_series(tmp_path / "anna" / "exam" / "slice", both, SliceLocation=1.0)
    write_series(tmp_path / "anna" / "exam" / "another", both[:5, :1])
    write_patient(tmp_path / "bert.mha", stored.astype(np.float32))
    (tmp_path / "cleo").mkdir()
    for t, frame in enumerate(stored):
        sitk.WriteImage(sitk.GetImageFromArray(frame), str(tmp_path / "cleo" / f"{t}.png"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "masks").mkdir()
    patients = find_patients(tmp_path)
    assert {name: len(paths) for name, paths in patients.items()} == {"anna": 2, "bert": 1, "cleo": 1}
    found = read_series(patients)
    assert [(s.patient, s.slice) for s in found] == [
        ("anna", 0),
        ("anna", 1),
        ("anna", 2),
        ("bert", 0),
        ("bert", 1),
        ("cleo", 0),
    ]
    assert len(found[0].frames) == 5
    for index in (1, 3, 5):
        np.testing.assert_array_equal(found[index].frames, stored)
    assert (
        describe_series(found)
        == "3 patients, 6 slices of 5 to 12 frames, 65 frames in all, 24 x 20 pixels of 1.0 to 1.5 x 1.0 to 2.0 mm"
    )


def test_two_files_of_one_patient_are_refused(tmp_path):
    frames, _ = breathing_frames()
    for suffix in ("nii", "mha"):
        write_patient(tmp_path / f"a.{suffix}", frames)
    with pytest.raises(InputError, match="both patient a"):
        find_patients(tmp_path)


def test_the_fixed_frame_is_nearest_the_mean_position():
    frames, position = breathing_frames(30)
    chosen = mean_position_frame(frames)
    assert abs(position[chosen] - position.mean()) < 1.0
    assert np.abs(position - position.mean()).max() > 3.5


def test_splits_share_no_patient_and_lose_none():
    names = [f"p{i:02d}" for i in range(20)]
    splits = split_patients(names, seed=0)
    assert [len(splits[split]) for split in ("train", "validation", "test")] == [14, 3, 3]
    assert sorted(name for members in splits.values() for name in members) == names
    assert splits == split_patients(reversed(names), seed=0)
    assert splits != split_patients(names, seed=1)
    assert [len(part) for part in split_patients(names[:2], 0).values()] == [1, 1, 0]
    with pytest.raises(InputError, match="only 1 patient"):
        split_patients(names[:1], 0)


def test_a_runs_split_is_written_once_and_kept(tmp_path):
    names = [f"p{i}" for i in range(6)]
    first = split_patients(names, seed=0)
    for _ in range(2):
        claim_splits(tmp_path, first)
    with pytest.raises(InputError, match="p9"):
        claim_splits(tmp_path, split_patients([*names, "p9"], seed=0))
    assert list(unseen_patients(tmp_path, dict.fromkeys([*names, "new"]))) == [*first["test"], "new"]
    with pytest.raises(InputError, match="none is left"):
        unseen_patients(tmp_path, dict.fromkeys(first["train"]))


def test_patients_that_the_first_weights_knew_are_no_test(tmp_path):
    """A run from another run's weights, on more patients, over two generations."""
    names = [f"p{i:02d}" for i in range(24)]
    runs = [tmp_path / name for name in ("first", "second", "third")]
    before, known = set(), names[:20]
    for seed, run in enumerate(runs):
        run.mkdir()
        splits = split_patients(known, seed, before=before)
        claim_splits(run, splits)
        claim_splits(run, split_patients(known, seed, before=before))
        assert not before & set(splits["test"])
        learnt = before | {*splits["train"], *splits["validation"]}
        assert seen_patients(run) == learnt
        before, known = learnt, names
    assert set(split_patients(names, 1)["test"]) & seen_patients(runs[0]), "without it some would be"
    assert not seen_patients(runs[1]) & set(unseen_patients(runs[1], dict.fromkeys([*names, "new"])))


def batches(start, count):
    stream = SeriesSource(series(3), series(1), CONFIG).batches(start)
    return [tuple(np.asarray(part) for part in next(stream)) for _ in range(count)]


def test_batches_depend_on_the_step_alone():
    """What makes a resumed run exact: starting at step 5 gives what a whole run sees from there, across an epoch's end."""
    whole, resumed = batches(0, 9), batches(5, 4)
    for a, b in zip(whole[5:], resumed, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.abs(a[1] - b[1]).max() > 0 for a, b in zip(whole[:4], whole[4:8], strict=True)), "never shuffled anew"


def test_pairs_are_two_frames_of_one_series_and_never_a_frame_with_itself():
    data = series(3)
    frames = {frame.tobytes(): (i, t) for i, one in enumerate(data) for t, frame in enumerate(one.frames)}
    seen = set()
    for seed in range(200):
        index, frame = seed % 3, seed % 5
        pair = _load_any(data, (index, frame), np.random.default_rng(seed))
        fixed, moving = (frames[image[..., 0].tobytes()] for image in pair)
        assert moving == (index, frame)
        assert fixed[0] == index
        assert fixed[1] != frame
        seen.add((fixed, moving))
    assert len(seen) > 40  # of 3 x 5 x 4


def test_an_epoch_moves_every_frame_once():
    """Four batches of three are twelve of the fifteen frames; unvaried, the moving images name themselves."""
    data = [
        one._replace(frames=np.stack([np.full((16, 16), 10 * i + t, np.float32) for t in range(5)]))
        for i, one in enumerate(series(3))
    ]
    source = SeriesSource(data, series(1), CONFIG)
    source._train = data
    stream = source.varied(0)
    moved = [float(image.mean()) for _ in range(4) for image in next(stream).moving]
    assert len(set(moved)) == 12


def test_pairs_with_the_fixed_frame_alone():
    frames = np.stack([np.full((16, 16), t, np.float32) for t in range(5)])
    data = [one._replace(frames=frames) for one in series(3)]
    config = dataclasses.replace(CONFIG, training=TrainingConfig(batch=3, pairs="fixed"))
    source = SeriesSource(data, series(1), config)
    source._train = data
    stream = source.varied(0)
    fixed, moving = (np.concatenate(part) for part in zip(*(next(stream) for _ in range(4)), strict=True))
    assert set(fixed.mean(axis=(1, 2, 3))) == {0.0, 1.0, 2.0}  # the series' fixed frames
    assert all(a != b for a, b in zip(fixed.mean(axis=(1, 2, 3)), moving.mean(axis=(1, 2, 3)), strict=True))


def test_examples_are_spread_over_the_series():
    assert series_examples(series(4), 100).fixed.shape == (16, 16, 16, 1)
    assert series_examples(series(4), 6).moving.shape == (6, 16, 16, 1)


def test_frames_are_standardised_at_the_models_resolution():
    frames = breathing_frames()[0] * 100 + 7
    (one,) = at_resolution([Series("p", 0, frames, (1, 1), 0)], (16, 16))
    assert one.frames.shape == (12, 16, 16)
    assert np.abs(one.frames).max() <= 2.0
    # The empty ground, over half of every frame, counts no more than the rest: two halves, whose mean is zero.
    for frame in one.frames:
        ground = np.abs(frame - np.median(frame)) < 0.3
        assert ground.mean() > 0.5
        assert abs(frame[ground].mean() + frame[~ground].mean()) < 0.2
    assert abs(frames.mean()) > 5, "the control: they were not so before"


@pytest.mark.parametrize("d", [2, 3])
def test_both_images_of_a_pair_are_varied_alike_and_a_little(d):
    *_, y, x = axes = np.mgrid[(slice(-1, 1, 33j),) * d]
    rest = 0.0 if d == 2 else axes[0] ** 2
    blob = np.exp(-8 * ((x - 0.2) ** 2 + (y + 0.1) ** 2 + rest)).astype(np.float32)[..., None]
    places = []
    for seed in range(100):
        fixed, moving = _vary(Batch(blob, 3 * blob + 1), np.random.default_rng(seed))
        np.testing.assert_allclose(moving, 3 * fixed + 1, atol=1e-4)
        places.append([float((axis[..., None] * fixed).sum() / fixed.sum()) for axis in (x, y)])
    assert np.all(np.std(places, axis=0) > 0.02)
    assert np.all(np.abs(np.mean(places, axis=0) - [0.2, -0.1]) < 0.08)


@pytest.mark.parametrize("d", [2, 3])
def test_a_varied_pair_is_turned_about_its_middle_and_keeps_angles(d, monkeypatch):
    """What is sent to the sampler: a rotation times a zoom, in space about any axis."""
    sent = []
    monkeypatch.setattr("r2n2_jax.data.dataset.affine_transform", lambda image, *place, **_: sent.append(place) or image)
    image = np.zeros((9,) * d + (1,), np.float32)
    for seed in range(30):
        _vary(Batch(image, image), np.random.default_rng(seed))
    axes = set()
    for matrix, offset in sent[::2]:
        gram = matrix @ matrix.T
        np.testing.assert_allclose(gram, gram[0, 0] * np.eye(d), atol=1e-12)
        assert np.linalg.det(matrix) > 0
        assert np.abs(matrix @ np.full(d, 4.0) + offset - 4.0).max() <= 0.4 + 1e-9
        axes |= {(i, j) for i in range(d) for j in range(i) if abs(matrix[i, j]) > 0.02}
    assert len(axes) == d * (d - 1) // 2
