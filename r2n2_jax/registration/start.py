r"""A start for what is far: translation, rigid or affine, found for ONE pair before any Gaussian is placed.

The map carries fixed points to the moving image, :math:`x \mapsto A x + b`, normalised units. At 32 pixels per axis (16 in
space) the moving image is turned by steps of a few degrees (45 in space); every shift of every turn is judged at once by the
normalised cross-correlation of what overlaps, by Fourier transforms (Padfield, IEEE TIP 21(5), 2012). The best of them are
refined by Gauss-Newton steps on the images themselves, and the best of these is the start.
"""

import functools
import itertools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r2n2_jax.ops.affine import Affine
from r2n2_jax.ops.gaussian import rotation_matrix
from r2n2_jax.ops.grid import components, coordinates
from r2n2_jax.ops.intensity import resample
from r2n2_jax.ops.warp import inside, sample

Array = jax.Array
Kind = Literal["translation", "rigid", "affine"]

_KINDS: tuple[Kind, ...] = ("translation", "rigid", "affine")
_TURN_DEGREES = 7.5
_COARSE = {2: 32, 3: 16}
_CANDIDATES = 6
_LEAST_OVERLAP = 0.2
_STEPS = 8
_DAMPING = 1e-3
_APART = 2  # coarse pixels between the shifts of two candidates


class Start(NamedTuple):
    """An affine map of fixed points and how well it matches.

    Attributes:
        affine: the map.
        correlation: scalar, the normalised cross-correlation of what overlaps.
        overlap: scalar, the fraction of the fixed image's pixels on which the moving one lies.
        significance: scalar, by how many standard deviations the correlation is above the best that chance alone would find.
    """

    affine: Affine
    correlation: Array
    overlap: Array
    significance: Array


@functools.partial(jax.jit, static_argnames="kind")
def find_start(fixed: Array, moving: Array, mask: Array, extent: Array, *, kind: Kind) -> Start:
    """The best start of a pair.

    Args:
        fixed: ``[*spatial, 1]``, standardised.
        moving: the same shape.
        mask: ``[*spatial]`` bool, the fixed image's pixels that count.
        extent: ``[d]``, how far the images reach along each axis, in any unit: a turn is one of the object, not of the grid.
        kind: what is allowed.
    """
    d = fixed.ndim - 1
    extent = extent / jnp.max(extent)
    turns = jnp.eye(d)[None] if kind == "translation" else _turns(d)
    coarse = [resample(image, (_COARSE[d],) * d) for image in (fixed, moving, mask[..., None].astype(jnp.float32))]
    matrices, offsets = _search(coarse[0], coarse[1], coarse[2][..., 0] >= 0.5, turns, extent)
    small = coarse[0], coarse[1], coarse[2][..., 0] >= 0.5
    found = jax.lax.map(lambda one: _polished(*small, extent, *one, kind=kind), (matrices, offsets))
    best = jax.tree.map(lambda each: each[jnp.argmax(evidence(found.correlation, found.overlap))], found)
    best = _simplest(fixed, moving, mask, extent, best.affine, kind)
    # From the object's units to normalised ones.
    matrix, offset = best.affine
    best = best._replace(significance=_significance(*small[:2], best.correlation, best.overlap, len(turns)))
    return best._replace(affine=Affine(matrix * extent[None] / extent[:, None], offset / extent))


def no_start(d: int) -> Start:
    """The identity, for which nothing speaks."""
    return Start(Affine(jnp.eye(d), jnp.zeros(d)), *(jnp.zeros(()),) * 3)


def evidence(correlation: Array, overlap: Array) -> Array:
    """How much speaks for a match: Fisher's transform of the correlation, by the root of the number of pixels."""
    return jnp.arctanh(jnp.clip(correlation, -0.9999, 0.9999)) * jnp.sqrt(overlap)


def _simplest(fixed: Array, moving: Array, mask: Array, extent: Array, affine: Affine, kind: Kind) -> Start:
    """The affine map polished, or one with fewer numbers where they explain as much: what noise fits best is no turn.

    Of ``k`` numbers and ``n`` independent pixels the best has the lowest ``n log(1 - correlation^2) + k log n`` (Schwarz,
    Annals of Statistics 6(2), 1978).
    """
    d = len(affine.offset)
    kinds = _KINDS[: _KINDS.index(kind) + 1]
    u, _, v = jnp.linalg.svd(affine.matrix)
    matrices = dict(zip(_KINDS, (jnp.eye(d), u @ v, affine.matrix), strict=True))
    found = [_polished(fixed, moving, mask, extent, matrices[each], affine.offset, kind=each) for each in kinds]
    starts = jax.tree.map(lambda *each: jnp.stack(each), *found)
    numbers = jnp.asarray([len(_generators(d, each)) for each in kinds], jnp.float32)
    n = _independent(fixed, moving)
    unexplained = 1.0 - jnp.minimum(starts.correlation, 0.9999) ** 2
    return jax.tree.map(lambda each: each[jnp.argmin(n * jnp.log(unexplained) + jnp.log(n) * numbers)], starts)


