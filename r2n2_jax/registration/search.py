"""What is found for pairs ``[N, *spatial]`` on one grid: local transformations, and the affine maps that they start from."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r2n2_jax.config import ModelConfig
from r2n2_jax.errors import InputError
from r2n2_jax.ops.affine import Affine, identity
from r2n2_jax.ops.gaussian import Gaussians
from r2n2_jax.registration import sequence
from r2n2_jax.registration.course import Stages, View, Wanted
from r2n2_jax.registration.sequence import Found
from r2n2_jax.registration.start import Kind, evidence
from r2n2_jax.registration.trust import FAILED, GOOD, statuses

Start = Literal["auto", "none"] | Kind

GROWN = 28  # local transformations beside those of training, at most, where an accuracy is asked for
_DEVIATIONS = 2.8  # by which a start's correlation must be above what chance would find
_WITHIN_REACH = 0.5  # how far the evidence of a start alone may be below that of what was found without it
_LEAST_CORRELATION = 0.8  # with another start: images of two kinds match by chance somewhere
_AS_WELL = 0.01  # of the correlation: a start that needs no local transformations is preferred to them
_CHANCE = 0.1  # by how much the evidence must be above in the end


class Asked(NamedTuple):
    """How pairs are registered.

    Attributes:
        steps: the most local transformations; None: as many as in training, with a tolerance ``GROWN`` more.
        refine: Levenberg-Marquardt steps on them.
        start: what may come before them.
        spacing: of the pixels, in ``(x, y[, z])`` order; None: the same along all axes.
        tolerance_mm: the mean standard deviation of the displacement at which a sequence ends, in the spacing's unit.
    """

    steps: int | None
    refine: int
    start: Start = "auto"
    spacing: Sequence[float] | None = None
    tolerance_mm: float | None = None


class Answer(NamedTuple):
    """What is known of ``N`` pairs.

    Attributes:
        gaussians: the local transformations, fields ``[N, T, ...]``.
        affine: the start before them, fields ``[N, ...]``.
        doubt: ``[N]``, see ``sequence.Found``.
        covariance: ``[N, P, P]``, of the local transformations, see ``posterior``.
        stopped: ``[N]``, why each sequence ended, see ``course``.
        stages: how each went there, fields ``[N, stages]``.
    """

    gaussians: Gaussians
    affine: Affine
    doubt: np.ndarray
    covariance: np.ndarray
    stopped: np.ndarray
    stages: Stages


def search(
    params: Any, model: ModelConfig, fixed: np.ndarray, moving: np.ndarray, mask: np.ndarray | None, asked: Asked
) -> Answer:
    """Registers pairs; where that fails, again with the moving image's bright and dark exchanged, as in another modality.

    Args:
        params: the network's weights.
        model: its architecture.
        fixed: ``[N, *spatial]``; ``N`` is 1 or a multiple of the devices.
        moving: the same shape.
        mask: ``[N, *spatial]`` bool, the fixed images' pixels that count; by default all.
        asked: how.

    Raises:
        InputError: where a number of steps is none, or a tolerance says nothing.
    """
    most = _most(model, asked) if asked.steps is None else asked.steps
    if asked.tolerance_mm is not None and not asked.tolerance_mm > 0:
        raise InputError(f"a tolerance of {asked.tolerance_mm} mm; a positive one is needed")
    if asked.tolerance_mm is not None and not asked.refine:
        raise InputError("a tolerance without refinement; the network alone does not know how sure it is")
    if most < 1:
        raise InputError(f"{most} steps; at least one is needed")
    if asked.refine < 0:
        raise InputError(f"{asked.refine} steps of refinement; none (0) or more are needed")
    looks = min(most, model.steps) if asked.refine else most
    options = {"wanted": _wanted(asked, fixed.shape[1:]), "looks": looks, "most": most, "refine": asked.refine}
    find = functools.partial(sequence.find, params, model, **options)
    first = _from_starts(find, model, fixed, moving, mask, asked)
    failed = statuses(first.doubt) == FAILED
    if not asked.refine or not failed.any():
        return first
    exchanged = _from_starts(find, model, fixed, -np.asarray(moving, np.float32), mask, asked)
    return _chosen(failed & (statuses(exchanged.doubt) != FAILED), exchanged, first)


def _from_starts(
    find: Callable[[list[View]], Found],
    model: ModelConfig,
    fixed: np.ndarray,
    moving: np.ndarray,
    mask: np.ndarray | None,
    asked: Asked,
) -> Answer:
    """Where pairs still differ, be it by noise, they are registered from another start: kept where they match better by it."""
    views = functools.partial(sequence.views, model, fixed, refine=asked.refine)
    seen = views(moving, mask)
    extent = _extent(fixed.shape[1:], asked.spacing)
    if asked.start not in ("auto", "none"):
        started = sequence.start(seen[-1], np.ones(len(fixed), bool), extent, kind=asked.start)
        found = find(_moved(views, moving, mask, started.affine))
        return _answer(found, started.affine)
    found, nothing = find(seen), identity(len(fixed), model.ndim)
    wanted = statuses(np.asarray(found.judged.differs)) != GOOD
    if asked.start == "none" or not asked.refine or not wanted.any():
        return _answer(found, nothing)
    started = sequence.start(seen[-1], wanted, extent, kind="affine")
    before = _evidence(found, seen[0])
    wanted &= np.asarray(started.significance) > _DEVIATIONS
    wanted &= np.asarray(evidence(started.correlation, started.overlap)) > before - _WITHIN_REACH
    if not wanted.any():
        return _answer(found, nothing)
    again = find(_moved(views, moving, mask, started.affine))
    better = (_evidence(again, seen[0]) > before + _CHANCE) & (np.asarray(again.judged.correlation) > _LEAST_CORRELATION)
    as_well = np.asarray(again.judged.correlation) > np.asarray(found.judged.correlation) - _AS_WELL
    wanted &= better | (as_well & _is_still(again) & ~_is_still(found))
    return _chosen(wanted, _answer(again, started.affine), _answer(found, nothing))


def _answer(found: Found, affine: Affine) -> Answer:
    return Answer(found.gaussians, affine, found.judged.doubt, found.covariance, found.stopped, found.stages)


def _most(model: ModelConfig, asked: Asked) -> int:
    """The most local transformations where no number was asked for."""
    return model.steps + (0 if asked.tolerance_mm is None else GROWN)


def _wanted(asked: Asked, shape: tuple[int, ...]) -> Wanted:
    return Wanted(np.float32(asked.tolerance_mm or 0.0), _extent(shape, asked.spacing) / 2)


def outer(gaussians: Gaussians, affine: Affine) -> Gaussians:
    """The local transformations as they add to the affine map: ``A (x + l(x)) + b`` is ``A x + b`` plus ``A l(x)``."""
    return gaussians._replace(weight=jnp.einsum("nij,ntj->nti", affine.matrix, gaussians.weight))


def _extent(shape: tuple[int, ...], spacing: Sequence[float] | None) -> np.ndarray:
    """How far images reach along every component, in the spacing's unit."""
    pixels = np.array(shape[::-1], np.float32) - 1.0
    return pixels if spacing is None else pixels * np.asarray(spacing, np.float32)[: len(shape)]


def _moved(views: Callable[..., list[View]], moving: np.ndarray, mask: np.ndarray | None, affine: Affine) -> list[View]:
    """The views of pairs whose moving images have been carried to their start."""
    moved, there = sequence.move(moving, affine)
    return views(moved, there if mask is None else there & mask)


def _evidence(found: Found, seen: View) -> np.ndarray:
    """What speaks for what was found, of the pixels that count."""
    whole = math.prod(seen.fixed.shape[1:-1])
    pixels = whole if seen.mask is None else jnp.maximum(jnp.sum(seen.mask, axis=tuple(range(1, seen.mask.ndim))), 1)
    return np.asarray(evidence(found.judged.correlation, found.judged.compared / pixels))


def _is_still(found: Found) -> np.ndarray:
    """Of which pairs no local transformation does anything."""
    return ~np.asarray(found.gaussians.weight).any(axis=(1, 2))


def _chosen(condition: np.ndarray, chosen: Any, other: Any) -> Any:
    """Of two trees of arrays ``[N, ...]`` the first's where ``condition [N]``, else the second's."""
    return jax.tree.map(lambda a, b: np.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b), chosen, other)
