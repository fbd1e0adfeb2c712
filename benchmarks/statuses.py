"""Statuses counted against the truth: ``python -m benchmarks.statuses``.

Validation phantoms are registered in four ways, good and bad, and with the kinds of ``benchmarks.kinds``. Prints, for each, how
many are off by more than three millimetres (kinds: two pixels) and what they are called; then how often a status is wrong.
"""

from collections.abc import Iterator

import numpy as np

from benchmarks.kinds import KINDS, judge
from r2n2_jax.data.dataset import held_out_phantoms
from r2n2_jax.registration.registrar import Registrar, load
from r2n2_jax.registration.trust import STATUSES

_PAIRS, _SIZE, _FIELD_OF_VIEW_MM = 60, 256, 400.0
_WRONG_MM, _WRONG_PX = 3.0, 2.0


def main() -> None:
    """Prints the table."""
    registrar = load()
    rows = [*_phantoms(registrar), ("kinds", *_kinds(registrar))]
    print(f"| pairs | wrong: {', '.join(STATUSES)} | right: {', '.join(STATUSES)} |\n|---|---|---|")
    for name, wrong, status in rows:
        print(f"| {name} | {_counts(status[wrong])} | {_counts(status[~wrong])} |", flush=True)
    wrong, status = (np.concatenate([row[part] for row in rows]) for part in (1, 2))
    print(f"\nof {wrong.sum()} wrong ones called good: {100 * np.mean(status[wrong] == 'good'):.1f} %")
    print(f"of {(~wrong).sum()} right ones called failed: {100 * np.mean(status[~wrong] == 'failed'):.1f} %")


def _phantoms(registrar: Registrar) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Which are wrong and what they are called, by a way to register them."""
    phantoms = held_out_phantoms(registrar.config.phantom, (_SIZE, _SIZE), "validation", _PAIRS)
    fixed, moving = np.asarray(phantoms.fixed[..., 0]), np.asarray(phantoms.moving[..., 0])
    landmarks, true = np.asarray(phantoms.fixed_landmarks), np.asarray(phantoms.moving_landmarks)
    for name, asked in (("default", {}), ("2 steps of refinement", {"refine": 2}), ("network alone", {"refine": 0})):
        found = registrar.register_batch(fixed, moving, **asked)
        carried = np.stack([found.frame(index).points(points) for index, points in enumerate(landmarks)])
        error = np.linalg.norm(carried - true, axis=-1).mean(axis=1) * _FIELD_OF_VIEW_MM / 2
        yield f"phantoms, {name}", error > _WRONG_MM, found.status
    other = np.roll(moving, _PAIRS // 2, axis=0)
    yield "phantoms of two patients", np.ones(_PAIRS, bool), registrar.register_batch(fixed, other).status


def _kinds(registrar: Registrar) -> tuple[np.ndarray, np.ndarray]:
    judged = [one for kind in KINDS for one in judge(registrar, kind())]
    return np.array([one.after > _WRONG_PX for one in judged]), np.array([one.status for one in judged])


def _counts(status: np.ndarray) -> str:
    return ", ".join(str(np.sum(status == word)) for word in STATUSES)


if __name__ == "__main__":
    main()
