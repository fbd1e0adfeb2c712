"""Registers two images, ``python register.py --fixed A --moving B --output OUT``, or all frames of a series.

The series, ``--series FOLDER_OR_FILE``, is a DICOM folder, numbered pictures, or a file with a time axis.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from r2n2_jax import pretrained
from r2n2_jax.command_line import announce_device, parse, run
from r2n2_jax.correction import Options, correct
from r2n2_jax.dicom import OrderBy
from r2n2_jax.errors import InputError
from r2n2_jax.evaluation.cases import Case
from r2n2_jax.evaluation.correction_report import summary_rows
from r2n2_jax.evaluation.metrics import measure
from r2n2_jax.evaluation.report import write_registration
from r2n2_jax.evaluation.tables import print_table
from r2n2_jax.files import check_output, new_folder
from r2n2_jax.io import read_image, read_mask, resample, same_grid
from r2n2_jax.recording import Recording, read_recording
from r2n2_jax.registration import Registrar, load


@dataclasses.dataclass(frozen=True)
class Arguments(Options):
    """What ``register.py`` is told."""

    checkpoint: Path = Path(pretrained.NAME)
    """The --workdir of a training run, whose best step registers; by default the weights that come with the package."""
    output: Path = dataclasses.field(kw_only=True)
    """A new folder for everything that is written."""
    fixed: Path | None = None
    """Of a pair: the image that stays, of any format that SimpleITK reads."""
    moving: Path | None = None
    """Of a pair: the image that is brought into its position."""
    series: Path | None = None
    """Instead of a pair: a series whose frames are all brought to one."""
    order_by: OrderBy | None = None
    """Of a DICOM series: the entry that orders the frames, where more than one or none does."""
    spacing: tuple[float, float] | None = None
    """Millimetres between pixels along x and y, for a series whose files hold none."""
    mask: Path | None = None
    """An image on the fixed one's grid, not zero where refinement and the image measures look."""
    points: Path | None = None
    """Of a series: a landmark file (slice, frame, point, x_mm, y_mm); those of the fixed frame are carried to all others."""


def main() -> None:
    """Reads, checks, registers, writes."""
    arguments = parse(Arguments, description=__doc__)
    pair = arguments.fixed is not None or arguments.moving is not None
    if pair == (arguments.series is not None) or (pair and None in (arguments.fixed, arguments.moving)):
        raise InputError("name --fixed and --moving, two images, or --series, all frames of one")
    if pair:
        _refuse_series_options(arguments)
    check_output(arguments.output)
    if pair:
        _pair(arguments)
    else:
        _series(arguments)
    print(f"written: {arguments.output}")


def _refuse_series_options(arguments: Arguments) -> None:
    for name in ("fixed_frame", "fields", "order_by", "spacing", "points"):
        if getattr(arguments, name) != getattr(Arguments, name):
            raise InputError(f"--{name.replace('_', '-')} is for --series; a pair has no use for it")


def _pair(arguments: Arguments) -> None:
    fixed, moving = read_image(arguments.fixed), read_image(arguments.moving)
    mask = None if arguments.mask is None else read_mask(arguments.mask, [fixed.geometry])[0]
    registrar = _load(arguments.checkpoint)
    result = registrar.register(fixed, moving, steps=arguments.steps, refine=arguments.refine, mask=mask)
    with new_folder(arguments.output) as folder:
        write_registration(folder, fixed, moving, result)
    pixels, region = moving.pixels, np.ones(fixed.pixels.shape, bool) if mask is None else mask
    if not same_grid(fixed.geometry, moving.geometry):
        print("the images lie on different grids: results are on the fixed one's, where the moving one is found by position")
        pixels, covered = resample(moving, fixed.geometry)
        region = region & covered
    case = Case("pair", "", fixed.pixels[None], pixels[None], fixed.geometry.spacing, region=region[None])
    before, after = measure(case, np.zeros_like(result.displacement)[None]), measure(case, result.displacement[None])
    print(f"masked MSE of the standardised images: {before.mse[0]:.4f} before, {after.mse[0]:.4f} after")
    print(f"NCC: {before.ncc[0]:.4f} before, {after.ncc[0]:.4f} after; folded {100 * after.folded[0]:.3f} %")


def _series(arguments: Arguments) -> None:
    recording = _with_spacing(read_recording(arguments.series, order_by=arguments.order_by), arguments)
    frames = recording.frames
    masks = None if arguments.mask is None else read_mask(arguments.mask, recording.geometries)
    count, (height, width) = len(frames[0]), frames[0].shape[1:]
    print(f"{len(frames)} slice(s), {count} frames in the order of {recording.order}, {width} x {height} pixels")
    registrar = _load(arguments.checkpoint)
    options = Options(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Options)})
    with new_folder(arguments.output) as folder:
        results = correct(registrar, recording, folder, options=options, masks=masks, landmarks=arguments.points)
    print_table(*summary_rows(results), title="every frame against the fixed one, means over the others")
    worse = np.concatenate([one.after.mse > one.before.mse for one in results]).mean()
    if worse > 0.5:
        print(
            f"{100 * worse:.0f} % of the frames match worse than before: the network does not know this kind of motion. "
            "Refine its answer (--refine 15), train on series like this one (train.py --data), and look at the report."
        )


def _with_spacing(recording: Recording, arguments: Arguments) -> Recording:
    if arguments.spacing is not None:
        if min(arguments.spacing) <= 0:
            raise InputError(f"--spacing {arguments.spacing}: positive millimetres are needed")
        return recording.with_spacing(arguments.spacing)
    if not recording.spacing_known:
        print(f"{arguments.series}: no spacing in the files; millimetres are pixels here (--spacing X Y sets it)")
    return recording


def _load(checkpoint: Path) -> Registrar:
    registrar = load(checkpoint)
    announce_device()
    return registrar


if __name__ == "__main__":
    sys.exit(run(main, share_cores=True))
