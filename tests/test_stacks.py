"""Stacks of several channels, slices and frames come apart as ImageJ and OME put them together."""

import itertools

import numpy as np
import PIL.Image
import pytest
from conftest import assert_one_line

from r2n2_jax.errors import InputError
from r2n2_jax.io.recording import read_recording

CHANNELS, SLICES, FRAMES = 2, 3, 5


@pytest.fixture
def values():
    """``[C, Z, T, H, W]`` uint16, every page of its own brightness."""
    noise = np.random.default_rng(0).integers(0, 50, (CHANNELS, SLICES, FRAMES, 12, 16))
    return (noise + 100 * np.arange(CHANNELS * SLICES * FRAMES).reshape(CHANNELS, SLICES, FRAMES, 1, 1)).astype(np.uint16)


def write_pages(path, values, order="CZT", description=None):
    """The axis that ``order`` names first changes fastest."""
    pages = np.transpose(values, ["CZT".index(axis) for axis in order[::-1]] + [3, 4]).reshape(-1, *values.shape[3:])
    first, *others = (PIL.Image.fromarray(page) for page in pages)
    first.save(path, save_all=True, append_images=others, **({} if description is None else {"description": description}))
    return path


def imagej(values, extra=""):
    sizes = dict(zip(("channels", "slices", "frames"), values.shape[:3], strict=True))
    lines = [f"{name}={size}" for name, size in sizes.items() if size > 1]
    return "\n".join(["ImageJ=1.53t", f"images={np.prod(values.shape[:3])}", *lines, "hyperstack=true", extra]) + "\n"


def ome(values, order, extra="", channels=""):
    sizes = " ".join(f'Size{axis}="{size}"' for axis, size in zip("CZT", values.shape[:3], strict=True))
    namespace = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    pixels = f'<Pixels ID="Pixels:0" DimensionOrder="XY{order}" Type="uint16" SizeX="16" SizeY="12" {sizes} {extra}>'
    head = f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{namespace}"><Image ID="Image:0">'
    return f"{head}{pixels}{channels}<TiffData/></Pixels></Image></OME>"


def same(recording, values):
    """``[Z, T, H, W]``."""
    assert len(recording.frames) == len(values)
    for frames, expected in zip(recording.frames, values, strict=True):
        np.testing.assert_array_equal(frames, expected)


@pytest.mark.parametrize("channel", range(CHANNELS))
def test_a_hyperstack_comes_apart_as_imagej_says(channel, values, tmp_path):
    path = write_pages(tmp_path / "a.tif", values, description=imagej(values, "finterval=30.0"))
    recording = read_recording(path, channel=channel)
    same(recording, values[channel])
    np.testing.assert_allclose(recording.times[0], 30.0 * np.arange(FRAMES))


@pytest.mark.parametrize("order", ["".join(order) for order in itertools.permutations("CZT")])
def test_a_stack_comes_apart_as_ome_says(order, values, tmp_path):
    extra = 'TimeIncrement="500" TimeIncrementUnit="ms"'
    path = write_pages(tmp_path / "a.ome.tif", values, order, ome(values, order, extra))
    recording = read_recording(path, channel=1)
    same(recording, values[1])
    np.testing.assert_allclose(recording.times[0], 0.5 * np.arange(FRAMES))


@pytest.mark.parametrize(
    ("kind", "named"), [("imagej", "2 channels (0 to 1) of 5 frames"), ("ome", "2 channels (0 (DAPI), 1 (GFP)) of 5 frames")]
)
def test_several_channels_are_refused_by_their_names(kind, named, values, tmp_path):
    names = '<Channel ID="0" Name="DAPI" SamplesPerPixel="1"/><Channel ID="1" Name="GFP" SamplesPerPixel="1"/>'
    description = imagej(values) if kind == "imagej" else ome(values, "CZT", channels=names)
    path = write_pages(tmp_path / "a.tif", values, description=description)
    with pytest.raises(InputError) as caught:
        read_recording(path)
    assert named in str(caught.value)
    assert "--channel" in str(caught.value)
    with pytest.raises(InputError, match="--channel 2; it has the channels 0 to 1"):
        read_recording(path, channel=2)


