"""Registers two images, ``python register.py --fixed A --moving B --output OUT``, or all frames of series.

A series, ``--series FOLDER_OR_FILE``, is a DICOM folder, numbered pictures, or a file with a time axis. Of several, each gets a
folder of its name in OUT; where SLURM, Open MPI or JAX's variables start several processes, they share them.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np

from r2n2_jax.commands.command_line import announce_device, make_cores_devices, parse, run
from r2n2_jax.commands.maps import coarse_points, map_names, maps
from r2n2_jax.commands.motion_correction import Options, correct
from r2n2_jax.config import Precision
from r2n2_jax.data.sample import sample_landmarks, sample_pair
from r2n2_jax.errors import InputError
from r2n2_jax.evaluation.cases import pair_case
from r2n2_jax.evaluation.metrics import measure
from r2n2_jax.evaluation.pair_figure import save_registration
from r2n2_jax.evaluation.report import PICTURE
from r2n2_jax.evaluation.series_report import summary_rows
from r2n2_jax.evaluation.statuses import left_out_line, pair_line, series_line
from r2n2_jax.evaluation.tables import print_table
from r2n2_jax.io.dicom import OrderBy
from r2n2_jax.io.dicom_volume import read_image_or_folder
from r2n2_jax.io.files import check_output, new_folder
from r2n2_jax.io.images import read_mask, write_image
from r2n2_jax.io.recording import Recording, read_recording
from r2n2_jax.io.stacking import as_asked
from r2n2_jax.pretrained import package
from r2n2_jax.registration.registrar import Registrar, load


@dataclasses.dataclass(frozen=True)
class Arguments(Options):
    """What ``register.py`` is told."""

    checkpoint: Path = Path(package.NAME)
    """The --workdir of a training run, whose best step registers; by default the weights that come with the package."""
    precision: Precision | None = None
    """What the network's convolutions compute with; by default as in training. Refinement is float32 either way."""
    output: Path = dataclasses.field(kw_only=True)
    """A new folder for everything that is written."""
    fixed: Path | None = None
    """Of a pair: the image that stays, of any format that SimpleITK reads, or a folder of DICOM slices."""
    moving: Path | None = None
    """Of a pair: the image that is brought into its position."""
    sample: bool = False
    """Instead of images of yours: register the two frames of a phantom that come with the package."""
    series: tuple[Path, ...] = ()
    """Instead of a pair: a series, or several, whose frames are all brought to one."""
    order_by: OrderBy | None = None
    """Of a DICOM series: the entry that orders the frames, where more than one or none does."""
    channel: int | None = None
    """Of a TIFF series of several channels: the one that is registered, counted from 0."""
    spacing: tuple[float, float] | None = None
    """Millimetres between pixels along x and y, for a series whose files hold none."""
    slices: bool = False
    """Of a series of volumes: register each slice by itself. By default so where slices are thick, more than 4 pixels apart, or
    were not recorded at the same times."""
    volumes: bool = False
    """Of a series: register all slices of a frame together, as a volume. By default so where slices are thin."""
    mask: Path | None = None
    """An image on the fixed one's grid, not zero where refinement and the image measures look; by default everywhere but at
    burnt-in text and the ground around an aperture."""
    points: Path | None = None
    """Of a series: a landmark file (slice, frame, point, x_mm, y_mm; of volumes z_mm and no slice); those of the fixed frame
    are carried to all others."""


def command() -> int:
    """Runs it and returns its exit code."""
    return run(main)


def main() -> None:
    """Reads, checks, registers, writes."""
    arguments = parse(Arguments, description=__doc__)
    named = arguments.fixed is not None or arguments.moving is not None
    if named + bool(arguments.series) + arguments.sample != 1 or (named and None in (arguments.fixed, arguments.moving)):
        raise InputError("name --fixed and --moving, two images; or --series, all frames of one; or --sample")
    if not arguments.series:
        _refuse_series_options(arguments)
        check_output(arguments.output)
        if arguments.sample:
            with sample_pair() as (fixed, moving):
                _pair(dataclasses.replace(arguments, fixed=fixed, moving=moving))
        else:
            _pair(arguments)
        print(f"written: {arguments.output}")
        return
    outputs = _outputs(arguments)
    first = next(iter(outputs))
    read = {first: _read(first, arguments)}
    if not read[first][0].of_volumes:  # a volume is registered by all cores together
        make_cores_devices()
    load_once = functools.cache(functools.partial(_load, arguments))
    own = list(outputs.items())[jax.process_index() :: jax.process_count()]
    if first not in dict(own):  # another process's: it only told what computes
        read.clear()
    for path, output in own:
        recording, said = read.pop(path, None) or _read(path, arguments)
        registrar = load_once(ndim=recording.frames[0].ndim - 1)
        _check_dimensions(path, recording, registrar, arguments)
        _series(registrar, path, recording, said, output, arguments)
        print(f"written: {output}")


def _outputs(arguments: Arguments) -> dict[Path, Path]:
    """The folder for every series, each of them new or empty."""
    if len(arguments.series) == 1:
        outputs = {arguments.series[0]: arguments.output}
    else:
        for name in ("mask", "points"):
            if getattr(arguments, name) is not None:
                raise InputError(f"--{name} is of one series; register it alone")
        outputs = {path: arguments.output / path.resolve().name.split(".")[0] for path in arguments.series}
        if len(set(outputs.values())) < len(arguments.series):
            raise InputError("two --series have the same name; rename one, or register them one by one")
    for path, output in outputs.items():
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        check_output(output)
    return outputs


def _refuse_series_options(arguments: Arguments) -> None:
    for name in ("fixed_frame", "fields", "order_by", "channel", "spacing", "points", "slices", "volumes"):
        if getattr(arguments, name) != getattr(Arguments, name):
            raise InputError(f"--{name.replace('_', '-')} is for --series; a pair has no use for it")


