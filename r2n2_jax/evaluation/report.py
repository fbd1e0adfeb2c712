"""What a run leaves in its folder: results.json and a picture; and what a registered pair leaves in its."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from r2n2_jax.data.dataset import held_out_phantoms
from r2n2_jax.data.series import Series
from r2n2_jax.evaluation.figures import save_registration
from r2n2_jax.evaluation.metrics import Pairs, concatenate, measure, seconds_per_pair
from r2n2_jax.evaluation.tables import summarise
from r2n2_jax.io import Image, write_displacement, write_image, write_json
from r2n2_jax.registration import Registrar, Registration


def phantom_pairs(registrar: Registrar, count: int) -> list[Pairs]:
    """The first ``count`` pairs of the phantom's test set, at the model's resolution."""
    config = registrar.config
    pairs = jax.tree.map(np.asarray, held_out_phantoms(config.phantom, config.model.resolution, "test", count))
    return [Pairs("phantom", pairs.fixed[..., 0], pairs.moving[..., 0], pairs.fixed_landmarks, pairs.moving_landmarks)]


def series_pairs(series: Sequence[Series]) -> list[Pairs]:
    """Every frame of every series with the series' fixed frame, at their own resolution."""
    pairs = []
    for one in series:
        moving = np.delete(one.frames, one.fixed, axis=0)
        pairs.append(Pairs(f"{one.patient} slice {one.slice}", np.broadcast_to(one.frames[one.fixed], moving.shape), moving))
    return pairs


def evaluate(registrar: Registrar, batches: Sequence[Pairs], folder: Path, *, progress: bool = True) -> dict[str, Any]:
    """Registers and judges all pairs; writes ``results.json`` and ``registration.png`` (the median pair) to ``folder``."""
    measured = []
    for pairs in tqdm(batches, desc="evaluating", disable=None if progress else True):
        measured.append(measure(pairs, registrar.register_batch(pairs.fixed, pairs.moving)))
    metrics = concatenate(measured)
    batch, index = _median_pair(metrics.mse_network, [len(pairs.fixed) for pairs in batches])
    fixed, moving = batches[batch].fixed[index], batches[batch].moving[index]
    save_registration(folder / "registration.png", fixed, moving, registrar.register(fixed, moving))
    results = summarise(metrics, registrar.config, seconds_per_pair(registrar, fixed, moving))
    write_json(folder / "results.json", results)
    return results


def write_registration(folder: Path, fixed: Image, moving: Image, result: Registration) -> None:
    """Writes ``warped.nii.gz``, ``displacement.nii.gz``, ``parameters.json`` and ``registration.png`` of one pair."""
    geometry = fixed.geometry
    write_image(folder / "warped.nii.gz", result.warped, geometry)
    write_displacement(folder / "displacement.nii.gz", result.displacement, geometry)
    write_json(folder / "parameters.json", describe_parameters(result))
    spacing = [geometry.spacing[axis] for axis in geometry.axes]
    aspect = spacing[1] / spacing[0]
    save_registration(folder / "registration.png", fixed.pixels, moving.pixels, result, aspect=aspect)


def describe_parameters(result: Registration) -> dict[str, Any]:
    """The local transformations as plain lists, with the convention they are in."""
    fields = {name: np.asarray(values, np.float64).tolist() for name, values in result.parameters._asdict().items()}
    return {
        "convention": (
            "warped(x) = moving(x + f(x)), f(x) = sum of weight exp(-1/2 (x - position)^T Sigma^-1 (x - position)), "
            "Sigma = R(rotation) diag(variance) R(rotation)^T; components (x, y[, z]), x along image columns; pixel centres "
            "span [-1, 1] on each axis; rotation in radians"
        ),
        "steps": result.steps,
        "transformations": [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)],
    }


def _median_pair(values: np.ndarray, sizes: Sequence[int]) -> tuple[int, int]:
    """(batch, index in it) of the pair with the median value."""
    chosen = int(np.argsort(values)[len(values) // 2])
    ends = np.cumsum(sizes)
    batch = int(np.searchsorted(ends, chosen, side="right"))
    return batch, chosen - int(ends[batch] - sizes[batch])
