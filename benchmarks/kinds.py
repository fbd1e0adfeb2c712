"""Kinds of image that the weights have not seen, under a known motion: ``python -m benchmarks.kinds``.

Prints the mean error of the displacement in pixels, over the fixed pixels that show the object, before and after the default
registration, the largest error after it, and its status. Still pairs have no motion: what is found there is error.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks import pairs_of_kinds as kinds
from benchmarks.pairs_of_kinds import Pair
from r2n2_jax.ops.grid import half_extent
from r2n2_jax.registration.registrar import Registrar, load

KINDS: list[Callable[[], list[Pair]]] = [
    kinds.hot_pixels,
    kinds.still_frames_of_low_snr,
    kinds.jumps_of_low_snr,
    kinds.uptake,
    kinds.contrasts,
    kinds.drift,
    kinds.turns,
    functools.partial(kinds.behind_an_aperture, masked=False),
    functools.partial(kinds.behind_an_aperture, masked=True),
    kinds.patterns,
    functools.partial(kinds.of_size, 24, 24),
    functools.partial(kinds.of_size, 100, 600),
]


class Judged(NamedTuple):
    """How well a pair was registered.

    Attributes:
        name: of the pair's kind.
        before: the mean error of no displacement, in pixels.
        after: of the displacement that was found.
        largest: its largest error.
        status: what the registration says of itself.
    """

    name: str
    before: float
    after: float
    largest: float
    status: str


def judge(registrar: Registrar, pairs: list[Pair]) -> list[Judged]:
    """Registers pairs of one shape and one mask together, and compares them with the truth."""
    fixed, moving = (np.stack([getattr(pair, name) for pair in pairs]).astype(np.float32) for name in ("fixed", "moving"))
    judged: list[Judged] = []
    for found in registrar.register_chunks(fixed, moving, mask=pairs[0].mask):
        for field, status in zip(found.displacement * half_extent(fixed.shape[1:]), found.status, strict=True):
            pair = pairs[len(judged)]
            before, after = (np.linalg.norm(one - pair.displacement, axis=-1)[pair.judged] for one in (0.0, field))
            judged.append(Judged(pair.name, before.mean(), after.mean(), after.max(), str(status)))
    return judged


def main() -> None:
    """Prints the table."""
    registrar = load()
    print("| kind | before, px | after | largest after | status |\n|---|---|---|---|---|")
    for make in KINDS:
        for one in judge(registrar, make()):
            print(f"| {one.name} | {one.before:.2f} | {one.after:.2f} | {one.largest:.2f} | {one.status} |", flush=True)


if __name__ == "__main__":
    main()
