"""Trains a network: ``python train.py --workdir DIR`` on the built-in phantom, with ``--data FOLDER`` on your own series."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from r2n2_jax.commands.command_line import announce_device, parse, run
from r2n2_jax.config import PRESETS, Config, ModelConfig, with_shorter_warmup
from r2n2_jax.data.dataset import PhantomSource, SeriesSource, Source
from r2n2_jax.data.series import Series, describe_series, find_patients, read_series
from r2n2_jax.data.splits import claim_splits, seen_patients, split_patients
from r2n2_jax.errors import InputError
from r2n2_jax.evaluation.cases import Case, phantom_pairs, series_cases, unjudged_landmarks
from r2n2_jax.evaluation.methods import identity, network
from r2n2_jax.evaluation.report import evaluate
from r2n2_jax.evaluation.tables import print_tables
from r2n2_jax.io.dicom import OrderBy
from r2n2_jax.pretrained import package
from r2n2_jax.registration.registrar import load
from r2n2_jax.registration.sequence import seen_shape
from r2n2_jax.runtime.devices import leader_first, leads, training_mesh
from r2n2_jax.training.loop import claim, train
from r2n2_jax.training.state import fits

_TEST_PAIRS = {2: 64, 3: 24}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What ``train.py`` is told."""

    workdir: Path
    """Folder of the run: checkpoints, curves, results. The same command on the same folder goes on where it stopped."""
    data: Path | None = None
    """Folder of patients: 2D+t or 3D+t files, or folders of DICOM series or numbered pictures. Of a network for volumes the
    slices of a frame are one volume. Without it the built-in phantom."""
    init: Path | None = None
    """Weights to start from: the --workdir of another run, or "pretrained" for those that come with the package."""
    order_by: OrderBy | None = None
    """Of DICOM series: the entry that orders the frames, where more than one or none does."""
    preset: Literal["small", "volume", "paper"] = "small"
    """Where the config below starts from: small learns in minutes on a CPU, volume, which is small in 3D, in less than an hour;
    paper has the paper's numbers."""
    config: Annotated[Config, tyro.conf.arg(name="")] = PRESETS["small"]


def command() -> int:
    """Runs it and returns its exit code."""
    return run(main)


def main() -> None:
    """Trains, then registers unseen pairs and says how well."""
    chosen = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    chosen.add_argument("--preset", default="small")
    chosen.add_argument("--init")
    chosen.add_argument("--training.steps", dest="steps", type=int)
    chosen.add_argument("--optimiser.warmup", dest="warmup")
    try:
        early = chosen.parse_known_args()[0]
    except argparse.ArgumentError:
        early = argparse.Namespace(preset=None, init=None, steps=None, warmup=None)
    preset = early.preset if early.preset in PRESETS else "small"  # an unknown or missing one is the parser's to refuse
    init = None if early.init is None else load(early.init, ndim=PRESETS[preset].model.ndim)
    if init is not None and init.config.model.ndim != PRESETS[preset].model.ndim:
        of = {2: "slices", 3: "volumes"}
        dimensions = of[init.config.model.ndim], of[PRESETS[preset].model.ndim]
        raise InputError(f"--init {early.init}: a network for {dimensions[0]}; --preset {preset} is for {dimensions[1]}")
    config = PRESETS[preset] if init is None else _going_on(PRESETS[preset], init.config)
    usual = config.optimiser.warmup
    if early.steps is not None and early.warmup is None:
        config = with_shorter_warmup(config, max(early.steps, 0))
    arguments = parse(Arguments, default=Arguments(tyro.MISSING, preset=preset, config=config), description=__doc__)
    workdir, config = arguments.workdir, arguments.config
    if init is not None and not fits(init.params, config):
        raise InputError(f"--init {arguments.init}: weights of another architecture; leave its --model settings as they are")

    if arguments.order_by is not None and arguments.data is None:
        raise InputError("--order-by is of the series in --data; the phantom has no use for it")
    patients = None if arguments.data is None else find_patients(arguments.data)
    before = set() if arguments.init is None else seen_patients(arguments.init)
    splits = None if patients is None else split_patients(patients, config.training.seed, before=before)
    series = (
        None if patients is None else read_series(patients, ndim=config.model.ndim, order_by=arguments.order_by, progress=True)
    )
    source_name = "phantom" if arguments.data is None else str(arguments.data.resolve())
    training_mesh(config.training.at_once)  # refuses a batch that cannot be shared, before anything is written
    with leader_first():
        claim(workdir, config, source_name, _place(arguments.init))
        if splits is not None:
            claim_splits(workdir, splits)
    announce_device()
    if config.optimiser.warmup < usual and early.warmup is None and leads():
        steps, warmup = config.training.steps, config.optimiser.warmup
        print(f"the warm-up is lowered from {usual} to {warmup} of the {steps} steps; --optimiser.warmup sets another")
    source: Source = PhantomSource(config)
    if series is not None:
        train_series, validation, test = (
            [slice_ for slice_ in series if slice_.patient in splits[split]] for split in ("train", "validation", "test")
        )
        source = SeriesSource(train_series, validation, config)
        cases = series_cases(test or validation, arguments.data)
        print("".join(f"{line}\n" for line in unjudged_landmarks(cases)), end="")
        print(describe_series(series))
        print(_depth_line(config.model, series), end="")
        shares = (f"{len(splits[split])} {split}" for split in ("train", "validation", "test"))
        print(f"{len(patients)} patients: " + ", ".join(shares))
    train(config, workdir, source, params=None if init is None else init.params)

    registrar = load(workdir)
    if not leads():
        return
    if series is None:
        title, cases = "unseen phantom pairs", _unseen_phantoms(config)
    else:
        title = "unseen patients" if test else "validation patients"
    print_tables(evaluate(registrar, [identity(), network(registrar, refine=0)], cases, workdir), title)
    print(f"picture: {workdir / 'registration.png'}   numbers: {workdir / 'results.json'}")
    print(f"curves: tensorboard --logdir {workdir}")


def _depth_line(model: ModelConfig, series: Sequence[Series]) -> str:
    """Where volumes have fewer slices than the network is trained for: how they are looked at when they are registered."""
    depths = {seen_shape(model, one.frames.shape[1:])[0] for one in series}
    if model.ndim == 2 or max(depths) >= model.shape[0]:
        return ""
    return f"volumes are registered by at most {max(depths)} voxels along z; --model.depth {max(depths)} trains by as many\n"


def _unseen_phantoms(config: Config) -> list[Case]:
    model = config.model
    return phantom_pairs(config.phantom, model.shape, _TEST_PAIRS[model.ndim])


def _going_on(preset: Config, init: Config) -> Config:
    """The preset for weights that there are: of their architecture, by the mismatch that they were trained by."""
    measure = {name: getattr(init.optimiser, name) for name in ("brightness", "contrast")}
    return dataclasses.replace(preset, model=init.model, optimiser=dataclasses.replace(preset.optimiser, **measure))


def _place(init: Path | None) -> str | None:
    """Whose weights a run starts from, as it stays true in another folder."""
    return None if init is None else str(init) if str(init) == package.NAME else str(init.resolve())
