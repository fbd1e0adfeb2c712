"""Series of volumes: which slices are taken for volumes, and what the command makes of them."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import assert_one_line
from dicom_files import write_series
from test_volumes import texture

from r2n2_jax.errors import InputError
from r2n2_jax.evaluation.corrected import Corrected
from r2n2_jax.evaluation.m_mode import line_of_motion
from r2n2_jax.evaluation.metrics import Metrics
from r2n2_jax.evaluation.planes import planes
from r2n2_jax.io.geometry import Geometry, pixel_grid
from r2n2_jax.io.landmarks import place_landmarks
from r2n2_jax.io.recording import Recording, read_recording
from r2n2_jax.io.stacking import as_asked
from r2n2_jax.ops.gaussian import FreeGaussians, Gaussians, displacement, from_free
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.registration.least_squares import flat, gain, gain_beyond_noise, pose, unflat
from r2n2_jax.registration.levenberg_marquardt import _is_no_noise
from r2n2_jax.registration.posterior import posterior
from r2n2_jax.registration.rows import products

SHAPE, FRAMES = (12, 32, 28), 4
SPACING, ORIGIN = (1.5, 1.25, 4.0), (-20.0, 11.0, 35.0)
TURN = sitk.VersorTransform((0.3, 0.8, 0.5), 0.6).GetMatrix()
DEPTHS = (0.0, 0.08, 0.2, 0.12)


def breath(points):
    """Along y, most in the middle."""
    bell = np.exp(-0.5 * np.sum((points - np.array([-0.1, 0.1, 0.0])) ** 2, axis=-1) / 0.5**2)
    return bell[..., None] * np.array([0.0, 1.0, 0.0])


def undone(points, depth):
    """Where the tissue lies that a breath of this depth carries to points: ``y`` with ``y + depth breath(y) = x``."""
    found = points
    for _ in range(50):
        found = points - depth * breath(found)
    return found


@pytest.fixture(scope="module")
def frames():
    points = np.asarray(coordinates(SHAPE), np.float64)
    return np.stack([texture(undone(points, depth)) for depth in DEPTHS]).astype(np.float32)


def series_file(path, frames):
    """A 4D file, oblique and anisotropic."""
    volumes = [sitk.GetImageFromArray(volume) for volume in frames]
    for volume in volumes:
        volume.SetSpacing(SPACING)
        volume.SetOrigin(ORIGIN)
        volume.SetDirection(TURN)
    sitk.WriteImage(sitk.JoinSeries(volumes, 0.0, 0.25), str(path))
    return path


def slices(count=8, size=(20, 24), step=(0.0, 0.0, 3.0), **entries):
    """A recording of parallel slices."""
    rng = np.random.default_rng(0)
    geometries = [
        Geometry((*size[::-1], 1), (1.0, 1.0, 1.0), tuple(index * np.asarray(step)), tuple(np.eye(3).ravel()))
        for index in range(count)
    ]
    parts = [rng.normal(size=(3, *size)).astype(np.float32) for _ in range(count)]
    return Recording(parts, geometries, "the file", [None] * count, True, None, **entries)


def asked(recording, **words):
    return as_asked("here", recording, **({"slices": False, "volumes": False} | words))


def test_thin_slices_are_volumes_and_thick_ones_are_not():
    thin, said = asked(slices())
    assert thin.of_volumes
    assert thin.frames[0].shape == (3, 8, 20, 24)
    assert (thin.geometries[0].size, thin.geometries[0].spacing) == ((24, 20, 8), (1.0, 1.0, 3.0))
    assert "3 mm apart" in said
    assert "--slices" in said
    thick, said = asked(slices(step=(0, 0, 5.0)))
    assert not thick.of_volumes
    assert "5 mm apart" in said
    assert "--volumes" in said
    assert asked(slices(step=(0, 0, 5.0)), volumes=True)[0].of_volumes
    assert not asked(slices(), slices=True)[0].of_volumes
    recorded_apart, said = asked(slices(shared_times=False))
    assert not recorded_apart.of_volumes
    assert "same times" in said
    unknown, said = asked(slices(), known=False)
    assert not unknown.of_volumes
    assert "does not say how far apart" in said
    single, said = asked(slices(count=1))
    assert (single.of_volumes, said) == (False, "")
    with pytest.raises(InputError, match="one slice"):
        asked(slices(count=1), volumes=True)


@pytest.mark.parametrize(
    ("recording", "fault"),
    [
        (slices(count=5), "at least 6 slices"),
        (slices(step=(0.0, 2.0, 3.0)), "shifted"),
        (slices(step=(0.0, 0.1, 3.0)), "shifted"),
        (slices(step=(0.0, 0.0, 0.0)), "evenly"),
        (
            Recording(slices().frames, [pixel_grid((20, 24))] * 8, "the file", [None] * 8, True, None),
            "does not say where its slices lie",
        ),
    ],
)
def test_slices_that_make_up_no_volume_say_why(recording, fault):
    with pytest.raises(InputError, match=fault):
        asked(recording, volumes=True)
    kept, said = asked(recording)
    assert not kept.of_volumes
    assert fault in said
    assert "--volumes" not in said


def test_slices_at_uneven_distances_or_turned_make_up_no_volume():
    recording = slices()
    geometries = recording.geometries.copy()
    geometries[3] = geometries[3]._replace(origin=(0.0, 0.0, 10.0))
    with pytest.raises(InputError, match="evenly"):
        asked(Recording(recording.frames, geometries, "the file", [None] * 8, True, None), volumes=True)
    geometries[3] = recording.geometries[3]._replace(direction=tuple(np.diag([1.0, -1.0, -1.0]).ravel()))
    with pytest.raises(InputError, match="parallel"):
        asked(Recording(recording.frames, geometries, "the file", [None] * 8, True, None), volumes=True)
    with pytest.raises(InputError, match="one of them"):
        asked(recording, slices=True, volumes=True)


def test_dicom_slices_are_the_volume_that_simpleitk_reads(tmp_path):
    rng = np.random.default_rng(1)
    stored = rng.integers(0, 1000, (3, 7, 20, 24)).astype(np.uint16)
    write_series(tmp_path / "cine", stored)
    recording, _ = asked(read_recording(tmp_path / "cine"), volumes=True)
    np.testing.assert_array_equal(recording.frames[0], stored)
    first = [path for path in (tmp_path / "cine").iterdir() if pydicom.dcmread(path).TriggerTime == 0]
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sorted(map(str, first), key=lambda name: sitk.ReadImage(name).GetOrigin()[2]))
    known, geometry = reader.Execute(), recording.geometries[0]
    assert known.GetSize() == geometry.size
    for name in ("spacing", "origin", "direction"):
        np.testing.assert_allclose(getattr(geometry, name), getattr(known, f"Get{name.capitalize()}")(), atol=1e-6)
    (tmp_path / "out").mkdir()
    written = recording.write(tmp_path / "out", [recording.frames[0][:, :, ::-1]])
    again = asked(read_recording(written), volumes=True)[0]
    np.testing.assert_allclose(again.frames[0], stored[:, :, ::-1], atol=1.0)


def test_landmarks_of_volumes_have_a_height_and_no_slice(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("frame,point,x_mm,y_mm,z_mm\n0,a,3,5,8\n1,a,4,5,8\n")
    found = place_landmarks(path, [2], [(5, 9, 7)], [(1.0, 1.25, 4.0)])[0]
    np.testing.assert_allclose(found[0, 0], [3 / 3 - 1, 4 / 4 - 1, 2 / 2 - 1])
    path.write_text("slice,frame,point,x_mm,y_mm\n0,0,a,3,5\n")
    with pytest.raises(InputError, match=r"no column z_mm.*--slices"):
        place_landmarks(path, [2], [(5, 9, 7)], [(1.0, 1.25, 4.0)])
    path.write_text("frame,point,x_mm,y_mm,z_mm\n0,a,3,5,800\n")
    with pytest.raises(InputError, match=r"x_mm, y_mm, z_mm count from its first pixel"):
        place_landmarks(path, [2], [(5, 9, 7)], [(1.0, 1.25, 4.0)])


def test_planes_go_through_the_largest_motion_and_show_it_as_it_is():
    """Along (0, 3, 4) mm in (x, y, z): in the picture of the plane x, whose slices go up, it is (3, -4)."""
    shape, geometry = (16, 20, 24), pixel_grid((16, 20, 24))._replace(spacing=(1.0, 1.0, 2.0))
    motion = np.zeros((*shape, 3, 3), np.float32)
    vector = np.array([0.0, 3.0, 4.0])
    motion[6, 10, 9] = np.outer(vector, vector)
    frames = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    measures = Metrics(*[None] * 5, *[np.zeros(3)] * 4)
    inside = np.ones(frames.shape, bool)
    result = Corrected(0, np.arange(3), *[None] * 6, measures, [], None, None, motion, [], None, None)._replace(
        warped=frames + 1, inside=inside
    )
    recording = Recording([frames], [geometry], "the file", [None], True, None)
    shown = {plane.file: plane for plane in planes(recording, [result])}
    assert next(iter(shown)) == "plane_x"
    plane = shown["plane_x"]
    np.testing.assert_array_equal(plane.frames, frames[:, ::-1, :, 9])
    np.testing.assert_array_equal(plane.warped, plane.frames + 1)
    assert plane.through == (15 - 6, 10)
    assert plane.aspect == 2.0
    line = line_of_motion(plane.motion, np.ones((16, 20), bool), plane.geometry, plane.through)
    along = (line.points_px[-1] - line.points_px[0]) * (1.0, 2.0)
    np.testing.assert_allclose(along / np.linalg.norm(along), np.array([3, -4]) / 5 * np.sign(along[0]), atol=1e-6)
    np.testing.assert_array_equal(shown["plane_z"].frames, frames[:, 6])
    np.testing.assert_array_equal(shown["plane_y"].frames, frames[:, ::-1, 10])


def noisy(shape, deviation, *, shift=0):
    rng = np.random.default_rng(3)
    still = texture(np.asarray(coordinates(shape), np.float64)) / 40.0
    pair = [np.roll(still, shift * index, axis=1) + rng.normal(0, deviation, shape) for index in range(2)]
    return [jnp.asarray(image[..., None], jnp.float32) for image in pair]


def everywhere(shape, pixels):
    """One Gaussian so wide that all moves by so many voxels along y."""
    weight = jnp.array([[0.0, 2.0 * pixels / (shape[1] - 1), 0.0]], jnp.float32)
    return FreeGaussians(jnp.zeros((1, 3)), jnp.full((1, 3), 8.0), jnp.zeros((1, 3)), weight)


def test_what_interpolation_takes_from_noise_is_no_motion():
    """The control: without what is charged for it, half a voxel explains a quarter of what two volumes of noise differ."""
    shape, noise = (24, 24, 24), 0.1
    rng = np.random.default_rng(8)
    of_noise = [jnp.asarray(rng.normal(0, noise, (*shape, 1)), jnp.float32) for _ in range(2)]
    still, moved = (pose(*pair, None)._replace(noise=jnp.asarray(noise)) for pair in (of_noise, noisy(shape, noise, shift=1)))
    half = everywhere(shape, 0.5)
    assert gain(still, half)[1] == pytest.approx(0.25, abs=0.03)
    assert gain_beyond_noise(still, half) == pytest.approx(0.0, abs=0.03)
    assert gain_beyond_noise(moved, everywhere(shape, 1.0)) > 0.3


def test_a_motion_that_few_voxels_show_is_no_noise():
    """However many numbers it has; the control: as many numbers would explain all of so few voxels by chance."""
    shape, count = (24, 24, 24), 20
    seen = pose(*noisy(shape, 0.02, shift=1), None)._replace(noise=jnp.asarray(0.02))
    few = seen._replace(counted=seen.counted & (jnp.arange(len(seen.points)) % 40 == 0))
    one = everywhere(shape, 1.0)
    many = FreeGaussians(*(jnp.tile(part, (count, 1)) for part in one))._replace(
        weight=jnp.tile(one.weight / count, (count, 1))
    )
    assert 2 * 12 * count / int(few.counted.sum()) > 1
    assert _is_no_noise(few, many)
    assert not _is_no_noise(few, many._replace(weight=-many.weight))


@pytest.mark.numerical
@pytest.mark.parametrize(("count", "used"), [(11, 3), (11, 8), (11, 9), (11, 11), (8, 8), (3, 2)])
def test_the_products_are_those_of_the_rows(count, used):
    fixed, moving = noisy((16, 16, 16), 0.1)
    rng = np.random.default_rng(count)
    parts = (rng.uniform(-0.8, 0.8, (count, 3)), rng.uniform(-3, -1, (count, 3)), rng.normal(size=(count, 3)))
    free = FreeGaussians(*(jnp.asarray(part, jnp.float32) for part in (*parts, 0.05 * rng.normal(size=(count, 3)))))
    free = free._replace(weight=jnp.where(jnp.arange(count)[:, None] < used, free.weight, 0.0))
    problem = pose(fixed, moving, None)
    slopes = [jnp.asarray(rng.normal(size=len(problem.points)), jnp.float32) for _ in range(3)]
    values = jnp.asarray(rng.normal(size=len(problem.points)), jnp.float32)
    normal, pulls = jax.jit(products)(free, slopes, problem.points, values, jnp.asarray(used))
    rows = np.asarray(_rows_of(free, slopes, problem.points), np.float64)
    taken = np.tile(np.arange(count) < -(-used // 8) * 8, 12)
    rows = rows * taken[:, None]
    np.testing.assert_allclose(normal, rows @ rows.T, atol=1e-5 * np.abs(rows @ rows.T).max())
    np.testing.assert_allclose(
        pulls, rows @ np.asarray(values, np.float64), atol=1e-4 * np.abs(rows).max() * len(values) ** 0.5
    )


def _rows_of(free, slopes, points):
    """By differentiating the displacement."""
    jacobian = jax.jacfwd(lambda vector: displacement(from_free(unflat(vector, free)), points))(flat(free))
    return sum(slope[None] * jacobian[:, i].T for i, slope in enumerate(slopes))


def test_of_no_local_transformation_there_is_no_doubt():
    fixed, moving = noisy((16, 16, 16), 0.1)
    none = jnp.zeros((4, 3))
    gaussians = Gaussians(none, jnp.ones((4, 3)), none, none)
    np.testing.assert_array_equal(posterior(fixed, moving, gaussians, taken=jnp.zeros(4, bool), outlier=2.0), 0.0)


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_registers_a_series_of_volumes(command, frames, tmp_path):
    path = series_file(tmp_path / "breath.nii.gz", frames)
    place = np.array([[-0.1, 0.1, 0.0], [0.3, -0.2, 0.3]])
    half = (np.array(SHAPE[::-1]) - 1) / 2 * SPACING
    truth = np.stack([place + depth * breath(place) for depth in DEPTHS])
    with (tmp_path / "points.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["frame", "point", "x_mm", "y_mm", "z_mm"])
        writer.writerows([t, name, *((truth[t, index] + 1) * half)] for t in range(FRAMES) for index, name in enumerate("ab"))
    words = ["--fixed-frame", 0, "--steps", 12, "--points", tmp_path / "points.csv"]
    code, out, err = command("register", "--series", path, "--output", tmp_path / "out", *words)
    assert (code, err) == (0, "")
    assert "volumes of 28 x 32 x 12 are registered: slices lie 4 mm apart, pixels 1.5" in out
    assert "status: 4 of 4 frames good" in out
    names = ["fields", "frames.csv", "log_jacobian", "parameters.json", "plane_x.gif", "plane_y.gif", "plane_z.gif"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [*names, "points.csv", "report.html", "warped.nii.gz"]
    warped = sitk.ReadImage(str(tmp_path / "out" / "warped.nii.gz"))
    series = sitk.ReadImage(str(path))
    np.testing.assert_allclose(warped.GetDirection(), series.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(warped.GetSpacing(), series.GetSpacing(), rtol=1e-6)
    field = sitk.ReadImage(str(tmp_path / "out" / "fields" / "frame_0002.nii.gz"), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(field)
    resampled = sitk.GetArrayFromImage(sitk.Resample(series[..., 2], series[..., 0], transform, sitk.sitkLinear, np.nan))
    ours = sitk.GetArrayFromImage(warped)[2]
    seen = np.isfinite(resampled) & (ours != 0)  # ITK's images reach half a voxel beyond the outermost centres
    assert seen.mean() > 0.8
    np.testing.assert_allclose(ours[seen], resampled[seen], atol=0.05)
    moved = [row for row in table(tmp_path / "out" / "points.csv") if row["frame"] == "2"]
    found = np.array([[float(row[name]) for name in ("x_mm", "y_mm", "z_mm")] for row in moved])
    before = np.linalg.norm((truth[2] - truth[0]) * half, axis=-1)
    after = np.linalg.norm(found - (truth[2] + 1) * half, axis=-1)
    assert (after < 0.3 * before.max()).all()
    assert float(moved[0]["deviation_z_mm"]) > 0
    described = json.loads((tmp_path / "out" / "parameters.json").read_text())
    assert [sorted(one) for one in described] == [["convention", "fixed_frame", "frames"]]
    assert len(described[0]["frames"][0]["offset"]) == 3
    rows = table(tmp_path / "out" / "frames.csv")
    assert {row["slice"] for row in rows} == {"all"}
    assert float(rows[2]["tre_after_mm"]) < 0.3 * float(rows[2]["tre_before_mm"])
    assert rows[0]["steps"] == "0"


def test_a_series_of_volumes_that_cannot_be_registered_says_why(command, frames, tmp_path):
    path = series_file(tmp_path / "breath.nii.gz", frames)
    words = ["register", "--series", path, "--output", tmp_path / "no"]
    assert_one_line(*command(*words, "--volumes", "--slices")[::2], "name one of them")
    (tmp_path / "points.csv").write_text("slice,frame,point,x_mm,y_mm\n0,0,a,3,5\n")
    assert_one_line(*command(*words, "--points", tmp_path / "points.csv")[::2], "no column z_mm")
    assert_one_line(*command(*words, "--fixed-frame", 9)[::2], "frames 0 to 3")
    mask = sitk.GetImageFromArray(np.ones(SHAPE[1:], np.uint8))
    sitk.WriteImage(mask, str(tmp_path / "mask.nii.gz"))
    assert_one_line(*command(*words, "--mask", tmp_path / "mask.nii.gz")[::2], "mask.nii.gz")
    broken = frames.copy()
    broken[1, 3, 4, 5] = np.nan
    series_file(tmp_path / "broken.nii.gz", broken)
    assert_one_line(*command("register", "--series", tmp_path / "broken.nii.gz", "--output", tmp_path / "no")[::2], "broken")
    assert not (tmp_path / "no").exists()
