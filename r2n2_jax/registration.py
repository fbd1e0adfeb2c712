"""The public API: load a checkpoint, register a pair or a series. Images ``[*spatial]``, any range, NumPy in and out."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r2n2_jax import pretrained
from r2n2_jax.config import Config, Precision
from r2n2_jax.data.series import fixed_frame
from r2n2_jax.devices import chunks, in_chunks
from r2n2_jax.errors import InputError
from r2n2_jax.files import new_folder, write_json
from r2n2_jax.geometry import Geometry
from r2n2_jax.inference import register_pairs
from r2n2_jax.io import (
    Image,
    ImageLike,
    as_image,
    check_pixels,
    displacement_transform,
    is_placed,
    resample,
    same_grid,
    write_displacement,
    write_image,
)
from r2n2_jax.ops.gaussian import Gaussians, displacement
from r2n2_jax.training.checkpoint import Checkpoints

Array = jax.Array

_SHARE = {"cpu": 5}  # pairs that a device registers at once; as many as a B-spline is fitted to
_ACCELERATORS_SHARE = 16
_MOST_PIXELS = 1 << 23  # of all pairs at once: fields and pictures of many cores' share would fill the memory
_LEAST_OVERLAP = 0.25
EVERYDAY_REFINE = 10  # where no other number is asked for
CONVENTION = (
    "warped(x) = moving(x + f(x)), f(x) = sum of weight exp(-1/2 (x - position)^T Sigma^-1 (x - position)), "
    "Sigma = R(rotation) diag(variance) R(rotation)^T; components (x, y[, z]), x along image columns; pixel centres "
    "span [-1, 1] on each axis; rotation in radians"
)


@dataclasses.dataclass(frozen=True)
class Registration:
    """A registered pair, or a series of them with a frame axis in front of every array.

    Attributes:
        displacement: ``[*spatial, d]`` in ``(x, y[, z])`` order, normalised, on the fixed image's own grid:
            ``warped(x) = moving(x + displacement(x))``.
        warped: ``[*spatial]``, the moving image in the fixed image's position, in its own intensities; zero where it is not
            ``inside``.
        inside: ``[*spatial]`` bool, the pixels that see the moving image.
        parameters: the ``steps`` local transformations, fields ``[steps, ...]``; they ARE the result.
        steps: how many.
        fixed_frame: index of the frame a series was registered to; None for a pair.
        geometry: of the fixed image's grid; of a series of arrays, pixels.
    """

    displacement: np.ndarray
    warped: np.ndarray
    inside: np.ndarray
    parameters: Gaussians
    steps: int
    fixed_frame: int | None = None
    geometry: Geometry | None = None

    def points(self, points: np.ndarray) -> np.ndarray:
        """Fixed points ``[..., d]`` (normalised) carried to their places in the moving image, exactly: ``x + f(x)``.

        For a series the result has the frame axis in front.
        """
        points = jnp.asarray(points, jnp.float32)
        axes = self.displacement.shape[-1]
        if points.ndim == 0 or points.shape[-1] != axes:
            raise InputError(f"points of shape {points.shape}; the last axis holds the {axes} normalised coordinates")
        field = jax.vmap(_displacement, in_axes=(0, None)) if self._is_series else _displacement
        carried = field(self.parameters, points)
        return np.asarray(points[(None,) * (carried.ndim - points.ndim)] + carried)

    def transform(self, frame: int | None = None) -> Any:
        """The field as a ``SimpleITK.DisplacementFieldTransform``: physical points, fixed to moving, as Resample wants it.

        Args:
            frame: of a series, which one's.
        """
        return displacement_transform(self._of(frame).displacement, self._geometry())

    def describe(self) -> dict[str, Any]:
        """The local transformations of a pair as plain lists, with the convention they are in."""
        fields = {name: np.asarray(values, np.float64).tolist() for name, values in self.parameters._asdict().items()}
        return {
            "convention": CONVENTION,
            "steps": self.steps,
            "transformations": [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)],
        }

    def save(self, folder: str | Path) -> None:
        """Writes ``warped.nii.gz``, ``displacement.nii.gz`` (millimetres, as ITK applies it) and ``parameters.json`` of a pair.

        Raises:
            InputError: where the folder holds something already, or the result is a series'.
        """
        if self._is_series:
            raise InputError("the result of a series: save its frames one by one, result.frame(t).save(folder)")
        with new_folder(Path(folder)) as partial:
            self.write(partial)

    def write(self, folder: Path) -> None:
        """As ``save``, into an existing folder."""
        write_image(folder / "warped.nii.gz", self.warped, self._geometry())
        write_displacement(folder / "displacement.nii.gz", self.displacement, self._geometry())
        write_json(folder / "parameters.json", self.describe())

    def frame(self, index: int) -> "Registration":
        """One pair of a series."""
        one = jax.tree.map(lambda array: array[index], self)
        return dataclasses.replace(one, fixed_frame=None)

    @property
    def _is_series(self) -> bool:
        return np.ndim(self.parameters.position) == 3

    def _of(self, frame: int | None) -> "Registration":
        if self._is_series != (frame is not None):
            raise InputError("transform(frame) is for a series, transform() for a pair")
        return self if frame is None else self.frame(frame)

    def _geometry(self) -> Geometry:
        shape = self.warped.shape[1:] if self._is_series else self.warped.shape
        return as_image(np.zeros(shape), "").geometry if self.geometry is None else self.geometry


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
        refine: int = EVERYDAY_REFINE,
        mask: np.ndarray | None = None,
    ) -> Registration:
        """Registers one pair.

        Images on different grids are brought together by where they lie: the network looks at the moving image on the fixed
        one's grid; the warped image is interpolated once, from the moving image's own pixels.

        Args:
            fixed: an array ``[*spatial]`` of any size and intensity range, or a SimpleITK image.
            moving: the same; an array must have the fixed one's shape.
            steps: local transformations; by default as many as in training.
            refine: Levenberg-Marquardt steps on them, for this pair alone: so many at the model's resolution, then half as many
                at twice that, where the images have it. 0: the network alone.
            mask: ``[*spatial]``, not zero at the fixed image's pixels that refinement looks at; by default all.

        Raises:
            InputError: where the images do not match the model or each other, are not finite, or constant; or where the mask
                is of another shape or holds nothing.
        """
        arrays = not (is_placed(fixed) and is_placed(moving))
        fixed, moving = as_image(fixed, "the fixed image"), as_image(moving, "the moving image")
        names = [str(image.path or name) for image, name in ((fixed, "the fixed image"), (moving, "the moving image"))]
        self._check(fixed.pixels, names[0])
        self._check(moving.pixels, names[1])
        if arrays and fixed.pixels.shape != moving.pixels.shape:
            shapes = f"the fixed image has the shape {fixed.pixels.shape}, the moving one {moving.pixels.shape}"
            raise InputError(f"{shapes}; arrays must be of one shape")
        apart = not arrays and not same_grid(fixed.geometry, moving.geometry)
        if mask is not None:
            mask = _checked_mask(mask, fixed.pixels.shape)
        looked_at = moving.pixels
        if apart:
            looked_at, covered = _on_grid_of(fixed, moving, names)
            mask = covered if mask is None else covered & mask
            if not mask.any():
                raise InputError(f"the mask lies where {names[1]} shows nothing; they must overlap")
        result = self._run(fixed.pixels[None], looked_at[None], steps, refine, mask)
        result = dataclasses.replace(jax.tree.map(lambda array: np.asarray(array[0]), result), geometry=fixed.geometry)
        if not apart:
            return result
        warped, seen = resample(moving, fixed.geometry, result.displacement)
        return dataclasses.replace(result, warped=warped, inside=seen)

    def register_series(
        self, frames: np.ndarray, fixed: int | None = None, *, steps: int | None = None, refine: int = EVERYDAY_REFINE
    ) -> Registration:
        """Registers every frame of a series to one of them.

        Args:
            frames: ``[T, *spatial]``, at least two.
            fixed: index of the frame that stays; by default the one nearest the mean position of the motion.
            steps: local transformations per frame; by default as many as in training.
            refine: Levenberg-Marquardt steps on them, for each frame alone.

        Raises:
            InputError: see ``register``; or where there is one frame, or no frame ``fixed``.
        """
        frames = np.asarray(frames, np.float32)
        if frames.ndim != self.config.model.ndim + 1 or len(frames) < 2:
            raise InputError(f"a series of shape {frames.shape}; frames [T, *spatial] with T at least 2 are needed")
        for index, frame in enumerate(frames):
            self._check(frame, f"frame {index}")
        index = fixed_frame(frames) if fixed is None else fixed
        if not 0 <= index < len(frames):
            raise InputError(f"no frame {index} in a series of {len(frames)}")
        result = self.register_batch(np.broadcast_to(frames[index], frames.shape), frames, steps=steps, refine=refine)
        return dataclasses.replace(result, fixed_frame=index)

    def register_batch(
        self, fixed: np.ndarray, moving: np.ndarray, *, steps: int | None = None, refine: int = 0
    ) -> Registration:
        """Registers many pairs ``[N, *spatial]`` that were checked already; every array has the axis ``N`` in front."""
        return in_chunks(lambda *pairs: self._run(*pairs, steps, refine), fixed, moving, share=_share(fixed.shape[1:]))

    def register_chunks(
        self,
        fixed: np.ndarray,
        moving: np.ndarray,
        *,
        mask: np.ndarray | None = None,
        steps: int | None = None,
        refine: int = 0,
    ) -> Iterator[Registration]:
        """As ``register_batch``, a few pairs at a time, so that no more than their fields need be held.

        ``mask [*spatial]`` names the fixed images' pixels that refinement looks at.
        """
        return chunks(lambda *pairs: self._run(*pairs, steps, refine, mask), fixed, moving, share=_share(fixed.shape[1:]))

    def _run(
        self, fixed: np.ndarray, moving: np.ndarray, steps: int | None, refine: int, mask: np.ndarray | None = None
    ) -> Registration:
        model = self.config.model
        count = model.steps if steps is None else steps
        if count < 1:
            raise InputError(f"{count} steps; at least one is needed")
        if refine < 0:
            raise InputError(f"{refine} steps of refinement; none (0) or more are needed")
        answer = register_pairs(self.params, model, fixed, moving, steps=count, refine=refine, mask=mask)
        return Registration(answer.displacement, answer.warped, answer.inside, answer.gaussians, count)

    def _check(self, image: np.ndarray, name: str) -> None:
        if image.ndim != self.config.model.ndim:
            known = self.config.model.ndim
            remedy = "; take one of its slices" if (image.ndim, known) == (3, 2) else ""
            raise InputError(f"{name} is {image.ndim}D, of shape {image.shape}; this network registers {known}D images{remedy}")
        check_pixels(image, name)


jax.tree_util.register_dataclass(
    Registration,
    data_fields=["displacement", "warped", "inside", "parameters"],
    meta_fields=["steps", "fixed_frame", "geometry"],
)


def _on_grid_of(fixed: Image, moving: Image, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The moving image on the fixed one's grid, undisplaced, and which of the grid's pixels it covers."""
    if len(fixed.geometry.size) != len(moving.geometry.size):
        raise InputError(
            f"{names[1]} lies in {len(moving.geometry.size)} dimensions and {names[0]} in {len(fixed.geometry.size)}; "
            "both must lie in as many"
        )
    if not (fixed.geometry.is_placed and moving.geometry.is_placed):
        raise InputError(
            f"{names[1]} is of size {moving.geometry.size}, spacing {moving.geometry.spacing}, {names[0]} of "
            f"{fixed.geometry.size}, {fixed.geometry.spacing}: they must match where not both say where they lie"
        )
    pixels, seen = resample(moving, fixed.geometry)
    if seen.mean() < _LEAST_OVERLAP:
        raise InputError(
            f"{names[1]} lies apart: it covers {100 * seen.mean():.0f} % of {names[0]}; at least "
            f"{100 * _LEAST_OVERLAP:.0f} % are needed (their spacing, origin and direction say where they lie)"
        )
    check_pixels(pixels, f"{names[1]}, on the grid of {names[0]}")
    return pixels, seen