def _significance(fixed: Array, moving: Array, correlation: Array, overlap: Array, turns: int) -> Array:
    """How far a correlation is above the largest that unrelated images of this kind have in so many turns and all shifts.

    Of ``m`` independent draws the largest is near ``sqrt(2 log m)``.
    """
    independent = _independent(fixed, moving)
    deviations = jnp.arctanh(jnp.clip(correlation, -0.9999, 0.9999)) * jnp.sqrt(jnp.maximum(independent * overlap - 3.0, 0.0))
    return deviations - jnp.sqrt(2.0 * jnp.log(4.0 * turns * independent))


def _independent(fixed: Array, moving: Array) -> Array:
    """As many independent pixels the images have, as neighbours are alike: ``1 / sum(p q)``, of their normalised power spectra
    ``p`` and ``q`` (Bartlett's formula).
    """
    spectra = [jnp.abs(jnp.fft.fftn(image[..., 0] - jnp.mean(image))) ** 2 for image in (fixed, moving)]
    p, q = (power / jnp.maximum(jnp.sum(power), jnp.finfo(jnp.float32).tiny) for power in spectra)
    return 1.0 / jnp.maximum(jnp.sum(p * q), 1.0 / p.size)


def _turns(d: int) -> Array:
    """Rotation matrices ``[n, d, d]`` that cover all turns: of the plane, or of space about its axes."""
    angles = np.radians(np.arange(0.0, 360.0, _TURN_DEGREES), dtype=np.float32)
    if d == 2:
        return rotation_matrix(jnp.asarray(angles)[:, None])
    coarse = np.radians(np.arange(0.0, 360.0, 45.0), dtype=np.float32)
    return rotation_matrix(jnp.asarray(list(itertools.product(coarse, coarse[:5], coarse))))


def _search(fixed: Array, moving: Array, mask: Array, turns: Array, extent: Array) -> tuple[Array, Array]:
    """The most promising maps, ``[candidates, d, d]`` and ``[candidates, d]``, over all turns and shifts by whole pixels."""
    shape, d = mask.shape, mask.ndim
    padded = tuple(2 * n for n in shape)
    axes = tuple(range(d))
    points = coordinates(shape) * jnp.broadcast_to(extent, (*shape, d))

    def transformed(image: Array) -> Array:
        return jnp.fft.rfftn(image, padded, axes)

    weight = mask.astype(jnp.float32)
    values = fixed[..., 0] * weight
    of_fixed = [transformed(part) for part in (weight, values, values**2)]

    def judge(turn: Array) -> Array:
        """The evidence ``[*padded]`` of all shifts."""
        turned = points @ turn.T / jnp.broadcast_to(extent, points.shape)
        there = inside(turned).astype(jnp.float32)
        image = sample(moving, turned)[..., 0] * there
        of_moving = [jnp.conj(transformed(part)) for part in (there, image, image**2)]

        def over(a: int, b: int) -> Array:
            return jnp.fft.irfftn(of_fixed[a] * of_moving[b], padded, axes)

        count = jnp.maximum(over(0, 0), 1e-3)
        f, m = over(1, 0), over(0, 1)
        covariance = over(1, 1) - f * m / count
        power = jnp.maximum(over(2, 0) - f**2 / count, 0.0) * jnp.maximum(over(0, 2) - m**2 / count, 0.0)
        correlation = covariance / jnp.sqrt(power + 1e-3 * count**2)
        overlap = count / jnp.maximum(jnp.sum(weight), 1.0)
        return jnp.where(overlap >= _LEAST_OVERLAP, evidence(correlation, overlap), -jnp.inf)

    judged = jax.lax.map(judge, turns)
    best = []
    for _ in range(_CANDIDATES):
        turn, *shift = jnp.unravel_index(jnp.argmax(judged), judged.shape)
        best.append((turn, jnp.stack(shift)))
        judged = jnp.where(_near(judged.shape, turn, shift), -jnp.inf, judged)
    turn, shift = (jnp.stack(parts) for parts in zip(*best, strict=True))
    # Correlation of the fixed image with the moving one shifted by s: fixed(x) meets moving(turn (x - s)).
    pixels = jnp.where(shift >= jnp.array(shape)[None], shift - jnp.array(padded)[None], shift)[:, ::-1]
    step = extent * jnp.array([2.0 / (n - 1) for n in shape[::-1]])
    matrices = turns[turn]
    return matrices, -jnp.einsum("nij,nj->ni", matrices, pixels * step[None])


