"""Pure, jitted array operations: one image at a time, float32, normalised units, 2D and 3D by shape.

Images are ``[*spatial, C]``, points and displacements ``[..., d]`` in ``(x, y[, z])`` order on the domain ``[-1, 1]^d``.
Nothing here imports another part of the package.
"""

from r2n2_jax.ops import (
    brightness,
    gaussian,
    grid,
    intensity,
    jacobian,
    local_contrast,
    regularisers,
    similarity,
    spatial_softmax,
    strain,
    warp,
)

__all__ = [
    "brightness",
    "gaussian",
    "grid",
    "intensity",
    "jacobian",
    "local_contrast",
    "regularisers",
    "similarity",
    "spatial_softmax",
    "strain",
    "warp",
]
