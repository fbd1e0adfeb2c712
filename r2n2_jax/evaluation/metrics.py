"""What a displacement field is judged by, pair by pair, at the images' own resolution; one NumPy number a pair, ``[N]``."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r2n2_jax.evaluation.cases import Case
from r2n2_jax.io.geometry import to_px
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.intensity import cut_outliers, standardise
from r2n2_jax.ops.jacobian import determinant
from r2n2_jax.ops.similarity import mse, ncc
from r2n2_jax.ops.warp import inside, sample, sample_nearest, warp

Array = jax.Array

_LEAST_DETERMINANT = 1e-3
_MOST_PIXELS = 1 << 22  # whose derivatives are held together


class Metrics(NamedTuple):
    """One number a pair, ``[N]``; None where the case does not know what is needed.

    Attributes:
        tre_mm: mean landmark distance, millimetres.
        tre_px: the same in pixels.
        worst_landmark_mm: the farthest landmark's.
        end_point_error_mm: mean distance of the field from the exact one, in the body where that is known.
        dice: overlap of each organ's mask with the moving mask under the field; NaN where either image has none of it.
        mse: of the images, each less its mean over its deviation, of the pixels that count and see the moving image.
        ncc: normalised cross-correlation over the same pixels.
        folded: fraction of pixels whose Jacobian determinant is not positive (central differences, one-sided at the border).
        sd_log_jacobian: SDlogJ, the standard deviation of the determinant's logarithm (of 0.001 where it is below).
    """

    tre_mm: np.ndarray | None
    tre_px: np.ndarray | None
    worst_landmark_mm: np.ndarray | None
    end_point_error_mm: np.ndarray | None
    dice: dict[str, np.ndarray] | None
    mse: np.ndarray
    ncc: np.ndarray
    folded: np.ndarray
    sd_log_jacobian: np.ndarray


def measure(case: Case, displacement: np.ndarray) -> Metrics:
    """Judges fields ``[N, *spatial, d]``, normalised; landmarks are carried by the field's linear interpolation."""
    folded, spread = zip(*(_folds_and_spread(field) for field in displacement), strict=True)
    region = np.ones(case.fixed.shape, bool) if case.region is None else case.region
    images = case.fixed, case.moving, displacement, region
    if displacement.ndim == 4:
        similarity = _similarity(*images)
    else:
        similarity = np.array([_similarity_of_volumes(*pair) for pair in zip(*images, strict=True)]).T
    missed_mm = missed_px = None
    if case.fixed_landmarks is not None:
        carried = case.fixed_landmarks + np.asarray(_at(displacement, case.fixed_landmarks))
        missed_px = to_px(carried - case.moving_landmarks, case.fixed.shape[1:])
        missed_mm = np.linalg.norm(missed_px * np.asarray(case.spacing[: missed_px.shape[-1]]), axis=-1)
        missed_px = np.linalg.norm(missed_px, axis=-1)
    return Metrics(
        tre_mm=None if missed_mm is None else _mean_known(missed_mm),
        tre_px=None if missed_px is None else _mean_known(missed_px),
        worst_landmark_mm=None if missed_mm is None else _worst_known(missed_mm),
        end_point_error_mm=None if case.displacement is None else _end_point_error_mm(case, displacement),
        dice=None if case.fixed_masks is None else _dice(case, displacement),
        mse=np.asarray(similarity[0]),
        ncc=np.asarray(similarity[1]),
        folded=np.array(folded),
        sd_log_jacobian=np.array(spread),
    )


def logarithm(determinants: np.ndarray) -> np.ndarray:
    """The logarithm of Jacobian determinants (of 0.001 where they are below), which is as far from 0 for twice as for half."""
    return np.log(np.maximum(determinants, _LEAST_DETERMINANT))


