"""Phantom patients: exact truth between any two frames, curves that breathe, organs where they are; and landmark files."""

import csv
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2n2_jax.config import Config, PhantomConfig
from r2n2_jax.data.phantom.motion import displacement_between
from r2n2_jax.data.phantom.patients import FRAMES, breathing, exact_displacement, held_out_patients, masks, sample_slice
from r2n2_jax.errors import InputError
from r2n2_jax.evaluation.cases import phantom_patients
from r2n2_jax.evaluation.methods import Outcome, identity, network, run
from r2n2_jax.evaluation.metrics import concatenate, measure
from r2n2_jax.evaluation.tables import summarise, summary_rows, table_1, write_pairs
from r2n2_jax.io.landmarks import place_landmarks, read_landmarks, write_landmarks
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.warp import inside, warp
from r2n2_jax.ops.warp import sample as sample_image

CLEAN = PhantomConfig(noise=0.0, bias=0.0, blur=0.0, density=False)
SIDE = 96


@pytest.fixture(scope="module")
def one():
    return sample_slice(jax.random.key(3), CLEAN, SIDE, number=0, of=2, window=(60, 7))


def test_the_exact_field_registers_the_frames_and_carries_the_landmarks(one):
    points = coordinates((SIDE, SIDE))
    frame = int(jnp.argmax(jnp.abs(one.breaths.depth - one.breaths.depth[one.fixed])))
    field = exact_displacement(one, frame, points)
    assert float(jnp.abs(field).max()) * (SIDE - 1) / 2 > 5
    before = jnp.mean(jnp.abs(one.frames[one.fixed] - one.frames[frame]))
    left = jnp.abs(one.frames[one.fixed] - warp(one.frames[frame], field)) * inside(points + field)[..., None]
    assert float(jnp.mean(left)) < 0.12 * float(before)
    carried = one.landmarks[one.fixed] + sample_image(field, one.landmarks[one.fixed])
    assert float(jnp.abs(carried - one.landmarks[frame]).max()) * (SIDE - 1) / 2 < 0.05


def test_there_and_back_is_the_identity(one):
    points = coordinates((SIDE, SIDE))
    a, b = (jax.tree.map(lambda curve, i=i: curve[i], one.breaths) for i in (0, 5))
    moved = points + displacement_between(one.anatomy, a, b, points)
    back = moved + displacement_between(one.anatomy, b, a, moved)
    assert float(jnp.abs(back - points).max()) * (SIDE - 1) / 2 < 0.1


def test_breathing_is_periodic_asymmetric_and_of_varying_depth():
    curves = np.asarray(jax.vmap(lambda key: breathing(key, PhantomConfig()).depth)(jax.random.split(jax.random.key(0), 40)))
    assert curves.shape == (40, FRAMES)
    assert np.abs(curves).max() < 0.5
    spectrum = np.abs(np.fft.rfft(curves - curves.mean(1, keepdims=True))).mean(0)
    assert 5 <= np.argmax(spectrum) <= 8  # 140 frames of about 21 a breath
    # Longer near expiration than near inspiration.
    assert (np.median(curves, axis=1) < curves.mean(1)).mean() > 0.9
    peaks = curves.reshape(40, 7, 20).max(2)
    assert (peaks.std(1) / peaks.mean(1)).mean() > 0.05


def test_organs_are_where_they_should_be(one):
    organs = masks(one)
    assert not (organs["lungs"] & organs["liver"]).any()
    for name in ("lungs", "liver"):
        assert (organs[name] <= organs["body"]).all()
        assert 0.03 < organs[name].mean() < 0.5
    frames = np.asarray(one.frames[..., 0])
    assert frames[organs["lungs"]].mean() < 0.6 * frames[organs["liver"]].mean()
    # Inspiration: the lungs grow.
    order = np.argsort(one.breaths.depth)
    area = organs["lungs"].sum((1, 2))
    assert area[order[-1]] > area[order[0]]


