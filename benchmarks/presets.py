"""What the everyday preset's size is worth: resolution, looks and channels against TRE and time.

``python -m benchmarks.presets --runs DIR`` trains every size for as many steps on the same phantoms (once: the runs stay
in DIR), then lets each register the same 256² pairs, all sizes in turn slice by slice, and prints a Markdown table.
"""

import argparse
import dataclasses
from pathlib import Path

from benchmarks.registration import summary
from r2n2_jax.commands.command_line import run as run_command
from r2n2_jax.commands.motion_correction import Options
from r2n2_jax.config import PRESETS, Config, PhantomConfig, TrainingConfig
from r2n2_jax.data.dataset import PhantomSource
from r2n2_jax.data.phantom.patients import CYCLE
from r2n2_jax.evaluation.cases import phantom_patients
from r2n2_jax.evaluation.methods import Outcome, network, run
from r2n2_jax.registration.registrar import Registrar, load
from r2n2_jax.training.loop import claim, train

_WIDTHS = (1, 2, 4, 8)
_SIZES = [(64, 4, 8), (64, 8, 8), (64, 12, 8), (32, 8, 8), (96, 8, 8), (64, 8, 4), (64, 8, 16)]


def config(resolution: int, looks: int, channels: int, *, steps: int) -> Config:
    """The preset ``small`` at another size."""
    small = PRESETS["small"]
    widths = tuple(channels * width for width in _WIDTHS)
    model = dataclasses.replace(small.model, resolution=resolution, steps=looks, channels=widths)
    training = dataclasses.replace(small.training, steps=steps, checkpoint_every=min(steps, TrainingConfig.checkpoint_every))
    return dataclasses.replace(small, model=model, training=training)


def trained(folder: Path, wanted: Config) -> Registrar:
    """The network of that config, trained now unless it is in the folder already."""
    claim(folder, wanted, "phantom")
    train(wanted, folder, PhantomSource(wanted))
    return load(folder)


def main() -> None:
    """Trains what is missing, registers, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--train-only", action="store_true", help="leave the timing to a later call on an idle machine")
    arguments = parser.parse_args()
    registrars = {}
    for size in _SIZES:
        name = "{}-{}-{}".format(*size)
        print(f"resolution, looks, channels: {name}", flush=True)
        registrars[size] = trained(arguments.runs / name, config(*size, steps=arguments.steps))
    if arguments.train_only:
        return

    found: dict[tuple, list[Outcome]] = {(size, refine): [] for size in _SIZES for refine in (0, Options.refine)}
    for case in phantom_patients(PhantomConfig(), 256, slices=1, frames=CYCLE):
        for (size, refine), outcomes in found.items():
            outcomes.append(run(network(registrars[size], refine=refine), [case], progress=False))
    print("| resolution | T | channels | TRE, mm | largest | s a pair | refined: TRE, mm | largest | s a pair |")
    print("|---" * 9 + "|")
    for size in _SIZES:
        rows = [summary(found[size, refine]) for refine in (0, Options.refine)]
        cells = [f"{row['tre_mm_mean']:.2f} | {row['tre_mm_max']:.2f} | {row['seconds_per_pair']:.3f}" for row in rows]
        print("| " + " | ".join([*map(str, size), *cells]) + " |")
    print(f"\n{summary(found[_SIZES[0], 0])['pairs']} pairs; {arguments.steps} steps of training each")


if __name__ == "__main__":
    raise SystemExit(run_command(main, share_cores=True))
