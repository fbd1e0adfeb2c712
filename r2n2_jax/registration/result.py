"""What a registration answers: one pair, or a series of them.

Its arrays are NumPy's, ``[*spatial]``, on the fixed image's own grid.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r2n2_jax.errors import InputError
from r2n2_jax.io.files import new_folder, write_json
from r2n2_jax.io.geometry import Geometry, pixel_grid
from r2n2_jax.io.images import displacement_transform, write_displacement, write_image
from r2n2_jax.ops.affine import Affine, shift
from r2n2_jax.ops.gaussian import Gaussians, displacement, displacement_gradient
from r2n2_jax.ops.grid import coordinates, half_extent
from r2n2_jax.ops.strain import principal_strains
from r2n2_jax.registration.course import ENDINGS, Stages
from r2n2_jax.registration.posterior import deviation, spread
from r2n2_jax.registration.trust import statuses

CONVENTION = (
    "warped(x) = moving(x + f(x)), f(x) = matrix x + offset - x + sum of weight exp(-1/2 (x - position)^T Sigma^-1 "
    "(x - position)), Sigma = R(rotation) diag(variance) R(rotation)^T; components (x, y[, z]), x along image columns; pixel "
    "centres span [-1, 1] on each axis; rotation in radians"
)


class Deformation(NamedTuple):
    """What a map does to the neighbourhood of points, in millimetres along the image's axes.

    Attributes:
        matrix: ``[..., d, d]``, the derivative of the carried point's component ``i`` along the coordinate ``j``.
    """

    matrix: np.ndarray

    @property
    def determinant(self) -> np.ndarray:
        """``[...]``, volume in the moving image over volume in the fixed one; not positive where the map folds."""
        return np.linalg.det(self.matrix)

    @property
    def strains(self) -> np.ndarray:
        """``[..., d]``, the principal strains, the largest first, see ``ops.strain``."""
        return np.asarray(principal_strains(self.matrix))


@dataclasses.dataclass(frozen=True)
class Registration:
    """A registered pair, or a series of them with a frame axis in front of every array.

    Attributes:
        displacement: ``[*spatial, d]`` in ``(x, y[, z])`` order, normalised, on the fixed image's own grid:
            ``warped(x) = moving(x + displacement(x))``.
        warped: ``[*spatial]``, the moving image in the fixed image's position, in its own intensities; zero where it is not
            ``inside``.
        inside: ``[*spatial]`` bool, the pixels that see the moving image.
        parameters: the local transformations, fields ``[T, ...]``, of which those of no weight were not needed; with ``affine``
            they ARE the result.
        affine: the map that they start from, fields ``[d, d]`` and ``[d]``; the identity where there was no other start.
        moving: ``[*spatial]``, the moving image as it was compared: undisplaced, on the fixed image's grid.
        covered: ``[*spatial]`` bool, the pixels of that grid on which the undisplaced moving image lies.
        doubt: ``[]``, what speaks against trusting it; 0: nothing. ``status`` says it in a word.
        posterior: ``[P, P]``, how sure the local transformations' ``P`` numbers are; ``covariance`` says it of points.
        ending: ``[]``, why the sequence ended; ``stopped`` says it in words.
        stages: how it went there, fields ``[stages]``, NaN after the last; deviations in millimetres.
        left_out: ``[*spatial]`` bool, the pixels that did not count, as something that stays is painted there, see ``painted``;
            none where a mask said what counts.
        fixed_frame: index of the frame a series was registered to; None for a pair.
        geometry: of the fixed image's grid; of a series of arrays, pixels.
    """

    displacement: np.ndarray
    warped: np.ndarray
    inside: np.ndarray
    parameters: Gaussians
    affine: Affine
    moving: np.ndarray
    covered: np.ndarray
    doubt: np.ndarray
    posterior: np.ndarray
    ending: np.ndarray
    stages: Stages
    left_out: np.ndarray
    fixed_frame: int | None = None
    geometry: Geometry | None = None

    @property
    def status(self) -> str | np.ndarray:
        """Whether to trust it: "good", "uncertain" or "failed"; of a series ``[N]`` of them."""
        found = statuses(self.doubt)
        return found if self._is_series else str(found)

    @property
    def steps(self) -> int | np.ndarray:
        """How many local transformations it took; of a series ``[N]``."""
        used = np.asarray(self.parameters.weight).any(axis=-1).sum(axis=-1)
        return used if self._is_series else int(used)

    @property
    def stopped(self) -> str | np.ndarray:
        """Why the sequence ended: "sure", "nothing left to gain" or "budget"; of a series ``[N]`` of them."""
        found = np.asarray(ENDINGS)[np.asarray(self.ending)]
        return found if self._is_series else str(found)

    def points(self, points: np.ndarray) -> np.ndarray:
        """Fixed points ``[..., d]`` (normalised) carried to their places in the moving image, exactly: ``x + f(x)``.

        For a series the result has the frame axis in front.
        """
        carried = self._at_points(_field, self.parameters, self.affine, points=points)
        points = np.asarray(points, np.float32)
        return points[(None,) * (carried.ndim - points.ndim)] + carried

    def covariance(self, points: np.ndarray) -> np.ndarray:
        """How sure the places of carried points are: the covariance of their displacement, square millimetres.

        Args:
            points: ``[..., d]``, fixed points, normalised.

        Returns:
            ``[..., d, d]``, along the image's axes, for a series with the frame axis in front. A start is taken as it is.
        """
        millimetres = self._millimetres()
        found = self._at_points(spread, self._inner(), self.posterior, self.affine, points=points)
        return found * millimetres[:, None] * millimetres

    def deviation(self, points: np.ndarray) -> np.ndarray:
        """The standard deviation of the displacement at points, the root of its mean squared length: ``[...]``, millimetres."""
        return np.sqrt(np.maximum(np.trace(self.covariance(points), axis1=-2, axis2=-1), 0.0))

    def uncertainty(self, frame: int | None = None) -> np.ndarray:
        """``deviation`` at every pixel, ``[*spatial]``.

        Args:
            frame: of a series, which one's.
        """
        one = self._of(frame)
        points = coordinates(one.warped.shape)
        return np.asarray(deviation(one._inner(), one.posterior, one.affine, points, one._millimetres()))

    def jacobian(self, points: np.ndarray) -> Deformation:
        """The exact derivative of the map from fixed to moving points, at fixed points ``[..., d]``, normalised.

        For a series the result has the frame axis in front.
        """
        slopes = self._at_points(_gradient, self.parameters, self.affine, points=points)
        millimetres = self._millimetres()
        return Deformation((slopes + np.eye(len(millimetres), dtype=np.float32)) * millimetres[:, None] / millimetres)

    def transform(self, frame: int | None = None) -> Any:
        """The field as a ``SimpleITK.DisplacementFieldTransform``: physical points, fixed to moving, as Resample wants it.

        Args:
            frame: of a series, which one's.
        """
        return displacement_transform(self._of(frame).displacement, self._geometry())

    def describe(self) -> dict[str, Any]:
        """The status, the affine map and the local transformations of a pair as plain lists, and the convention they are in."""
        fields = {name: np.asarray(values, np.float64).tolist() for name, values in self.parameters._asdict().items()}
        described = [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]
        return {
            "status": self.status,
            "convention": CONVENTION,
            "matrix": np.asarray(self.affine.matrix, np.float64).tolist(),
            "offset": np.asarray(self.affine.offset, np.float64).tolist(),
            "steps": self.steps,
            "stopped": self.stopped,
            "stages": self._stages(),
            "transformations": [one for one in described if any(one["weight"])],
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

    def _stages(self) -> list[dict[str, float]]:
        """Of a pair, those that its sequence has gone through."""
        known = np.stack([np.asarray(part, np.float64) for part in self.stages], axis=-1)
        known = known[np.isfinite(known[:, 0])]
        return [{"steps": int(steps), "doubt": doubt, "deviation_mm": deviation} for steps, doubt, deviation in known.tolist()]

    def _at_points(self, function: Callable[..., jax.Array], *known: Any, points: np.ndarray) -> np.ndarray:
        """A function of what is known of a pair and of points, of every pair."""
        points = jnp.asarray(points, jnp.float32)
        axes = self.displacement.shape[-1]
        if points.ndim == 0 or points.shape[-1] != axes:
            raise InputError(f"points of shape {points.shape}; the last axis holds the {axes} normalised coordinates")
        if self._is_series:
            function = jax.vmap(function, in_axes=(*(0 for _ in known), None))
        return np.asarray(function(*known, points))

    def _inner(self) -> Gaussians:
        """The local transformations before the affine map: ``l`` of ``A (x + l(x)) + b``."""
        weight = np.linalg.solve(self.affine.matrix[..., None, :, :], self.parameters.weight[..., None])[..., 0]
        return self.parameters._replace(weight=weight)

    def _millimetres(self) -> np.ndarray:
        """What 1 is along each axis, ``[d]``."""
        geometry = self._geometry()
        return np.asarray(half_extent(geometry.shape) * np.take(geometry.spacing, geometry.axes), np.float32)

    @property
    def _is_series(self) -> bool:
        return np.ndim(self.parameters.position) == 3

    def _of(self, frame: int | None) -> "Registration":
        if self._is_series != (frame is not None):
            raise InputError("transform(frame) is for a series, transform() for a pair")
        return self if frame is None else self.frame(frame)

    def _geometry(self) -> Geometry:
        shape = self.warped.shape[1:] if self._is_series else self.warped.shape
        return pixel_grid(shape) if self.geometry is None else self.geometry


jax.tree_util.register_dataclass(
    Registration,
    data_fields=[
        "displacement",
        "warped",
        "inside",
        "parameters",
        "affine",
        "moving",
        "covered",
        "doubt",
        "posterior",
        "ending",
        "stages",
        "left_out",
    ],
    meta_fields=["fixed_frame", "geometry"],
)


@jax.jit
def _gradient(gaussians: Gaussians, affine: Affine, points: jax.Array) -> jax.Array:
    """The derivative of ``_field``."""
    local = displacement_gradient(gaussians, points)
    return local + jnp.broadcast_to(affine.matrix - jnp.eye(len(affine.offset)), local.shape)


@jax.jit
def _field(gaussians: Gaussians, affine: Affine, points: jax.Array) -> jax.Array:
    return shift(affine, points) + displacement(gaussians, points)
