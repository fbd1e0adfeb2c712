"""Judges a network: ``python eval.py --checkpoint DIR`` on unseen phantom pairs, with ``--data FOLDER`` on your own series."""

import dataclasses
import sys
from pathlib import Path

from r2n2_jax.command_line import announce_device, parse, run
from r2n2_jax.data.series import find_patients, read_series
from r2n2_jax.data.splits import unseen_patients
from r2n2_jax.errors import InputError
from r2n2_jax.evaluation.report import evaluate, phantom_pairs, series_pairs
from r2n2_jax.evaluation.tables import print_table
from r2n2_jax.registration import load


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What ``eval.py`` is told."""

    checkpoint: Path
    """The --workdir of a training run; its best step is judged."""
    data: Path | None = None
    """Folder of 2D+t files, one a patient; patients that the run has learnt from are left out.
    Without it the phantom's test set."""
    output: Path | None = None
    """Folder for results.json and registration.png; by default eval-phantom or eval-FOLDER inside the checkpoint's."""
    pairs: int = 64
    """Pairs of the phantom's test set."""


def main() -> None:
    """Registers unseen pairs, prints a table, writes it."""
    arguments = parse(Arguments, description=__doc__)
    if arguments.pairs < 1:
        raise InputError(f"--pairs {arguments.pairs}: at least 1 is needed")
    registrar = load(arguments.checkpoint)
    if arguments.data is None:
        name, pairs = "phantom", phantom_pairs(registrar, arguments.pairs)
    else:
        patients = unseen_patients(arguments.checkpoint, find_patients(arguments.data))
        name, pairs = arguments.data.resolve().name, series_pairs(read_series(patients, progress=True))
        print(f"{len(patients)} unseen patients: {', '.join(patients)}")
    announce_device()
    output = arguments.output or arguments.checkpoint / f"eval-{name}"
    output.mkdir(parents=True, exist_ok=True)
    print_table(evaluate(registrar, pairs, output), f"{name}, unseen pairs")
    print(f"picture: {output / 'registration.png'}   figures: {output / 'results.json'}")


if __name__ == "__main__":
    sys.exit(run(main))