def _near(shape: tuple[int, ...], turn: Array, shift: list[Array]) -> Array:
    """Which turns and shifts are neighbours of one, around the ends."""
    near = jnp.ones((1,) * len(shape), bool)
    for axis, (n, at) in enumerate(zip(shape, (turn, *shift), strict=True)):
        away = jnp.abs(jnp.arange(n) - at)
        line = jnp.minimum(away, n - away) <= (1 if axis == 0 else _APART)
        near = near & jnp.expand_dims(line, [k for k in range(len(shape)) if k != axis])
    return near


def _polished(fixed: Array, moving: Array, mask: Array, extent: Array, matrix: Array, offset: Array, *, kind: Kind) -> Start:
    """A map after Gauss-Newton steps on the image difference, apart from a gain and an offset; the best that it passed."""
    d = fixed.ndim - 1
    points = coordinates(mask.shape).reshape(-1, d) * extent[None]
    values, weight = fixed.ravel(), mask.ravel()
    basis = _generators(d, kind)

    def look(matrix: Array, offset: Array) -> tuple[Array, list[Array], Array]:
        there = (points @ matrix.T + offset[None]) / extent[None]
        along = functools.partial(jax.jvp, functools.partial(sample, moving), (there,))
        found = [along((jnp.broadcast_to(axis, there.shape),)) for axis in jnp.eye(d) / extent[:, None]]
        return found[0][0][..., 0], [slope[..., 0] for _, slope in found], (inside(there) & weight).astype(jnp.float32)

    def judged(matrix: Array, offset: Array) -> Start:
        value, _, counted = look(matrix, offset)
        overlap = jnp.sum(counted) / jnp.maximum(jnp.sum(weight), 1)
        return Start(Affine(matrix, offset), _correlation(values, value, counted), overlap, jnp.zeros(()))

    def step(carry: tuple[Array, Array, Start], _: None) -> tuple[tuple[Array, Array, Start], None]:
        matrix, offset, best = carry
        value, slopes, counted = look(matrix, offset)
        at = components(points)
        # What a change of the map, matrix @ (I + G) and offset + matrix @ g, does to the image.
        turned = [sum(matrix[i, j] * slopes[i] for i in range(d)) for j in range(d)]
        rows = [sum(turned[i] * (sum(g[i, j] * at[j] for j in range(d)) + g[i, d]) for i in range(d)) for g in basis]
        # A gain and an offset of the moving image's values are solved for at the same time.
        rows = jnp.stack([*rows, value, jnp.ones_like(value)]) * counted[None]
        scale = jnp.sum(rows[-2] * rows[-2]) + 1e-6
        normal = rows @ rows.T
        normal = normal + jnp.diag(_DAMPING * jnp.diag(normal)) + 1e-6 * scale * jnp.eye(len(rows))
        change = jnp.linalg.solve(normal, rows @ ((values - value) * counted))[: len(basis)]
        generator = sum(change[k] * basis[k] for k in range(len(basis)))
        moved = matrix @ (jnp.eye(d) + generator[:, :d] if kind == "affine" else _turn(generator[:, :d]))
        offset = offset + matrix @ generator[:, d]
        now = judged(moved, offset)
        better = evidence(now.correlation, now.overlap) > evidence(best.correlation, best.overlap)
        better = better & (now.overlap >= _LEAST_OVERLAP)
        return (moved, offset, jax.tree.map(lambda new, old: jnp.where(better, new, old), now, best)), None

    (_, _, best), _ = jax.lax.scan(step, (matrix, offset, judged(matrix, offset)), None, length=_STEPS)
    return best


def _correlation(fixed: Array, value: Array, counted: Array) -> Array:
    count = jnp.maximum(jnp.sum(counted), 1.0)
    a, b = ((image - jnp.sum(counted * image) / count) * counted for image in (fixed, value))
    return jnp.sum(a * b) / jnp.sqrt(jnp.sum(a**2) * jnp.sum(b**2) + 1e-6)


def _generators(d: int, kind: Kind) -> Array:
    """What may change, ``[parameters, d, d + 1]``: shifts, then turns or all entries of the matrix."""
    entry = np.eye(d * (d + 1), dtype=np.float32).reshape(d, d + 1, d, d + 1)
    shifts = [entry[i, d] for i in range(d)]
    turns = [entry[j, i] - entry[i, j] for i, j in itertools.combinations(range(d), 2)]
    linear = {"translation": [], "rigid": turns, "affine": [entry[i, j] for i, j in itertools.product(range(d), repeat=2)]}
    return jnp.asarray(np.stack([*shifts, *linear[kind]]))


def _turn(generator: Array) -> Array:
    """The rotation nearest ``I + generator``, an antisymmetric one: Cayley's transform."""
    identity = jnp.eye(len(generator))
    return jnp.linalg.solve(identity - 0.5 * generator, identity + 0.5 * generator)
