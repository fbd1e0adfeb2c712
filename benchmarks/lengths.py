"""How long the sequence is, and why it ends: ``python -m benchmarks.lengths``.

Validation phantoms in order of how deep the breath is, and synthetic pairs, all with up to 28 local transformations. Prints the
mean motion before, the mean error after, the mean number of local transformations, and how many sequences ended in which way.
"""

from collections import Counter

import numpy as np

from benchmarks import pairs_of_kinds as kinds
from r2n2_jax.data.dataset import held_out_phantoms
from r2n2_jax.io.geometry import to_px
from r2n2_jax.ops.grid import half_extent
from r2n2_jax.registration.course import ENDINGS
from r2n2_jax.registration.registrar import Registrar, load
from r2n2_jax.registration.result import Registration

_PAIRS, _SIZE, _PARTS = 240, 256, 4
_MOST = 28


def main() -> None:
    """Prints the table."""
    registrar = load()
    print(f"| pairs | | motion, px | error | steps | {' | '.join(ENDINGS)} |\n|---|---|---|---|---|---|---|---|")
    for name, motion, error, found in [*_phantoms(registrar), *_synthetic(registrar)]:
        ended = Counter(found.stopped.tolist())
        counts = " | ".join(str(ended[ending]) for ending in ENDINGS)
        mean = " | ".join(f"{np.mean(values):.2f}" for values in (motion, error))
        print(f"| {name} | {len(motion)} | {mean} | {np.mean(found.steps):.1f} | {counts} |", flush=True)


def _phantoms(registrar: Registrar) -> list[tuple[str, np.ndarray, np.ndarray, Registration]]:
    pairs = held_out_phantoms(registrar.config.phantom, (_SIZE, _SIZE), "validation", _PAIRS)
    fixed, moving = np.asarray(pairs.fixed[..., 0]), np.asarray(pairs.moving[..., 0])
    landmarks, true = np.asarray(pairs.fixed_landmarks), np.asarray(pairs.moving_landmarks)
    motion = np.linalg.norm(to_px(true - landmarks, (_SIZE, _SIZE)), axis=-1).mean(axis=1)
    rows = []
    for order, part in enumerate(np.array_split(np.argsort(motion), _PARTS), start=1):
        found = registrar.register_batch(fixed[part], moving[part], steps=_MOST)
        carried = np.stack([found.frame(index).points(landmarks[pair]) for index, pair in enumerate(part)])
        error = np.linalg.norm(to_px(carried - true[part], (_SIZE, _SIZE)), axis=-1).mean(axis=1)
        rows.append((f"phantoms, quarter {order} by depth", motion[part], error, found))
    return rows


def _synthetic(registrar: Registrar) -> list[tuple[str, np.ndarray, np.ndarray, Registration]]:
    """One row a kind: an image against itself, one disc that has moved, tissue that has, and the same with stripes on it."""
    rows = []
    for pair in (kinds.itself(), kinds.one_disc(), kinds.hot_pixels()[0], kinds.stripes()):
        images = (image[None].astype(np.float32) for image in (pair.fixed, pair.moving))
        found = registrar.register_batch(*images, steps=_MOST)
        field = found.displacement[0] * half_extent(pair.fixed.shape)
        motion, error = (np.linalg.norm(one - pair.displacement, axis=-1)[pair.judged] for one in (0.0, field))
        rows.append((pair.name, motion.mean(keepdims=True), error.mean(keepdims=True), found))
    return rows


if __name__ == "__main__":
    main()
