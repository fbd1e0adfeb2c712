r"""Strain of a map ``x -> x + f(x)`` at ONE set of points, from its derivative ``[..., d, d]``, float32."""

import jax
import jax.numpy as jnp

Array = jax.Array


@jax.jit
def principal_strains(deformation: Array) -> Array:
    r"""The principal Green-Lagrange strains, the largest first: the eigenvalues of :math:`\tfrac12 (F^T F - I)`.

    A piece that is as long as before has 0, one stretched by a factor ``s`` has ``(s^2 - 1) / 2``; a turn strains nothing.

    Args:
        deformation: ``F = I + df/dx``, ``[..., d, d]``, in the same unit of length along all coordinates.

    Returns:
        ``[..., d]``.

    References:
        Holzapfel, Nonlinear Solid Mechanics, 2000, section 2.5.
    """
    green = 0.5 * (jnp.einsum("...ki,...kj->...ij", deformation, deformation) - _identity(deformation))
    return jnp.linalg.eigvalsh(green)[..., ::-1]


def _identity(like: Array) -> Array:
    return jnp.broadcast_to(jnp.eye(like.shape[-1], dtype=like.dtype), like.shape)