@pytest.mark.parametrize("channels", [1, 2])
def test_what_imagej_calls_slices_are_frames_where_there_are_no_others(channels, values, tmp_path):
    stack = values[:channels, :, :1]
    path = write_pages(tmp_path / "a.tif", stack, description=imagej(stack))
    recording = read_recording(path, channel=channels - 1)
    same(recording, stack[channels - 1, None, :, 0])
    assert recording.order == "the file (its slices: it has no frames)"


def test_a_stack_of_one_channel_needs_no_name(values, tmp_path):
    one = values[:1]
    same(read_recording(write_pages(tmp_path / "a.tif", one, description=imagej(one))), one[0])
    plain = write_pages(tmp_path / "plain.tif", one[:, :1])
    same(read_recording(plain), one[0, :1])
    with pytest.raises(InputError, match="--channel is for"):
        read_recording(plain, channel=0)


def test_pages_that_are_missing_are_told(values, tmp_path):
    path = write_pages(tmp_path / "a.tif", values[:, :, :4], description=imagej(values))
    with pytest.raises(InputError, match="says that it has 30 pages, and has 24"):
        read_recording(path, channel=0)
    path = write_pages(tmp_path / "b.tif", values, description="<OME><broken")
    with pytest.raises(InputError, match="its OME description is broken"):
        read_recording(path, channel=0)


@pytest.mark.parametrize("spacing", [None, (0.5, 0.8)])
def test_what_is_written_of_a_stack_is_read_as_it_was(spacing, values, tmp_path):
    path = write_pages(tmp_path / "a.tif", values, description=imagej(values, "finterval=0.25"))
    recording = read_recording(path, channel=1)
    recording = recording if spacing is None else recording.with_spacing(spacing)
    (tmp_path / "out").mkdir()
    changed = [np.roll(frames, 1, axis=-1) + 0.25 for frames in recording.frames]
    again = read_recording(recording.write(tmp_path / "out", changed))
    same(again, np.stack(changed))
    np.testing.assert_allclose(again.times[0], 0.25 * np.arange(FRAMES))
    assert again.spacing_known == (spacing is not None)
    if spacing is not None:
        np.testing.assert_allclose(again.geometries[0].spacing, spacing, rtol=1e-6)


def test_a_gif_is_a_series(values, tmp_path):
    grey = (values[0, 0] % 251).astype(np.uint8)
    first, *others = (PIL.Image.fromarray(frame) for frame in grey)
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=40)
    recording = read_recording(tmp_path / "a.gif")
    np.testing.assert_allclose(recording.frames[0], grey, atol=1e-3)
    np.testing.assert_allclose(recording.times[0], 0.04 * np.arange(FRAMES))
    (tmp_path / "out").mkdir()
    written = recording.write(tmp_path / "out", recording.frames)
    assert written.name == "warped.tif"
    np.testing.assert_array_equal(read_recording(written).frames[0], recording.frames[0])
    content = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not an image that can be read"):
        read_recording(tmp_path / "a.gif")


@pytest.mark.parametrize("suffix", [".avi", ".MP4"])
def test_a_movie_is_told_what_makes_pictures_of_it(suffix, tmp_path):
    (tmp_path / f"a{suffix}").write_bytes(b"RIFF" + bytes(100))
    with pytest.raises(InputError, match=f"a movie; .*ffmpeg -i a{suffix} FOLDER"):
        read_recording(tmp_path / f"a{suffix}")


def test_a_pair_has_no_channels(command, tmp_path):
    code, _, err = command("register", "--sample", "--channel", 1, "--output", tmp_path / "out")
    assert_one_line(code, err, "--channel is for --series")


def test_the_command_asks_for_a_channel_and_takes_it(values, command, tmp_path):
    path = write_pages(tmp_path / "a.tif", values, description=imagej(values))
    words = ["register", "--series", path, "--output", tmp_path / "out"]
    assert_one_line(*command(*words)[::2], "2 channels (0 to 1)", "--channel")
    assert_one_line(*command(*words, "--channel", 2)[::2], "--channel 2; it has the channels 0 to 1")
    assert_one_line(*command(*words, "--channel", 1, "--fixed-frame", 9)[::2], "the recording has the frames 0 to 4")
    assert not (tmp_path / "out").exists()