def _pair(arguments: Arguments) -> None:
    fixed, moving = read_image_or_folder(arguments.fixed), read_image_or_folder(arguments.moving)
    mask = None if arguments.mask is None else read_mask(arguments.mask, [fixed.geometry])[0]
    if fixed.pixels.ndim == 2:  # a volume is registered by all cores together
        make_cores_devices()
    registrar = _load(arguments, ndim=fixed.pixels.ndim)
    chosen = {name: getattr(arguments, name) for name in ("steps", "refine", "start", "tolerance_mm")}
    result = registrar.register(fixed, moving, mask=mask, **chosen)
    if result.left_out.any():
        mask = ~result.left_out
        print(left_out_line([result.left_out.sum()]))
    spacing = np.take(fixed.geometry.spacing, fixed.geometry.axes)
    with new_folder(arguments.output) as folder:
        result.write(folder)
        for name, values in maps(result, map_names(uncertainty=arguments.uncertainty, strain=arguments.strain)):
            write_image(folder / f"{name}.nii.gz", values, fixed.geometry)
        save_registration(folder / PICTURE, fixed.pixels, result, mask=mask, spacing=spacing)
    if not result.covered.all():
        covered = f"{100 * result.covered.mean():.0f} %"
        print(f"by position the moving image covers {covered} of the fixed one, on whose grid the results are")
    case = pair_case(fixed, result, mask, landmarks=sample_landmarks() if arguments.sample else None)
    before, after = (
        measure(case, np.zeros((1, *result.displacement.shape), np.float32)),
        measure(case, result.displacement[None]),
    )
    print(f"masked MSE of the standardised images: {before.mse[0]:.4f} before, {after.mse[0]:.4f} after")
    print(f"NCC: {before.ncc[0]:.4f} before, {after.ncc[0]:.4f} after; folded {100 * after.folded[0]:.3f} %")
    if after.tre_mm is not None:
        print(f"TRE, the mean distance of landmarks: {before.tre_mm[0]:.2f} mm before, {after.tre_mm[0]:.2f} mm after")
    deviation = result.deviation(coarse_points(fixed.pixels.ndim))
    print(f"standard deviation of the displacement: {deviation.mean():.2f} mm in the mean, {deviation.max():.2f} mm at most")
    print(f"{result.steps} local transformations; ended: {result.stopped}")
    print(f"picture: {arguments.output / PICTURE}")
    print(pair_line(result.status))


def _read(path: Path, arguments: Arguments) -> tuple[Recording, str]:
    """A series, of slices or of volumes, and why it is which."""
    recording = read_recording(path, order_by=arguments.order_by, channel=arguments.channel)
    known = recording.spacing_known
    if arguments.volumes and arguments.spacing is not None and not known:
        raise InputError(f"{path}: --spacing says nothing of how far apart slices lie; volumes need a file that does")
    recording = _with_spacing(path, recording, arguments)
    return as_asked(path, recording, slices=arguments.slices, volumes=arguments.volumes, known=known)


def _series(registrar: Registrar, path: Path, recording: Recording, said: str, output: Path, arguments: Arguments) -> None:
    frames = recording.frames
    needed = [len(blank) < len(of_slice) for blank, of_slice in zip(recording.blank, frames, strict=True)]
    masks = None if arguments.mask is None else read_mask(arguments.mask, recording.geometries, needed=needed)
    count, (height, width) = len(frames[0]), frames[0].shape[-2:]
    slices = recording.frames[0].shape[1] if recording.of_volumes else len(frames)
    print(f"{slices} slice(s), {count} frames in the order of {recording.order}, {width} x {height} pixels")
    if said:
        print(said)
    for remark in recording.remarks():
        print(f"{path}: {remark}")
    options = Options(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Options)})
    with new_folder(output) as folder:
        results = correct(registrar, recording, folder, options=options, masks=masks, landmarks=arguments.points)
    left_out = left_out_line(np.concatenate([one.left_out for one in results]))
    if left_out:
        print(left_out)
    print_table(*summary_rows(results), title="every frame against the fixed one, means over the others")
    worse = np.concatenate([(one.after.mse > one.before.mse)[one.kept] for one in results]).mean()
    if worse > 0.5:
        remedy = (
            "the network does not know this kind of motion. Refine its answer (--refine 20), train on series like this one "
            "(train.py --data), and look at the report."
        )
        print(f"{100 * worse:.0f} % of the frames match worse than before: {remedy}")
    print(series_line([result.statuses for result in results]))


def _with_spacing(path: Path, recording: Recording, arguments: Arguments) -> Recording:
    if arguments.spacing is not None:
        if not all(0 < millimetres < np.inf for millimetres in arguments.spacing):
            raise InputError(f"--spacing {arguments.spacing}: positive millimetres are needed")
        return recording.with_spacing(arguments.spacing)
    if not recording.spacing_known:
        print(f"{path}: no spacing in the files; millimetres are pixels here (--spacing X Y sets it)")
    return recording


def _check_dimensions(path: Path, recording: Recording, registrar: Registrar, arguments: Arguments) -> None:
    known = registrar.config.model.ndim
    if recording.frames[0].ndim - 1 != known:
        kinds = {2: "slices", 3: "volumes"}
        found = kinds[recording.frames[0].ndim - 1]
        raise InputError(
            f"{path}: its {found} are registered, but --checkpoint {arguments.checkpoint} is a network for {kinds[known]}; "
            f"leave it out, or say --{kinds[known]}"
        )


def _load(arguments: Arguments, *, ndim: int = 2) -> Registrar:
    registrar = load(arguments.checkpoint, ndim=ndim, precision=arguments.precision)
    announce_device()
    return registrar