@pytest.fixture(scope="module")
def case():
    """What is known of three frames of one slice, small."""
    (case,) = phantom_patients(PhantomConfig(), 33, patients=1, slices=1, frames=3)
    return case


def test_slices_of_a_patient_share_its_body_and_patients_differ():
    first, second = held_out_patients(PhantomConfig(), 33, "test", patients=2, slices=2, frames=3)
    widths = [float(s.anatomy.shape.body_width) for s in (*first, *second)]
    assert widths[0] == widths[1] != widths[2] == widths[3]
    assert float(first[0].anatomy.shape.posterior) < float(first[1].anatomy.shape.posterior)
    assert float(jnp.abs(first[0].anatomy.lung_vessels - first[1].anatomy.lung_vessels).max()) > 0.01
    other = held_out_patients(PhantomConfig(), 33, "validation", patients=1, slices=1, frames=3)[0][0]
    assert float(other.anatomy.shape.body_width) not in widths


def test_the_exact_field_is_judged_perfect_and_nothing_as_it_is():
    (case,) = phantom_patients(PhantomConfig(), 64, patients=1, slices=1, frames=4)
    exact = measure(case, case.displacement)
    assert exact.tre_mm.max() < 0.05 * case.spacing[0]
    assert exact.end_point_error_mm.max() == 0.0
    assert min(values.min() for values in exact.dice.values()) > 0.93
    nothing = measure(case, np.zeros_like(case.displacement))
    assert nothing.tre_mm.min() > exact.tre_mm.max()
    assert (nothing.mse > exact.mse).all()
    assert nothing.folded.max() == nothing.sd_log_jacobian.max() == 0.0


def test_tre_of_a_known_shift_with_anisotropic_spacing(case):
    """3 px along x at 2 mm and 4 px along y at 1.5 mm: sqrt(36 + 36) mm, 5 px."""
    shift = np.array([3.0, 4.0]) / 16.0
    points = np.array([[[0.0, 0.0], [0.2, -0.3]]] * 2)
    case = case._replace(spacing=(2.0, 1.5), fixed_landmarks=points, moving_landmarks=points + shift)
    judged = measure(case, np.zeros_like(case.displacement))
    np.testing.assert_allclose(judged.tre_mm, np.sqrt(72.0), rtol=1e-5)
    np.testing.assert_allclose(judged.tre_px, 5.0, rtol=1e-5)
    right = measure(case, np.broadcast_to(shift, case.displacement.shape).astype(np.float32))
    np.testing.assert_allclose(right.tre_mm, 0.0, atol=1e-4)


def test_a_landmark_a_little_beyond_the_border_moves_as_the_border_does(case):
    points = np.array([[[1.01, 0.0], [0.0, -1.03]]] * 2)
    case = case._replace(fixed_landmarks=points, moving_landmarks=points + 0.1)
    judged = measure(case, np.full_like(case.displacement, 0.1))
    np.testing.assert_allclose(judged.tre_px, 0.0, atol=1e-4)


def exact_network(case, told):
    """A method that answers the truth, is sure of the first pair, and keeps what it was ``told``."""

    def register_batch(fixed, moving, **asked):
        told.append(asked)
        told_of_each = {"steps": np.array([3, 5]), "status": np.array(["good", "failed"])}
        return types.SimpleNamespace(displacement=case.displacement, **told_of_each)

    return network(types.SimpleNamespace(config=Config(), register_batch=register_batch), refine=0)


def test_the_network_is_told_how_far_apart_the_pixels_are(case):
    told = []
    exact_network(case, told).register(case._replace(spacing=(1.0, 2.5)))
    assert told == [{"steps": None, "refine": 0, "spacing": (1.0, 2.5)}]


