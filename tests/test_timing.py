"""Slices share their times where the recording says so, and only there."""

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import write_series

from r2n2_jax.io.recording import read_recording

FRAMES, SLICES = 5, 3


def clock(seconds):
    return f"10{int(seconds) // 60:02d}{seconds % 60:09.6f}"


UNTRIGGERED = ("TriggerTime",)


@pytest.mark.parametrize(
    ("shared", "entries", "drop"),
    [
        pytest.param(True, {}, (), id="the same trigger times"),
        pytest.param(True, {"TriggerTime": lambda t, s: 40.0 * t + 15 * s}, (), id="trigger times within half an interval"),
        pytest.param(False, {"TriggerTime": lambda t, s: 40.0 * t + 60 * s}, (), id="trigger times an interval apart"),
        pytest.param(True, {"TriggerTime": lambda t, s: (40.0 + 10 * s) * t}, (), id="a faster heart"),
        pytest.param(True, {"AcquisitionTime": lambda t, s: clock(60 * s + t)}, (), id="triggered, one after another"),
        pytest.param(True, {"AcquisitionTime": lambda t, s: clock(t + s / SLICES)}, UNTRIGGERED, id="in turns"),
        pytest.param(False, {"AcquisitionTime": lambda t, s: clock(60 * s + t)}, UNTRIGGERED, id="one after another"),
        pytest.param(
            False,
            {"AcquisitionTime": lambda t, s: clock(60 * s + t), "TemporalPositionIdentifier": lambda t, s: t + 1},
            UNTRIGGERED,
            id="one after another, positions counted anew",
        ),
        pytest.param(True, {"TemporalPositionIdentifier": lambda t, s: t + 1}, UNTRIGGERED, id="the same positions"),
        pytest.param(False, {"TemporalPositionIdentifier": lambda t, s: FRAMES * s + t}, UNTRIGGERED, id="other positions"),
        pytest.param(False, {}, UNTRIGGERED, id="numbers alone"),
    ],
)
def test_dicom_slices_share_their_times_where_the_headers_say_so(shared, entries, drop, tmp_path):
    frames = np.random.default_rng(0).integers(0, 400, (FRAMES, SLICES, 12, 16)).astype(np.uint16)
    write_series(tmp_path, frames, drop=drop, **entries)
    assert read_recording(tmp_path).shared_times is shared


def test_one_slice_and_one_file_share_their_times(tmp_path):
    frames = np.random.default_rng(0).integers(0, 400, (FRAMES, 2, 12, 16)).astype(np.uint16)
    write_series(tmp_path / "one", frames[:, :1], drop=UNTRIGGERED)
    assert read_recording(tmp_path / "one").shared_times
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(frame) for frame in frames]), str(tmp_path / "file.nii.gz"))
    recording = read_recording(tmp_path / "file.nii.gz")
    assert (len(recording.frames), recording.shared_times) == (2, True)
