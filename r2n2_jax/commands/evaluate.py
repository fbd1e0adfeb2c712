"""Judges a network: ``python eval.py --checkpoint DIR`` on unseen phantom patients, with ``--data FOLDER`` on your own series.

Compares the network, the network refined on each pair and the B-spline registration that is fitted to each pair.
"""

import dataclasses
from pathlib import Path

from r2n2_jax.baseline.optimise import Settings
from r2n2_jax.commands.command_line import announce_device, make_cores_devices, parse, run
from r2n2_jax.commands.motion_correction import Options
from r2n2_jax.data.phantom.patients import FRAMES
from r2n2_jax.data.series import find_patients, read_series
from r2n2_jax.data.splits import unseen_patients
from r2n2_jax.errors import InputError
from r2n2_jax.evaluation.cases import Case, phantom_patients, phantom_volumes, series_cases, unjudged_landmarks
from r2n2_jax.evaluation.methods import bspline_method, identity, network
from r2n2_jax.evaluation.report import evaluate
from r2n2_jax.evaluation.tables import print_tables
from r2n2_jax.io.dicom import OrderBy
from r2n2_jax.io.files import read_json
from r2n2_jax.pretrained import package
from r2n2_jax.registration.registrar import Registrar, load


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What ``eval.py`` is told."""

    checkpoint: Path = Path(package.NAME)
    """The --workdir of a training run, whose best step is judged; by default the weights that come with the package."""
    volumes: bool = False
    """Of the package's weights judge those for volumes; a run's are for what it was trained on."""
    data: Path | None = None
    """Folder of patients, as for train.py; those that the run has learnt from are left out. Landmarks are read from
    PATIENT.csv in it, organs from masks/PATIENT.nii.gz. Without it the phantom's test set."""
    order_by: OrderBy | None = None
    """Of DICOM series: the entry that orders the frames, where more than one or none does."""
    output: Path | None = None
    """Folder for the report; by default eval-phantom or eval-FOLDER, inside the checkpoint's where it is a run's."""
    refine: int = Options.refine
    """Steps of instance refinement at the model's resolution; half as many follow at twice that, where images have it."""
    refined_steps: int | None = None
    """The most local transformations that are refined; by default 16 more than the network places, of volumes 40 or more."""
    baseline: Settings = dataclasses.field(default_factory=Settings)
    """The B-spline's optimiser; the defaults are the paper's."""
    spacing: float = 8.0
    """Pixels between the B-spline's control points at every level."""
    patients: int = 4
    """Patients of the phantom's test set."""
    slices: int | None = None
    """Slices of each, by default 3; of a network for volumes each patient is one volume."""
    frames: int = 21
    """Frames of each slice, from the breath's first on: fewer show less of its motion."""
    resolution: int | None = None
    """Pixels per axis of the phantom's test set: by default 256 of slices, 64 of volumes."""


def command() -> int:
    """Runs it and returns its exit code."""
    return run(main)


def main() -> None:
    """Registers unseen pairs by every method, prints tables, writes a report."""
    arguments = parse(Arguments, description=__doc__)
    least = {"refine": 1, "refined_steps": 1, "patients": 1, "slices": 1, "frames": 2, "resolution": 16, "spacing": 1}
    for name, bound in least.items():
        if getattr(arguments, name) is not None and getattr(arguments, name) < bound:
            raise InputError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: at least {bound} is needed")
    if arguments.frames > FRAMES:
        raise InputError(f"--frames {arguments.frames}: a series has {FRAMES}")
    for name in ("patients", "slices", "frames", "resolution"):
        if arguments.data is not None and getattr(arguments, name) != getattr(Arguments, name):
            raise InputError(f"--{name} is of the phantom's test set; --data judges all there is")
    if arguments.order_by is not None and arguments.data is None:
        raise InputError("--order-by is of the series in --data; the phantom has no use for it")
    shipped = str(arguments.checkpoint) == package.NAME
    if arguments.volumes and not shipped:
        raise InputError(f"--volumes is of the weights that come with the package; {arguments.checkpoint} says what it is for")
    of_volumes = arguments.volumes if shipped else _of_volumes(arguments.checkpoint)
    if not of_volumes:  # a volume is registered by all cores together
        make_cores_devices()
    registrar = load(arguments.checkpoint, ndim=3 if of_volumes else 2)
    if registrar.config.model.ndim == 3 and arguments.slices is not None:
        raise InputError(f"{arguments.checkpoint} registers volumes; --slices is of a network for slices")
    announce_device()
    if arguments.data is None:
        name, cases = "phantom", _phantoms(registrar, arguments)
    else:
        files = unseen_patients(arguments.checkpoint, find_patients(arguments.data))
        series = read_series(files, ndim=registrar.config.model.ndim, order_by=arguments.order_by, progress=True)
        name, cases = arguments.data.resolve().name, series_cases(series, arguments.data)
        print("".join(f"{line}\n" for line in unjudged_landmarks(cases)), end="")
        print(f"{len(files)} unseen patients: {', '.join(files)}")
    output = arguments.output or (Path() if shipped else arguments.checkpoint) / f"eval-{name}"
    output.mkdir(parents=True, exist_ok=True)
    methods = [
        identity(),
        network(registrar, refine=0),
        network(registrar, refine=arguments.refine, steps=arguments.refined_steps),
        bspline_method(arguments.baseline, spacing=arguments.spacing),
    ]
    print_tables(evaluate(registrar, methods, cases, output), f"{name}, unseen pairs")
    print(f"report: {output / 'report.html'}   numbers: {output / 'results.json'}   pairs: {output / 'pairs.csv'}")


def _of_volumes(checkpoint: Path) -> bool:
    """What the run's own config says: its weights cannot be read before JAX knows its devices."""
    path = checkpoint / "config.json"
    return path.is_file() and read_json(path).get("model", {}).get("ndim") == 3


def _phantoms(registrar: Registrar, arguments: Arguments) -> list[Case]:
    """The phantom's test set, of slices or of volumes."""
    sizes = {"patients": arguments.patients, "frames": arguments.frames}
    if registrar.config.model.ndim == 3:
        return phantom_volumes(registrar.config.phantom, arguments.resolution or 64, **sizes)
    return phantom_patients(registrar.config.phantom, arguments.resolution or 256, slices=arguments.slices or 3, **sizes)
