"""What the page of a registered series shows: the line over time, every frame in the viewer, statuses first, below 10 MB."""

import base64
import csv
import io
import json
import re

import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure

from r2n2_jax.evaluation.corrected import Corrected, among_all
from r2n2_jax.evaluation.figures import draw_ellipses
from r2n2_jax.evaluation.m_mode import along, line_of_motion, summed_motion
from r2n2_jax.evaluation.metrics import Metrics
from r2n2_jax.evaluation.series_report import write_series_report
from r2n2_jax.evaluation.stages import draw_stages
from r2n2_jax.evaluation.viewer import Scale, Viewed, fitting_scale
from r2n2_jax.io.geometry import pixel_grid
from r2n2_jax.io.recording import Recording
from r2n2_jax.ops.gaussian import Gaussians

SHAPE, FRAMES = (60, 80), 12
GEOMETRY = pixel_grid(SHAPE)._replace(spacing=(1.0, 2.0))
HALF = np.array([(SHAPE[1] - 1) / 2, (SHAPE[0] - 1) / 2])


def fields(*bumps):
    """``[T, H, W, 2]``: at each ``(x, y)`` a place that swings by so many millimetres along ``(x, y)``."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    swing = np.sin(2 * np.pi * np.arange(FRAMES) / FRAMES)[:, None, None, None]
    near = [(np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 18), np.array(by)) for at, by in bumps]
    millimetres = swing * sum(there[..., None] * by for there, by in near)
    return (millimetres / GEOMETRY.spacing / HALF).astype(np.float32)


def everywhere():
    return np.ones(SHAPE, bool)


def test_the_line_runs_through_the_largest_motion_and_along_it():
    found = fields(((50, 20), (6.0, 3.0)), ((20, 40), (0.0, 4.0)))
    motion = summed_motion(found[:5], GEOMETRY) + summed_motion(found[5:], GEOMETRY)
    line = line_of_motion(motion, everywhere(), GEOMETRY)
    away = (line.points_px - [50, 20]) * GEOMETRY.spacing[:2]
    direction = np.array([6.0, 3.0]) / np.hypot(6.0, 3.0)
    np.testing.assert_allclose(away @ [-direction[1], direction[0]], 0.0, atol=1e-4)  # all of it lies on the line
    assert (away @ direction).min() < -10 < 10 < (away @ direction).max()
    assert line.length_mm == pytest.approx(np.linalg.norm(away[-1] - away[0]), rel=1e-6)
    assert (line.points_px >= -1e-6).all()
    assert (line.points_px <= np.array(SHAPE[::-1]) - 1 + 1e-6).all()


def test_the_line_is_where_the_frames_show_something_and_off_the_border():
    motion = summed_motion(fields(((50, 20), (6.0, 3.0)), ((20, 40), (0.0, 4.0)), ((0, 59), (9.0, 0.0))), GEOMETRY)
    seen = everywhere()
    seen[:, 40:] = False
    line = line_of_motion(motion, seen, GEOMETRY)
    np.testing.assert_allclose(line.points_px[:, 0], 20.0, atol=0.1)
    still = line_of_motion(np.zeros_like(motion), everywhere(), GEOMETRY)
    assert still.length_mm > 0


def test_m_mode_shows_waves_before_and_stripes_after():
    rng = np.random.default_rng(0)
    shifts = np.round(6 * np.sin(2 * np.pi * np.arange(FRAMES) / FRAMES)).astype(int)
    still = rng.normal(size=SHAPE).astype(np.float32)
    moving = np.stack([np.roll(still, shift, axis=0) for shift in shifts])
    registered = np.stack([np.roll(frame, -shift, axis=0) for frame, shift in zip(moving, shifts, strict=True)])
    line = line_of_motion(summed_motion(fields(((30, 30), (0.0, 6.0))), GEOMETRY), everywhere(), GEOMETRY)
    rows = line.points_px[:, 1]
    whole = np.isclose(rows, np.round(rows))
    assert whole.sum() > 15
    expected = moving[:, np.round(rows[whole]).astype(int), 30].T
    np.testing.assert_allclose(along(moving, line)[whole], expected, atol=1e-4)
    assert along(moving, line).std(axis=1).mean() > 0.3
    np.testing.assert_allclose(along(registered, line).std(axis=1), 0.0, atol=1e-6)


def corrected(warped, fixed, statuses=None):
    count, ramp = len(warped), np.linspace(0.1, 0.2, len(warped))
    measures = Metrics(None, None, None, None, None, 2 * ramp, ramp, 0 * ramp, ramp)
    motion = np.zeros((*warped.shape[1:], 2, 2))
    inside = np.ones(warped.shape, bool)
    after = measures._replace(mse=ramp)
    kept, statuses = np.arange(count), statuses or ["good"] * count
    described = {"steps": 3, "stopped": "budget", "stages": [{"steps": 3, "doubt": 0.02, "deviation_mm": 0.5}]}
    measured = measures, after, [described] * count, None, None, motion, statuses, ramp, np.zeros(count, int)
    return Corrected(fixed, kept, ramp, warped, inside, ramp, ramp, *measured)


def page(folder, frames, results):
    geometries = [pixel_grid(one.shape[1:]) for one in frames]
    write_series_report(folder, Recording(frames, geometries, "the file", [None] * len(frames), True, None), results)
    text = (folder / "report.html").read_text()
    (data,) = re.findall(r'id="viewer-data">(.*?)</script>', text, re.DOTALL)
    return text, json.loads(data)


def decoded(picture):
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(picture))), float)


def gradients(count, shape, start):
    """Frames that differ: each one's edge lies farther to the right."""
    columns = np.arange(shape[1]) - start
    return np.stack([np.broadcast_to(100.0 * (columns > 3 * t), shape) for t in range(count)]).astype(np.float32)