def test_statuses_are_counted_and_told_of_every_pair(case, tmp_path):
    cases = [case, case]
    outcomes = {method.name: run(method, cases, progress=False) for method in (identity(), exact_network(case, []))}
    results = summarise(cases, outcomes, Config())
    assert results["parameters"] == {"initial": 0, "network": 4 * 7}
    assert results["statuses"] == {"network": {"good": 2, "uncertain": 0, "failed": 2}}
    assert ["good, uncertain, failed", "", "2, 0, 2"] in summary_rows(results)[1]
    write_pairs(tmp_path / "pairs.csv", cases, outcomes)
    with (tmp_path / "pairs.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == [""] * 4 + ["good", "failed"] * 2


def test_pairs_and_slices_without_landmarks_do_not_hide_the_others(case):
    partly = case._replace(moving_landmarks=np.where(np.arange(2)[:, None, None] == 0, np.nan, case.moving_landmarks))
    without = case._replace(slice="Slice 2", fixed_landmarks=None, moving_landmarks=None)
    nothing = np.zeros_like(case.displacement)
    judged = [measure(one, nothing) for one in (partly, without)]
    pooled = concatenate(judged)
    np.testing.assert_array_equal(np.isfinite(pooled.tre_mm), [False, True, False, False])
    assert pooled.tre_mm[1] == measure(case, nothing).tre_mm[1]
    np.testing.assert_array_equal(np.isfinite(pooled.worst_landmark_mm), [False, True, False, False])
    table = table_1([partly, without], {"initial": Outcome(judged, [], [], 0.0, 0.0, 0, [])})
    assert list(table["Patient 1"]["initial"]) == ["Slice 1", "mean"]
    assert table_1([without], {"initial": Outcome(judged[1:], [], [], 0.0, 0.0, 0, [])}) is None


def test_landmarks_survive_their_file(tmp_path):
    points = np.random.default_rng(0).uniform(0, 300, (5, 4, 2))
    points[3, 1] = np.nan
    write_landmarks(tmp_path / "a.csv", {2: points})
    np.testing.assert_allclose(read_landmarks(tmp_path / "a.csv")[2], points, atol=1e-4)
    (tmp_path / "b.csv").write_text("frame, point, x_mm, y_mm\n0, apex, 1.5, 2\n1, apex, 2.5, 2\n")
    np.testing.assert_array_equal(read_landmarks(tmp_path / "b.csv")[0], [[[1.5, 2.0]], [[2.5, 2.0]]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column frame, point, x_mm, y_mm; found none"),
        ("frame,point,x,y\n0,a,1,2\n", "no column x_mm, y_mm; found frame, point, x, y"),
        ("frame,point,x_mm,y_mm\n", "only a header"),
        ("frame,point,x_mm,y_mm\n0,a,1,two\n", "line 2"),
        ("frame,point,x_mm,y_mm\n0,a,1\n", "line 2"),
        ("frame,point,x_mm,y_mm\n0,a,1,nan\n", "finite"),
        ("frame,point,x_mm,y_mm\n-1,a,1,2\n", "count from 0"),
        ("frame,point,x_mm,y_mm\n0,a,1,2\n0,a,1,3\n", "point a is there twice in frame 0"),
    ],
)
def test_landmark_files_that_are_wrong(text, message, tmp_path):
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_landmarks(path)
    assert str(path) in str(caught.value)
    with pytest.raises(InputError, match=r"missing.csv: no such file"):
        read_landmarks(tmp_path / "missing.csv")


def test_slices_of_different_lengths_have_their_own_landmarks(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("slice,frame,point,x_mm,y_mm\n0,0,a,1,1\n1,25,a,2,2\n")
    found = place_landmarks(path, [20, 30], [(10, 10)] * 2, [(1.0, 1.0)] * 2)
    assert [len(found[number]) for number in (0, 1)] == [20, 30]
    with pytest.raises(InputError, match=r"frame 25 of slice 1; the series has the frames 0 to 24"):
        place_landmarks(path, [20, 25], [(10, 10)] * 2, [(1.0, 1.0)] * 2)