def _checked_mask(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.asarray(mask) != 0
    if mask.shape != shape:
        raise InputError(f"a mask of shape {mask.shape}; the fixed image has {shape}")
    if not mask.any():
        raise InputError("a mask that is zero everywhere; the pixels that count are not zero")
    return mask


def _share(shape: tuple[int, ...]) -> int:
    """How many pairs of images ``[*shape]`` a device registers at once."""
    fitting = _MOST_PIXELS // (math.prod(shape) * jax.local_device_count())
    return max(1, min(fitting, _SHARE.get(jax.default_backend(), _ACCELERATORS_SHARE)))


def load(checkpoint: str | Path = pretrained.NAME, *, precision: Precision | None = None) -> Registrar:
    """A trained network: the one that comes with the package, or a training run's at its best validation.

    Args:
        checkpoint: ``"pretrained"``, or the run's ``--workdir``.
        precision: what the network's convolutions compute with; by default as in training.

    Raises:
        InputError: where there is no checkpoint.
    """
    config, params = pretrained.restore() if str(checkpoint) == pretrained.NAME else _restore_best(Path(checkpoint))
    if precision is not None:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, precision=precision))
    return Registrar(config, params)


def _restore_best(workdir: Path) -> tuple[Config, Any]:
    checkpoints = Checkpoints(workdir)
    try:
        return checkpoints.restore_best()
    finally:
        checkpoints.close()


_displacement = jax.jit(displacement)
