"""Registers two images: ``python register.py --checkpoint DIR --fixed A --moving B --output OUT``."""

import dataclasses
import sys
from pathlib import Path

import jax

from r2n2_jax.command_line import announce_device, parse, run
from r2n2_jax.evaluation.metrics import Pairs, measure
from r2n2_jax.evaluation.report import write_registration
from r2n2_jax.io import check_output, check_same_grid, new_folder, read_image
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


def main() -> None:
    """Reads, checks, registers, writes."""
    arguments = parse(Arguments, description=__doc__)
    check_output(arguments.output)
    fixed, moving = read_image(arguments.fixed), read_image(arguments.moving)
    check_same_grid(arguments.fixed, fixed, arguments.moving, moving)
    registrar = load(arguments.checkpoint)
    announce_device()
    result = registrar.register(fixed.pixels, moving.pixels, steps=arguments.steps)
    with new_folder(arguments.output) as folder:
        write_registration(folder, fixed, moving, result)
    pair = Pairs("pair", fixed.pixels[None], moving.pixels[None])
    judged = measure(pair, jax.tree.map(lambda array: array[None], result))
    print(f"masked MSE of the standardised images: {judged.mse_initial[0]:.4f} before, {judged.mse_network[0]:.4f} after")
    print(f"NCC: {judged.ncc_initial[0]:.4f} before, {judged.ncc_network[0]:.4f} after; folded {100 * judged.folded[0]:.3f} %")
    print(f"written: {arguments.output}")


if __name__ == "__main__":
    sys.exit(run(main))