def _folds_and_spread(displacement: np.ndarray) -> tuple[float, float]:
    """The fraction of the pixels that fold, and SDlogJ, of one field; of a large one a slab of planes at a time."""
    rows, width = len(displacement), max(2, _MOST_PIXELS // math.prod(displacement.shape[1:-1]))
    found = np.empty(displacement.shape[:-1], np.float32)
    for start in range(0, rows, width):
        end = min(start + width, rows)
        first, last = max(0, min(start - 1, rows - 2)), min(end + 1, rows)
        slab = np.array(displacement[first:last])
        # In a slab's own units, whose first axis is shorter: a determinant has none.
        slab[..., -1] *= (rows - 1) / (last - first - 1)
        found[start:end] = determinant(slab)[start - first : end - first]
    return float(np.mean(found <= 0)), float(np.std(logarithm(found), dtype=np.float64))


def concatenate(parts: Sequence[Metrics]) -> Metrics:
    """The metrics of all pairs of several cases: NaN for a pair that lacks one, None where all lack it."""
    counts = [len(part.mse) for part in parts]
    columns = {name: _column([getattr(part, name) for part in parts], counts) for name in Metrics._fields if name != "dice"}
    dice = [part.dice or {} for part in parts]
    organs = dict.fromkeys(organ for overlaps in dice for organ in overlaps)
    return Metrics(
        **columns, dice={organ: _column([overlaps.get(organ) for overlaps in dice], counts) for organ in organs} or None
    )


def _column(values: Sequence[np.ndarray | None], counts: Sequence[int]) -> np.ndarray | None:
    if all(value is None for value in values):
        return None
    filled = [np.full(count, np.nan) if value is None else value for value, count in zip(values, counts, strict=True)]
    return np.concatenate(filled)


def _mean_known(distances: np.ndarray) -> np.ndarray:
    """The mean over the landmarks that a pair has; NaN where it has none."""
    known = np.isfinite(distances)
    total = np.sum(distances, axis=-1, where=known)
    return np.where(known.any(axis=-1), total / np.maximum(known.sum(axis=-1), 1), np.nan)


def _worst_known(distances: np.ndarray) -> np.ndarray:
    known = np.isfinite(distances)
    return np.where(known.any(axis=-1), np.max(distances, axis=-1, initial=0.0, where=known), np.nan)


def _end_point_error_mm(case: Case, displacement: np.ndarray) -> np.ndarray:
    missed = to_px(displacement - case.displacement, case.fixed.shape[1:]) * np.asarray(case.spacing)
    distance = np.linalg.norm(missed, axis=-1)
    body = np.ones(distance.shape, bool) if case.body is None else case.body
    axes = tuple(range(1, distance.ndim))
    return np.sum(distance * body, axis=axes) / np.sum(body, axis=axes)


def _dice(case: Case, displacement: np.ndarray) -> dict[str, np.ndarray]:
    result = {}
    for organ, fixed in case.fixed_masks.items():
        moving = case.moving_masks[organ]
        warped = np.asarray(_warp_nearest(moving.astype(np.float32), displacement)) > 0.5
        axes = tuple(range(1, fixed.ndim))
        both, total = np.sum(fixed & warped, axis=axes), np.sum(fixed, axis=axes) + np.sum(warped, axis=axes)
        known = fixed.any(axis=axes) & moving.any(axis=axes)
        result[organ] = np.where(known, 2.0 * both / np.maximum(total, 1), np.nan)
    return result


@jax.jit
def _similarity(fixed: Array, moving: Array, displacement: Array, region: Array) -> tuple[Array, Array]:
    fixed, moving = (jax.vmap(_comparable)(images, region) for images in (fixed, moving))
    warped = jax.vmap(warp)(moving, displacement)
    mask = inside(coordinates(fixed.shape[1:-1])[None] + displacement) & region
    return jax.vmap(mse)(fixed, warped, mask), jax.vmap(ncc)(fixed, warped, mask)


def _similarity_of_volumes(
    fixed: np.ndarray, moving: np.ndarray, displacement: np.ndarray, region: np.ndarray
) -> tuple[float, float]:
    """As ``_similarity`` of one pair, from sums over its planes: no other field nor warped volume is held."""
    fixed, moving = (_comparable(image, region) for image in (fixed, moving))
    heights = np.asarray(coordinates(displacement.shape[:1]))[:, 0]
    sums = sum(
        np.asarray(_sums(*plane, moving), np.float64) for plane in zip(heights, fixed, displacement, region, strict=True)
    )
    count, squares, means, products = np.maximum(sums[0], 1.0), sums[1], sums[2:4], sums[4:]
    power_fixed, power_warped, shared = (products - means[[0, 1, 0]] * means[[0, 1, 1]] / count) / count
    power = power_fixed * power_warped
    return squares / count, shared / math.sqrt(power) if power > 0 else 0.0


@jax.jit
def _sums(height: Array, fixed: Array, displacement: Array, region: Array, moving: Array) -> Array:
    """Over a plane of volumes: of one, of the squared difference, of both, of their squares and their product."""
    plane = coordinates(fixed.shape[:2])
    there = jnp.concatenate([plane, jnp.full((*fixed.shape[:2], 1), height)], axis=-1) + displacement
    seen = (inside(there) & region).astype(jnp.float32)
    a, b = fixed[..., 0], sample(moving, there)[..., 0]
    return jnp.stack([jnp.sum(seen * part) for part in (jnp.ones_like(a), (a - b) ** 2, a, b, a * a, b * b, a * b)])


@jax.jit
def _comparable(image: Array, region: Array) -> Array:
    return standardise(cut_outliers(image[..., None]), region, clip=False)


@jax.jit
def _warp_nearest(masks: Array, displacement: Array) -> Array:
    points = coordinates(masks.shape[1:])[None] + displacement
    return jax.vmap(sample_nearest)(masks[..., None], points)[..., 0]


@jax.jit
def _at(displacement: Array, points: Array) -> Array:
    # A missing landmark is NaN; its place is replaced for the sampling and stays NaN in the sum. One a little beyond the
    # border, where a field has no samples, moves as the border does.
    return jax.vmap(sample)(displacement, jnp.clip(jnp.where(jnp.isnan(points), 0.0, points), -1.0, 1.0))
