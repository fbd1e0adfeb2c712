"""Volumes as users have them: folders of DICOM slices, and files with something wrong, each told in one line."""

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import assert_one_line
from dicom_files import write_series

from r2n2_jax.errors import InputError
from r2n2_jax.io.dicom_volume import read_image_or_folder

SHAPE = (9, 12, 10)


def stored(seed=0):
    return np.random.default_rng(seed).integers(0, 900, (1, *SHAPE)).astype(np.int16)


def noise(*shape):
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def write(path, pixels):
    image = sitk.GetImageFromArray(pixels)
    image.SetSpacing((1.0, 1.0, 2.0)[: pixels.ndim])
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (0.0, 0.0, -1.0)])
def test_a_folder_of_dicom_slices_is_the_volume_that_simpleitk_reads(normal, tmp_path):
    """Computed tomography's: signed, rescaled, with a localiser of another orientation among them; either way round."""
    write_series(tmp_path / "ct", stored(), normal=normal, RescaleSlope=2.0, RescaleIntercept=-1000.0)
    slices = sorted(map(str, (tmp_path / "ct").iterdir()), key=lambda name: pydicom.dcmread(name).ImagePositionPatient[2])
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(slices)
    known = reader.Execute()
    write_series(tmp_path / "scout", stored()[:, :2], ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    for index, file in enumerate((tmp_path / "scout").iterdir()):
        file.rename(tmp_path / "ct" / f"scout{index}.dcm")
    image = read_image_or_folder(tmp_path / "ct")
    np.testing.assert_allclose(image.pixels, sitk.GetArrayFromImage(known), atol=1e-3)
    assert image.pixels.min() < -900
    assert image.geometry.size == known.GetSize()
    for name in ("spacing", "origin", "direction"):
        np.testing.assert_allclose(getattr(image.geometry, name), getattr(known, f"Get{name.capitalize()}")(), atol=1e-5)


def missing_slice(folder):
    write_series(folder, stored(), ImagePositionPatient=lambda _, s: [0.0, 0.0, 3.0 * (s + (s > 4))])
    return folder, "do not lie evenly one behind the other (farthest apart those of numbers 4 and 5"


def over_time(folder):
    write_series(folder, np.concatenate([stored(), stored(1)]))
    return folder, "2 frames of one slice; a series over time is registered by --series"


def few_slices(folder):
    write_series(folder, stored()[:, :4])
    return folder, "at least 6 slices, and there are 4"


def two_series(folder):
    write_series(folder, stored(), SeriesInstanceUID=lambda _, s: f"1.2.{1 + (s > 3)}")
    return folder, "2 series"


def two_spacings(folder):
    write_series(folder, stored(), PixelSpacing=lambda _, s: [1.0, 1.0 + (s == 3)])
    return folder, "a series needs one spacing"


def two_stacks(folder):
    write_series(folder, stored())
    write_series(folder / "other", stored(1), ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    for file in (folder / "other").iterdir():
        file.rename(folder / f"other_{file.name}")
    (folder / "other").rmdir()
    return folder, "2 orientations (9, 9)"


def no_spacing(folder):
    write_series(folder, stored(), drop=("PixelSpacing",))
    return folder, "no pixel spacing"


def constant_dicom(folder):
    write_series(folder, np.full_like(stored(), 7))
    return folder, "every pixel is 7"


def cut_dicom(folder):
    write_series(folder, stored())
    file = next(folder.iterdir())
    file.write_bytes(file.read_bytes()[:-40])
    return folder, ""


def no_dicom(folder):
    folder.mkdir()
    (folder / "notes.txt").write_text("nothing")
    return folder, "a folder without DICOM files"


def cut(suffix):
    def make(folder):
        folder.mkdir()
        path = write(folder / f"a{suffix}", noise(20, 20, 20))
        file = path.with_suffix(".raw") if suffix == ".mhd" else path
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return path, "not an image"

    return make


def values(value, suffix):
    def make(folder):
        folder.mkdir()
        pixels = noise(*SHAPE)
        pixels[2, 3, 4] = value
        return write(folder / f"a{suffix}", pixels), "1 pixels are NaN or infinite"

    return make


def constant(folder):
    folder.mkdir()
    return write(folder / "a.nii.gz", np.full(SHAPE, 3.0, np.float32)), "every pixel is 3"


def thin(folder):
    folder.mkdir()
    return write(folder / "a.nii.gz", noise(4, 12, 10)), "a volume of size (10, 12, 4)"


def narrow(folder):
    folder.mkdir()
    return write(folder / "a.nii.gz", noise(9, 5, 10)), "a volume of size (10, 5, 9)"


def sheared(folder):
    folder.mkdir()
    affine = np.array([[-1.5, 0.3, 0, 70], [0, -1.5, 0, 70], [0, 0, 8, -30], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(noise(12, 10, 9), None)
    image.set_sform(affine, 1)
    image.set_qform(affine, 0)
    nibabel.save(image, folder / "a.nii")
    return folder / "a.nii", "sform is sheared"


def five_axes(folder):
    folder.mkdir()
    nibabel.save(nibabel.Nifti1Image(noise(10, 9, 8, 3, 2), np.eye(4)), folder / "a.nii")
    return folder / "a.nii", "a 2D or 3D image is needed"


def field(folder):
    folder.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(noise(*SHAPE, 2), isVector=True), str(folder / "a.nii.gz"))
    return folder / "a.nii.gz", "2 values per pixel"


BAD = {
    one.__name__: one
    for one in (
        *(missing_slice, over_time, few_slices, two_series, two_spacings, two_stacks, no_spacing, constant_dicom, cut_dicom),
        no_dicom,
        *(constant, thin, narrow, sheared, five_axes, field),
    )
}
BAD |= {f"cut{suffix}": cut(suffix) for suffix in (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")}
BAD |= {f"{value}{suffix}": values(value, suffix) for value in (np.nan, np.inf) for suffix in (".nii.gz", ".mha", ".nrrd")}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_volume_is_named_with_what_is_wrong(name, command, tmp_path, capfd):
    path, message = BAD[name](tmp_path / "bad")
    capfd.readouterr()
    with pytest.raises(InputError) as caught:
        read_image_or_folder(path)
    assert capfd.readouterr() == ("", ""), "nothing beside the error"
    assert message in str(caught.value)
    good = write(tmp_path / "good.nii.gz", noise(*SHAPE))
    code, out, err = command("register", "--fixed", good, "--moving", path, "--output", tmp_path / "out")
    assert_one_line(code, err, str(path.name), message)
    assert out == ""
    assert not (tmp_path / "out").exists()


def test_volumes_that_do_not_fit_each_other_are_refused(command, tmp_path):
    good, other = write(tmp_path / "good.nii.gz", noise(*SHAPE)), tmp_path / "other.nii.gz"
    words = ["register", "--fixed", good, "--moving", other, "--output", tmp_path / "out"]
    write(other, noise(20, 20))
    assert_one_line(*command(*words)[::2], "other.nii.gz")
    far = sitk.ReadImage(str(good))
    far.SetOrigin((500.0, 0.0, 0.0))
    sitk.WriteImage(far, str(other))
    assert_one_line(*command(*words)[::2], "lies apart")
    write(other, noise(*SHAPE))
    write(tmp_path / "mask.nii.gz", np.ones((9, 12, 8), np.uint8))
    assert_one_line(*command(*words, "--mask", tmp_path / "mask.nii.gz")[::2], "mask.nii.gz")
    write(tmp_path / "mask.nii.gz", np.zeros(SHAPE, np.uint8))
    assert_one_line(*command(*words, "--mask", tmp_path / "mask.nii.gz")[::2], "zero everywhere")
    assert_one_line(*command(*words, "--volumes")[::2], "--volumes is for --series")
    assert not (tmp_path / "out").exists()
