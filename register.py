"""Registers two images: ``python register.py --checkpoint DIR --fixed A --moving B --output OUT``."""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from r2n2_jax.command_line import announce_device, parse, run
from r2n2_jax.evaluation.cases import Case
from r2n2_jax.evaluation.metrics import measure
from r2n2_jax.evaluation.report import write_registration
from r2n2_jax.files import check_output, new_folder
from r2n2_jax.io import check_same_grid, read_image
from r2n2_jax.registration import load


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What ``register.py`` is told."""

    checkpoint: Path
    """The --workdir of a training run; its best step registers."""
    fixed: Path
    """The image that stays, of any format that SimpleITK reads."""
    moving: Path
    """The image that is brought into its position."""
    output: Path
    """A new folder for warped.nii.gz, displacement.nii.gz, parameters.json and registration.png."""
    steps: int | None = None
    """Local transformations; by default as many as in training."""
    refine: int = 0
    """Steps of instance refinement: the transformations found are fitted to this pair alone."""


def main() -> None:
    """Reads, checks, registers, writes."""
    arguments = parse(Arguments, description=__doc__)
    check_output(arguments.output)
    fixed, moving = read_image(arguments.fixed), read_image(arguments.moving)
    check_same_grid(arguments.fixed, fixed, arguments.moving, moving)
    registrar = load(arguments.checkpoint)
    announce_device()
    result = registrar.register(fixed.pixels, moving.pixels, steps=arguments.steps, refine=arguments.refine)
    with new_folder(arguments.output) as folder:
        write_registration(folder, fixed, moving, result)
    pair = Case("pair", "", fixed.pixels[None], moving.pixels[None], fixed.geometry.spacing)
    before, after = measure(pair, np.zeros_like(result.displacement)[None]), measure(pair, result.displacement[None])
    print(f"masked MSE of the standardised images: {before.mse[0]:.4f} before, {after.mse[0]:.4f} after")
    print(f"NCC: {before.ncc[0]:.4f} before, {after.ncc[0]:.4f} after; folded {100 * after.folded[0]:.3f} %")
    print(f"written: {arguments.output}")


if __name__ == "__main__":
    sys.exit(run(main))
