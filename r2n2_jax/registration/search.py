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
from r2n2_jax.registration import sequence, volume
from r2n2_jax.registration.course import Found, Stages, View, Wanted
from r2n2_jax.registration.start import Kind, evidence
from r2n2_jax.registration.trust import FAILED, GOOD, statuses
from r2n2_jax.runtime.devices import copy_to_all

Start = Literal["auto", "none"] | Kind

GROWN, GROWN_TO_BE_SURE = 16, 28  # local transformations beside the network's, at most; and where an accuracy is asked for
_IN_VOLUMES = 24  # of volumes, before those, or as many as the network places
_DEVIATIONS = 2.8  # by which a start's correlation must be above what chance would find
_FAR_LESS = 0.75  # of the doubt: by less two registrations of one pair differ anyway
_WITHIN_REACH = 0.5  # how far the evidence of a start alone may be below that of what was found without it
_LEAST_CORRELATION = 0.8  # with another start: images of two kinds match by chance somewhere
_OF_A_KIND = 0.7  # the correlation from which on bright is bright in both images, however much they differ
_AS_WELL = 0.01  # of the correlation: a start that needs no local transformations is preferred to them
_MOST_OWED = 0.1  # of the correlation, however much noise there is
_CHANCE = 0.1  # by how much the evidence must be above in the end


class Asked(NamedTuple):
    """How pairs are registered.

    Attributes:
        steps: the most local transformations; None: so many more than the network places, ``GROWN``, ``GROWN_TO_BE_SURE``.
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


class _Begun(NamedTuple):
    """Pairs as they are seen from their start, and what was found for them; every array is ``[N, ...]``."""

    found: Found
    affine: Affine
    seen: list[View]


class Answer(NamedTuple):
    """What is known of ``N`` pairs.

    Attributes:
        gaussians: the local transformations, fields ``[N, T, ...]``.
        affine: the start before them, fields ``[N, ...]``.
        doubt: ``[N]``, see ``judgement``.
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

    Once it is decided from where, the sequence goes on.

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
    looks, wanted = min(most, model.steps) if asked.refine else most, _wanted(asked, fixed.shape[1:])
    options = {"wanted": wanted, "refine": asked.refine}
    if model.ndim == 3 and asked.refine:
        mask = np.ones(fixed.shape, bool) if mask is None else mask  # the same programs with one as without
        propose = functools.partial(sequence.propose, copy_to_all(params, len(fixed)), model, steps=looks)
        find, proceed = functools.partial(volume.find, most=most, propose=propose, **options), volume.proceed
    else:
        find, proceed = functools.partial(sequence.find, params, model, looks=looks, **options), sequence.proceed
    begun = _from_starts(find, model, fixed, moving, mask, asked)
    failed = statuses(np.asarray(begun.found.judged.doubt)) == FAILED
    failed &= np.asarray(begun.found.judged.correlation) < _OF_A_KIND
    if asked.refine and failed.any():
        exchanged = _from_starts(find, model, fixed, -np.asarray(moving, np.float32), mask, asked, concerned=failed)
        failed &= statuses(np.asarray(exchanged.found.judged.doubt)) != FAILED
        begun = _chosen(failed, exchanged, begun)
    if most == looks and (model.ndim == 2 or not asked.refine):
        return _answer(begun)
    return _answer(begun._replace(found=proceed(begun.seen, begun.found, wanted, most=most, refine=asked.refine)))


def _from_starts(
    find: Callable[..., Found],
    model: ModelConfig,
    fixed: np.ndarray,
    moving: np.ndarray,
    mask: np.ndarray | None,
    asked: Asked,
    concerned: np.ndarray | None = None,
) -> _Begun:
    """Where pairs still differ, be it by noise, they are registered from another start: kept where they match better by it."""
    views = functools.partial(sequence.views, model, fixed, refine=asked.refine)
    seen = views(moving, mask)
    extent = _extent(fixed.shape[1:], asked.spacing)

    look = functools.partial(_from_both_sides, find, concerned=concerned) if model.ndim == 2 and asked.refine else find

    def begin(affine: Affine) -> _Begun:
        moved, there = sequence.move(moving, affine)
        carried = views(moved, there if mask is None else there & mask)
        return _Begun(look(seen=carried), affine, carried)

    if asked.start not in ("auto", "none"):
        return begin(sequence.start(_for_start(seen), np.ones(len(fixed), bool), extent, kind=asked.start).affine)
    found = look(seen=seen)
    begun = _Begun(found, identity(len(fixed), model.ndim), seen)
    wanted = statuses(np.asarray(found.judged.differs)) != GOOD
    if asked.start == "none" or not asked.refine or not wanted.any():
        return begun
    started = sequence.start(_for_start(seen), wanted, extent, kind="affine")
    before = _evidence(found, seen[0])
    wanted &= np.asarray(started.significance) > _DEVIATIONS
    wanted &= np.asarray(evidence(started.correlation, started.overlap)) > before - _WITHIN_REACH
    if not wanted.any():
        return begun
    again = begin(started.affine)
    correlation = np.asarray(again.found.judged.correlation)
    better = (_evidence(again.found, seen[0]) > before + _CHANCE) & (correlation > _LEAST_CORRELATION)
    as_well = correlation > np.asarray(found.judged.correlation) - _AS_WELL - _owed_to_noise(found)
    wanted &= better | (as_well & _is_still(again.found) & ~_is_still(found))
    return _chosen(wanted, again, begun)


