"""Training, validation and test patients: a patient is in exactly one of them."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from r2n2_jax.errors import InputError
from r2n2_jax.io.files import read_json, write_json

T = TypeVar("T")

Split = Literal["train", "validation", "test", "before"]


def split_patients(patients: Iterable[str], seed: int, *, before: Collection[str] = ()) -> dict[Split, list[str]]:
    """A random split, about 70 / 15 / 15 percent, with at least one patient to validate and, from three on, one to test.

    Args:
        patients: their names.
        seed: of the draw.
        before: patients that the weights to start from have learnt from: none of them is a test, and all are remembered.

    Raises:
        InputError: where there are fewer than two patients.
    """
    names = sorted(patients)
    if len(names) < 2:
        raise InputError(f"only {len(names)} patient: at least two are needed, one of them to validate")
    held = max(1, round(0.15 * len(names)))
    test = held if len(names) > 2 else 0
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    parts = {"train": order[held + test :], "validation": order[:held], "test": order[held : held + test]}
    parts["test"] = [name for name in parts["test"] if name not in before]
    if before:
        parts["before"] = list(before)
    return {split: sorted(members) for split, members in parts.items()}


def claim_splits(workdir: Path, splits: dict[Split, list[str]]) -> None:
    """Writes a run's split to ``splits.json``, or makes sure that it is the one written there before.

    Raises:
        InputError: where the run began with another split, because the folder's patients have changed since.
    """
    path = workdir / "splits.json"
    if not path.exists():
        write_json(path, splits)
    saved = read_json(path)
    if saved != splits:
        known, found = ({name for members in split.values() for name in members} for split in (saved, splits))
        changed = ", ".join(sorted(known ^ found)) or "split otherwise"
        raise InputError(f"{path}: the folder's patients are no longer those of this run ({changed}); name a new --workdir")


def seen_patients(workdir: Path) -> set[str]:
    """The patients that the run in ``workdir``, or one whose weights it began with, learnt from or was chosen by."""
    path = workdir / "splits.json"
    splits = read_json(path) if path.exists() else {}
    return {name for split in ("train", "validation", "before") for name in splits.get(split, [])}


def unseen_patients(workdir: Path, patients: dict[str, T]) -> dict[str, T]:
    """The patients that are not among ``seen_patients``.

    Raises:
        InputError: where none is left.
    """
    seen = seen_patients(workdir)
    unseen = {name: value for name, value in patients.items() if name not in seen}
    if not unseen:
        raise InputError(f"{workdir}: this run has trained or validated on every patient of the folder; none is left")
    return unseen
