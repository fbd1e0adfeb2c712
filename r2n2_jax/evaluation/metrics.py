"""What a registration is judged by, pair by pair, at the images' own resolution."""

import time
from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np

from r2n2_jax.geometry import to_px
from r2n2_jax.ops.gaussian import displacement
from r2n2_jax.ops.intensity import standardise
from r2n2_jax.ops.jacobian import determinant
from r2n2_jax.ops.similarity import mse, ncc
from r2n2_jax.ops.warp import warp
from r2n2_jax.registration import Registrar, Registration

_TIMED_RUNS = 9


class Pairs(NamedTuple):
    """Pairs of one size to judge by.

    Attributes:
        name: where they come from.
        fixed: ``[N, *spatial]``, any range.
        moving: the same shape.
        fixed_landmarks: ``[N, L, d]`` normalised, or None where none are known.
        moving_landmarks: the same tissue in the moving images.
    """

    name: str
    fixed: np.ndarray
    moving: np.ndarray
    fixed_landmarks: np.ndarray | None = None
    moving_landmarks: np.ndarray | None = None


class Metrics(NamedTuple):
    """One number a pair, ``[N]``.

    Attributes:
        tre_initial: mean landmark distance in pixels before registration, or None without landmarks.
        tre_network: after it.
        mse_initial: MSE of the standardised images before.
        mse_network: after, over the pixels that see the moving image.
        ncc_initial: normalised cross-correlation before.
        ncc_network: after, over the same pixels.
        folded: share of pixels whose Jacobian determinant is not positive (central differences, one-sided at the border).
    """

    tre_initial: np.ndarray | None
    tre_network: np.ndarray | None
    mse_initial: np.ndarray
    mse_network: np.ndarray
    ncc_initial: np.ndarray
    ncc_network: np.ndarray
    folded: np.ndarray


def measure(pairs: Pairs, result: Registration) -> Metrics:
    """Judges the registration of a batch of pairs."""
    fixed, moving = (jax.vmap(standardise)(images[..., None]) for images in (pairs.fixed, pairs.moving))
    warped = jax.vmap(warp)(moving, result.displacement)
    similarity = [
        jax.vmap(measure_one)(fixed, image, mask)
        for measure_one in (mse, ncc)
        for image, mask in ((moving, np.ones_like(result.inside)), (warped, result.inside))
    ]
    folded = np.mean(np.asarray(_determinants(result.displacement)) <= 0, axis=tuple(range(1, fixed.ndim - 1)))
    tre_initial = tre_network = None
    if pairs.fixed_landmarks is not None:
        shape = pairs.fixed.shape[1:]
        carried = pairs.fixed_landmarks + jax.vmap(displacement)(result.parameters, pairs.fixed_landmarks)
        tre_initial = target_registration_error_px(pairs.fixed_landmarks, pairs.moving_landmarks, shape)
        tre_network = target_registration_error_px(carried, pairs.moving_landmarks, shape)
    return Metrics(tre_initial, tre_network, *(np.asarray(values) for values in similarity), folded)


def target_registration_error_px(mapped: np.ndarray, truth: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The mean distance of landmarks from where they should be.

    Args:
        mapped: ``[N, L, d]``, the fixed landmarks carried into the moving image, normalised.
        truth: ``[N, L, d]``, the same tissue there.
        shape: of the images.

    Returns:
        ``[N]``, pixels.
    """
    return np.linalg.norm(to_px(np.asarray(mapped) - np.asarray(truth), shape), axis=-1).mean(axis=-1)


def concatenate(parts: Iterable[Metrics]) -> Metrics:
    """The metrics of all pairs of several batches."""
    return Metrics(*(None if values[0] is None else np.concatenate(values) for values in zip(*parts, strict=True)))


def seconds_per_pair(registrar: Registrar, fixed: np.ndarray, moving: np.ndarray) -> float:
    """The median time of registering one pair, arrays in and out, after the compilation."""
    registrar.register(fixed, moving)
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        registrar.register(fixed, moving)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


_determinants = jax.jit(jax.vmap(determinant))