def _from_both_sides(find: Callable[..., Found], seen: list[View], concerned: np.ndarray | None = None) -> Found:
    """What is found; where that is not good, what is found by looking in a mirror, if it leaves far less doubt.

    Only pairs that are ``concerned [N]`` are looked at again; by default all.
    """
    found = find(seen=seen)
    doubt = np.asarray(found.judged.doubt)
    unsure = (statuses(doubt) != GOOD) & (True if concerned is None else concerned)
    if not unsure.any():
        return found
    mirrored = find(seen=seen, needed=unsure, mirrored=True)
    return _either(unsure & (np.asarray(mirrored.judged.doubt) < _FAR_LESS * doubt), mirrored, found)


def _for_start(seen: list[View]) -> View:
    """The view on which a start is found: the finest, of volumes the coarsest, which has as many pixels."""
    return seen[0] if seen[0].fixed.ndim == 5 else seen[-1]


def _answer(begun: _Begun) -> Answer:
    found = begun.found
    return Answer(found.gaussians, begun.affine, found.judged.doubt, found.covariance, found.stopped, found.stages)


def _most(model: ModelConfig, asked: Asked) -> int:
    """The most local transformations where no number was asked for: of the network alone as many as its config says."""
    if not asked.refine:
        return model.steps
    placed = model.steps if model.ndim == 2 else max(model.steps, _IN_VOLUMES)
    return placed + (GROWN if asked.tolerance_mm is None else GROWN_TO_BE_SURE)


def _wanted(asked: Asked, shape: tuple[int, ...]) -> Wanted:
    return Wanted(np.float32(asked.tolerance_mm or 0.0), _extent(shape, asked.spacing) / 2)


def outer(gaussians: Gaussians, affine: Affine) -> Gaussians:
    """The local transformations as they add to the affine map: ``A (x + l(x)) + b`` is ``A x + b`` plus ``A l(x)``."""
    return gaussians._replace(weight=jnp.einsum("nij,ntj->nti", affine.matrix, gaussians.weight))


def _extent(shape: tuple[int, ...], spacing: Sequence[float] | None) -> np.ndarray:
    """How far images reach along every component, in the spacing's unit."""
    pixels = np.array(shape[::-1], np.float32) - 1.0
    return pixels if spacing is None else pixels * np.asarray(spacing, np.float32)[: len(shape)]


def _evidence(found: Found, seen: View) -> np.ndarray:
    """What speaks for what was found, of the pixels that count."""
    whole = math.prod(seen.fixed.shape[1:-1])
    pixels = whole if seen.mask is None else jnp.maximum(jnp.sum(seen.mask, axis=tuple(range(1, seen.mask.ndim))), 1)
    return np.asarray(evidence(found.judged.correlation, found.judged.compared / pixels))


def _owed_to_noise(found: Found) -> np.ndarray:
    """How much of the correlation local transformations may owe to noise that they were fitted to.

    About what noise leaves of a doubt: images that differ by a share ``s`` of their power correlate by ``1 - s``.
    """
    return np.minimum(np.asarray(found.judged.differs - found.judged.doubt), _MOST_OWED)


def _is_still(found: Found) -> np.ndarray:
    """Of which pairs no local transformation does anything."""
    return ~np.asarray(found.gaussians.weight).any(axis=(1, 2))


def _chosen(condition: np.ndarray, chosen: _Begun, other: _Begun) -> _Begun:
    """Of pairs ``[N]`` the first's where ``condition``, else the second's; without a mask all pixels count."""
    chosen, other = (begun._replace(seen=[_masked(view) for view in begun.seen]) for begun in (chosen, other))
    return _either(condition, chosen, other)


def _either(condition: np.ndarray, chosen: Any, other: Any) -> Any:
    """Of trees of arrays ``[N, ...]`` the first's rows where ``condition [N]``, else the second's."""
    return jax.tree.map(lambda a, b: np.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b), chosen, other)


def _masked(view: View) -> View:
    return view if view.mask is not None else view._replace(mask=np.ones(view.fixed.shape[:-1], bool))