def test_the_viewer_holds_every_frame_in_its_place(tmp_path):
    frames = [gradients(6, (40, 48), 4), gradients(6, (40, 48), 8)]
    warped = [np.flip(one, axis=1).copy() for one in frames]
    text, data = page(tmp_path, frames, [corrected(one, fixed) for one, fixed in zip(warped, (2, 4), strict=True)])
    assert [one["fixedNumber"] for one in data] == [2, 4]
    for index, one in enumerate(data):
        assert one["numbers"] == list(range(6))
        for name, truth in (("before", frames[index]), ("after", warped[index])):
            shown = [decoded(picture) / 2.55 for picture in one[name]]
            errors = np.array([[np.abs(picture - frame).mean() for frame in truth] for picture in shown])
            np.testing.assert_array_equal(errors.argmin(axis=1), range(6))
            assert errors.diagonal().max() < 2
        assert np.abs(decoded(one["fixed"]) / 2.55 - frames[index][one["fixedNumber"]]).mean() < 2
        assert one["captions"][one["fixedNumber"]] == "the fixed frame"
        assert "0.240 before, 0.120 after" in one["captions"][1]
        assert one["statuses"] == ["good"] * 6
    assert "To keep this page small" not in text
    assert "Frames that failed" not in text
    assert "structure and not noise" not in text


def test_statuses_come_first_and_failed_frames_are_named(tmp_path):
    frames = [gradients(6, (40, 48), 4)] * 2
    judged = ["good", "failed", "good", "uncertain", "failed", "good"]
    text, data = page(tmp_path, frames, [corrected(frames[0], 2, judged), corrected(frames[1], 2)])
    assert [one["statuses"] for one in data] == [judged, ["good"] * 6]
    row = "<tr><td>0</td><td>3</td><td>1</td><td>2</td><td>3</td><td>1, 4</td></tr>"
    assert "<tr><td>1</td><td>6</td><td>0</td><td>0</td><td>none</td><td>none</td></tr>" in text
    assert text.index(row) < text.index("structure and not noise") < text.index("Frames that failed")
    assert text.index("Frames that failed") < text.index("MSE before") < text.index('id="viewer"')


def test_blank_frames_have_a_status_of_their_own(tmp_path):
    frames = gradients(6, (40, 48), 4)
    frames[3] = 7.0
    kept = np.array([0, 1, 2, 4, 5])
    judged = ["good", "failed", "good", "failed", "uncertain"]
    found = among_all(corrected(frames[kept], 2, judged)._replace(kept=kept), frames)
    assert found.statuses == [*judged[:3], "blank", *judged[3:]]
    assert found.motion.shape == (40, 48, 2, 2)
    text, data = page(tmp_path, [frames], [found])
    assert data[0]["statuses"] == found.statuses
    assert "<tr><td>0</td><td>2</td><td>1</td><td>2</td><td>5</td><td>1, 4</td></tr>" in text
    with (tmp_path / "frames.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == found.statuses


def test_sequences_of_still_frames_and_of_others_are_drawn():
    """No doubt has no logarithm; every line ends where its sequence did."""
    still = {"stopped": "sure", "stages": [{"steps": 0, "doubt": 0.0, "deviation_mm": 0.0}]}
    stages = [{"steps": steps, "doubt": doubt, "deviation_mm": 1.0} for steps, doubt in ((12, 0.05), (20, 0.02))]
    figure = draw_stages([still, still, {"stopped": "budget", "stages": stages}])
    figure.canvas.draw()
    ends = [line.get_xydata()[-1].tolist() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert ends == [[0, 1e-4], [0, 1e-4], [20, 0.02]]
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert labels == ["sure: 2", "nothing left to gain: 0", "budget: 1"]


def test_a_long_series_makes_a_page_below_ten_megabytes(tmp_path):
    """Three slices of noise, which packs worst."""
    rng = np.random.default_rng(0)
    frames = [rng.normal(size=(140, 256, 256)).astype(np.float32)] * 3
    judged = [["good", "failed", "uncertain", "failed"] * 35] * 3
    text, data = page(tmp_path, frames, [corrected(one, 70, statuses) for one, statuses in zip(frames, judged, strict=True)])
    assert len(text) < 10e6
    assert "6 of 210, spread over all" in text
    strides = np.diff(data[0]["numbers"])
    assert (strides == strides[0]).all()
    assert f"at most {decoded(data[0]['after'][0]).shape[0]} pixels a side" in text
    assert ("one frame of every" in text) == (strides[0] > 1)
    full = sum(len(picture) for picture in data[0]["after"]) * (256 / decoded(data[0]["after"][0]).shape[0]) ** 2
    assert full * 2 * 3 * strides[0] > 10e6  # as they are, they would not fit


def test_small_series_are_shown_as_they_are():
    frames = gradients(30, (100, 90), 1)
    assert fitting_scale([Viewed(frames, frames, 0, 1.0, [""] * 30, ["good"] * 30)] * 7, 5_000_000) == Scale(256, 1)


@pytest.mark.parametrize("used", [0, 2])
def test_only_what_does_something_has_an_ellipse(used):
    """A sequence has room for more local transformations than it needs: the others have no weight."""
    weight = np.where(np.arange(5)[:, None] < used, 0.1, 0.0) * np.ones((5, 2))
    axis = Figure().add_subplot()
    draw_ellipses(axis, (64, 64), Gaussians(np.zeros((5, 2)), np.ones((5, 2)), np.zeros((5, 1)), weight))
    assert len(axis.lines) == len(axis.texts) == used
