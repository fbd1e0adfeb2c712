"""What bfloat16 features cost: the weights of the package in both precisions, on the same phantom test pairs.

``python -m benchmarks.precision`` prints a Markdown table: TRE in millimetres.
"""

import argparse
import typing

from benchmarks.registration import summary
from r2n2_jax.commands.command_line import run as run_command
from r2n2_jax.commands.motion_correction import Options
from r2n2_jax.config import PhantomConfig, Precision
from r2n2_jax.evaluation.cases import phantom_patients
from r2n2_jax.evaluation.methods import network, run
from r2n2_jax.registration.registrar import load


def main() -> None:
    """Prints a row a precision, by the network alone and refined."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    cases = phantom_patients(PhantomConfig(), 256, slices=1)
    print("| precision | refine | TRE, mm | largest |\n|---|---|---|---|")
    for precision in typing.get_args(Precision):
        registrar = load(precision=precision)
        for refine in (0, Options.refine):
            row = summary([run(network(registrar, refine=refine), [case], progress=False) for case in cases])
            print(f"| {precision} | {refine} | {row['tre_mm_mean']:.2f} | {row['tre_mm_max']:.2f} |", flush=True)


if __name__ == "__main__":
    raise SystemExit(run_command(main, share_cores=True))
