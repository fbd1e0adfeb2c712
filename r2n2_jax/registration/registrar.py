"""The public API: load a network, register a pair or a series.

Images are ``[*spatial]``, of any range, NumPy in and out.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r2n2_jax.config import Config, Precision
from r2n2_jax.data.fixed_frame import mean_position_frame
from r2n2_jax.errors import InputError
from r2n2_jax.io.geometry import Placement, placement, same_grid
from r2n2_jax.io.images import Image, ImageLike, as_image, check_pixels
from r2n2_jax.pretrained import package
from r2n2_jax.pretrained.checkpoints import Checkpoints
from r2n2_jax.registration.painted import painted
from r2n2_jax.registration.result import Registration
from r2n2_jax.registration.search import Answer, Asked, Start, outer, search
from r2n2_jax.registration.sequence import apply, place
from r2n2_jax.runtime.devices import chunks, in_chunks

REFINE = 10  # steps of refinement where no other number is asked for

_AT_ONCE = {"cpu": 5}  # pairs that a device registers together; as many as a B-spline is fitted to
_ACCELERATORS_AT_ONCE = 16
_MOST_PIXELS = 1 << 23  # of all pairs together: fields and pictures of many cores' pairs would fill the memory
_LEAST_OVERLAP = 0.25


class Registrar:
    """A trained network.

    Attributes:
        config: what it was trained with.
        params: its weights.
    """

    def __init__(self, config: Config, params: Any):
        self.config = config
        self.params = params

    def register(
        self,
        fixed: ImageLike,
        moving: ImageLike,
        *,
        steps: int | None = None,
        refine: int = REFINE,
        start: Start = "auto",
        tolerance_mm: float | None = None,
        mask: np.ndarray | None = None,
    ) -> Registration:
        """Registers one pair.

        Images on different grids are brought together by where they lie: the network looks at the moving image on the fixed
        one's grid; the warped image is interpolated once, from the moving image's own pixels.

        Args:
            fixed: an array ``[*spatial]`` of any size and intensity range, or a SimpleITK image.
            moving: the same; an array must have the fixed one's shape.
            steps: local transformations at most; by default 16 more than the network places (the package's 20), with a
                tolerance 28 more; of volumes 40 and 52. Those that earn their place are added where the images still differ.
                Where nothing is refined, the network places them all, by default as many as its config says.
            refine: Levenberg-Marquardt steps on them, for this pair alone: so many at the model's resolution, then half as many
                at twice that, where the images have it. 0: the network alone.
            start: what may come before the local transformations: nothing, a translation, a translation and a turn, an affine
                map. ``auto``: an affine one, where the images do not match without it and match better with it; none where
                nothing is refined.
            tolerance_mm: the accuracy that is wanted: local transformations are added until the displacement's standard
                deviation, the mean over the image, is no larger. By default none is looked at.
            mask: ``[*spatial]``, not zero at the fixed image's pixels that are looked at; by default all but what is
                painted before the scene, ``Registration.left_out``.

        Raises:
            InputError: where the images do not match the model or each other, are not finite, or constant; or where the mask
                is of another shape or holds nothing.
        """
        fixed, moving = as_image(fixed, "the fixed image"), as_image(moving, "the moving image")
        for image in (fixed, moving):
            self._check(image.pixels, image.name)
        mask = None if mask is None else _checked_mask(mask, fixed.pixels.shape)
        placed = _placement(fixed, moving)
        pixels = moving.pixels
        compared, covered = pixels, np.ones(fixed.pixels.shape, bool)
        if placed is not None:
            pixels = pixels.reshape(moving.geometry.size[::-1])
            compared, covered = map(np.asarray, place(pixels, placed, shape=fixed.pixels.shape))
            mask = _checked_overlap(fixed, moving, compared, covered, mask)
        asked = Asked(steps, refine, start, np.take(fixed.geometry.spacing, fixed.geometry.axes), tolerance_mm)
        pair = fixed.pixels[None], compared[None], None if mask is None else mask[None]
        answer, left_out = self._search(*pair, asked)
        applied = apply(answer.gaussians, pixels[None], answer.affine, placed, shape=fixed.pixels.shape)
        parts = applied, outer(answer.gaussians, answer.affine), answer
        applied, gaussians, answer = jax.tree.map(lambda array: np.asarray(array[0]), parts)
        known = answer.doubt, answer.covariance, answer.stopped, answer.stages
        seen = compared, covered
        return Registration(*applied, gaussians, answer.affine, *seen, *known, left_out[0], geometry=fixed.geometry)

    def register_series(
        self,
        frames: np.ndarray,
        fixed: int | None = None,
        *,
        steps: int | None = None,
        refine: int = REFINE,
        start: Start = "auto",
        tolerance_mm: float | None = None,
    ) -> Registration:
        """Registers every frame of a series to one of them.

        Args:
            frames: ``[T, *spatial]``, at least two.
            fixed: index of the frame that stays; by default the one nearest the mean position of the motion.
            steps: local transformations per frame, at most, see ``register``.
            refine: Levenberg-Marquardt steps on them, for each frame alone.
            start: see ``register``.
            tolerance_mm: see ``register``; of frames without spacing, in pixels.

        Raises:
            InputError: see ``register``; or where there is one frame, or no frame ``fixed``.
        """
        frames = np.asarray(frames, np.float32)
        if frames.ndim != self.config.model.ndim + 1 or len(frames) < 2:
            raise InputError(f"a series of shape {frames.shape}; frames [T, *spatial] with T at least 2 are needed")
        for index, frame in enumerate(frames):
            self._check(frame, f"frame {index}")
        index = mean_position_frame(frames) if fixed is None else fixed
        if not 0 <= index < len(frames):
            raise InputError(f"no frame {index} in a series of {len(frames)}")
        fixed_frames = np.broadcast_to(frames[index], frames.shape)
        result = self.register_batch(fixed_frames, frames, steps=steps, refine=refine, start=start, tolerance_mm=tolerance_mm)
        doubt = np.where(np.arange(len(frames)) == index, 0.0, result.doubt)  # there is none about the frame that stays
        return dataclasses.replace(result, doubt=doubt, fixed_frame=index)

    def register_batch(
        self,
        fixed: np.ndarray,
        moving: np.ndarray,
        *,
        steps: int | None = None,
        refine: int = REFINE,
        start: Start = "auto",
        tolerance_mm: float | None = None,
        spacing: Sequence[float] | None = None,
    ) -> Registration:
        """Registers many pairs ``[N, *spatial]`` that were checked already; every array has the axis ``N`` in front.

        ``spacing`` is that of the pixels, in ``(x, y[, z])`` order, by default the same along all axes.
        """
        asked = Asked(steps, refine, start, spacing, tolerance_mm)
        return in_chunks(lambda *pairs: self._register(*pairs, asked), fixed, moving, at_once=_at_once(fixed.shape[1:]))

    def register_chunks(
        self,
        fixed: np.ndarray,
        moving: np.ndarray,
        *,
        mask: np.ndarray | None = None,
        spacing: Sequence[float] | None = None,
        steps: int | None = None,
        refine: int = REFINE,
        start: Start = "auto",
        tolerance_mm: float | None = None,
    ) -> Iterator[Registration]:
        """As ``register_batch``, a few pairs at a time, so that no more than their fields need be held.

        ``mask [*spatial]`` names the fixed images' pixels that are looked at, by default as in ``register``; ``spacing``
        is that of the pixels, in ``(x, y[, z])`` order, by default the same along all axes.
        """

        def register(*pairs: np.ndarray) -> Registration:
            masks = None if mask is None else np.broadcast_to(mask, pairs[0].shape)
            return self._register(*pairs, Asked(steps, refine, start, spacing, tolerance_mm), masks)

        return chunks(register, fixed, moving, at_once=_at_once(fixed.shape[1:]))

    def _register(self, fixed: np.ndarray, moving: np.ndarray, asked: Asked, mask: np.ndarray | None = None) -> Registration:
        """Pairs ``[N, *spatial]`` on one grid."""
        answer, left_out = self._search(fixed, moving, mask, asked)
        applied = apply(answer.gaussians, moving, answer.affine, shape=fixed.shape[1:])
        gaussians, covered = outer(answer.gaussians, answer.affine), np.broadcast_to(True, moving.shape)
        known = jax.tree.map(np.asarray, (answer.doubt, answer.covariance, answer.stopped, answer.stages))
        return Registration(*applied, gaussians, answer.affine, moving, covered, *known, left_out)

    def _search(
        self, fixed: np.ndarray, moving: np.ndarray, mask: np.ndarray | None, asked: Asked
    ) -> tuple[Answer, np.ndarray]:
        """What is found for pairs ``[N, *spatial]``; and, where no mask says what counts, the pixels that were left out."""
        left_out = np.zeros(fixed.shape, bool)
        if mask is None and self.config.model.ndim == 2:  # on volumes nothing is painted
            left_out = np.stack([painted(*pair) for pair in zip(fixed, moving, strict=True)])
            mask = ~left_out if left_out.any() else None
        return search(self.params, self.config.model, fixed, moving, mask, asked), left_out

    def _check(self, image: np.ndarray, name: str) -> None:
        if image.ndim != self.config.model.ndim:
            known = self.config.model.ndim
            volumes = "; load(ndim=3), or a command without --checkpoint, registers volumes; or take one of its slices"
            remedy = volumes if (image.ndim, known) == (3, 2) else ""
            raise InputError(f"{name} is {image.ndim}D, of shape {image.shape}; this network registers {known}D images{remedy}")
        check_pixels(image, name)


def load(checkpoint: str | Path = package.NAME, *, ndim: int = 2, precision: Precision | None = None) -> Registrar:
    """A trained network: the one that comes with the package, or a training run's at its best validation.

    Args:
        checkpoint: ``"pretrained"``, or the run's ``--workdir``.
        ndim: dimensions of the images, 2 or 3, where it is ``"pretrained"``.
        precision: what the network's convolutions compute with; by default as in training.

    Raises:
        InputError: where there is no checkpoint, or images have another number of dimensions.
    """
    if ndim not in (2, 3):
        raise InputError(f"images of {ndim} dimensions; 2 or 3 are known")
    if str(checkpoint) == package.NAME:
        config, params = package.restore(ndim=ndim)
    else:
        with Checkpoints(Path(checkpoint)) as checkpoints:
            config, params = checkpoints.restore_best()
    if precision is not None:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, precision=precision))
    return Registrar(config, params)


def _placement(fixed: Image, moving: Image) -> Placement | None:
    """Where the fixed image's points lie in the moving one; None where they are on one grid."""
    if fixed.is_array or moving.is_array:
        if fixed.pixels.shape != moving.pixels.shape:
            shapes = f"the fixed image has the shape {fixed.pixels.shape}, the moving one {moving.pixels.shape}"
            raise InputError(f"{shapes}; arrays must be of one shape")
        return None
    if same_grid(fixed.geometry, moving.geometry):
        return None
    if len(fixed.geometry.size) != len(moving.geometry.size):
        raise InputError(
            f"{moving.name} lies in {len(moving.geometry.size)} dimensions and {fixed.name} in {len(fixed.geometry.size)}; "
            "both must lie in as many"
        )
    if not (fixed.geometry.is_placed and moving.geometry.is_placed):
        raise InputError(
            f"{moving.name} is of size {moving.geometry.size}, spacing {moving.geometry.spacing}, {fixed.name} of "
            f"{fixed.geometry.size}, {fixed.geometry.spacing}: they must match where not both say where they lie"
        )
    return placement(fixed.geometry, moving.geometry)


def _checked_overlap(
    fixed: Image, moving: Image, compared: np.ndarray, covered: np.ndarray, mask: np.ndarray | None
) -> np.ndarray:
    """The pixels of the fixed grid that count: those that the moving image covers, in the mask."""
    if covered.mean() < _LEAST_OVERLAP:
        raise InputError(
            f"{moving.name} lies apart: it covers {100 * covered.mean():.0f} % of {fixed.name}; at least "
            f"{100 * _LEAST_OVERLAP:.0f} % are needed (their spacing, origin and direction say where they lie)"
        )
    check_pixels(compared, f"{moving.name}, on the grid of {fixed.name}")
    counted = covered if mask is None else covered & mask
    if not counted.any():
        raise InputError(f"the mask lies where {moving.name} shows nothing; they must overlap")
    return counted


def _checked_mask(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.asarray(mask) != 0
    if mask.shape != shape:
        raise InputError(f"a mask of shape {mask.shape}; the fixed image has {shape}")
    if not mask.any():
        raise InputError("a mask that is zero everywhere; the pixels that count are not zero")
    return mask


def _at_once(shape: tuple[int, ...]) -> int:
    """How many pairs of images ``[*shape]`` a device registers together."""
    fitting = _MOST_PIXELS // (math.prod(shape) * jax.local_device_count())
    return max(1, min(fitting, _AT_ONCE.get(jax.default_backend(), _ACCELERATORS_AT_ONCE)))
