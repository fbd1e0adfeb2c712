"""Frames of the phantom, pure JAX on device: float32 images ``[H, W, 1]`` with their exact displacement, normalised units.

A patient is an ``Anatomy``, drawn once in its mid-respiratory position; a frame is that anatomy under a ``Breath``, as a
scanner shows it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r2n2_jax.config import PhantomConfig
from r2n2_jax.data.phantom.anatomy import Anatomy, intensity, outline, sample_anatomy
from r2n2_jax.data.phantom.motion import Breath, from_tissue, to_tissue, volume_change
from r2n2_jax.ops.grid import coordinates

Array = jax.Array


class Scan(NamedTuple):
    """The scanner's settings for one series: scalars but for ``wave [2]``.

    Attributes:
        wave: the wave vector of the coil's field.
        phase: its phase.
        bias: its amplitude.
        noise: standard deviation of the noise, as a fraction of the brightest tissue.
        blur: standard deviation of the blur, normalised units.
    """

    wave: Array
    phase: Array
    bias: Array
    noise: Array
    blur: Array


class Pair(NamedTuple):
    """A fixed and a moving frame of one patient, with what is true of them.

    Attributes:
        fixed: ``[H, W, 1]``, intensities at least zero.
        moving: ``[H, W, 1]``.
        displacement: ``[H, W, 2]``, exact, from the fixed grid into the moving image, normalised.
        fixed_landmarks: ``[N, 2]``, normalised.
        moving_landmarks: ``[N, 2]``, the same tissue in the moving image.
        body: ``[H, W]`` bool, the body in the fixed image.
    """

    fixed: Array
    moving: Array
    displacement: Array
    fixed_landmarks: Array
    moving_landmarks: Array
    body: Array


@functools.partial(jax.jit, static_argnums=(1, 2))
def sample(key: Array, config: PhantomConfig, shape: tuple[int, int]) -> Pair:
    """One pair: a random patient in two random states of breathing.

    Args:
        key: decides everything.
        config: how patients and frames vary.
        shape: ``(H, W)``.

    Returns:
        the pair. The same key gives the same patient and breaths at any shape; only the noise is drawn per pixel.
    """
    key_anatomy, key_breath, key_coil, key_fixed, key_moving = jax.random.split(key, 5)
    anatomy = sample_anatomy(key_anatomy)
    fixed_breath, moving_breath = sample_breaths(key_breath, config)
    points = coordinates(shape)
    fixed_tissue = to_tissue(anatomy, fixed_breath, points)
    moving_tissue = to_tissue(anatomy, moving_breath, points)
    landmarks = anatomy.landmarks
    scan = sample_scan(key_coil, config)
    return Pair(
        fixed=acquire(key_fixed, scan, render(anatomy, fixed_breath, fixed_tissue, density=config.density)),
        moving=acquire(key_moving, scan, render(anatomy, moving_breath, moving_tissue, density=config.density)),
        displacement=from_tissue(anatomy, moving_breath, fixed_tissue) - points,
        fixed_landmarks=from_tissue(anatomy, fixed_breath, landmarks),
        moving_landmarks=from_tissue(anatomy, moving_breath, landmarks),
        body=outline(anatomy.shape, points) > 0,
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def sample_batch(keys: Array, config: PhantomConfig, shape: tuple[int, int]) -> Pair:
    """One pair for each of the ``[N]`` keys, fields ``[N, ...]``."""
    return jax.vmap(lambda key: sample(key, config, shape))(keys)


def sample_breaths(key: Array, config: PhantomConfig) -> tuple[Breath, Breath]:
    """The fixed frame near the mid position, the moving one apart by a breath of random depth, up or down."""
    mid, size, direction, beat = jax.random.split(key, 4)
    least, largest = config.breath
    difference = jax.random.uniform(size, minval=least, maxval=largest)
    # Inspiration reaches further from the mid position than expiration does.
    sign = jnp.where(jax.random.bernoulli(direction, 0.6), 1.0, -0.6)
    start = 0.15 * largest * jax.random.uniform(mid, minval=-1.0, maxval=1.0)
    pulse = config.pulsation * jax.random.uniform(beat, (2,), minval=-1.0, maxval=1.0)
    return Breath(start, pulse[0]), Breath(start + sign * difference, pulse[1])


def render(anatomy: Anatomy, breath: Breath, tissue: Array, *, density: bool = True) -> Array:
    """The noise-free frame ``[H, W, 1]`` whose pixels show ``tissue [H, W, 2]`` (see ``to_tissue``).

    Without ``density`` it is a pure rearrangement of the anatomy's intensities, which a warp can undo exactly.
    """
    edge = max(0.015, 2.0 / (min(tissue.shape[:-1]) - 1))
    lung_density = 1.0 / volume_change(anatomy, breath, tissue) if density else 1.0
    return intensity(anatomy, tissue, edge=edge, lung_density=lung_density)[..., None]


def sample_scan(key: Array, config: PhantomConfig) -> Scan:
    """A random setting of the scanner, the same for all frames of a series."""
    key_wave, key_phase, key_noise, key_blur = jax.random.split(key, 4)
    return Scan(
        wave=jax.random.uniform(key_wave, (2,), minval=-1.8, maxval=1.8),
        phase=jax.random.uniform(key_phase, maxval=2.0 * jnp.pi),
        bias=jnp.asarray(config.bias),
        noise=config.noise * jax.random.uniform(key_noise, minval=0.2),
        blur=config.blur * jax.random.uniform(key_blur),
    )


def acquire(key: Array, scan: Scan, image: Array) -> Array:
    """What the scanner makes of a noise-free image ``[H, W, 1]``: coil field, blur, Rician noise.

    The coil's field is fixed in space, it does not move with the body. The blur is a Gaussian window on k-space.
    """
    shape = image.shape[:-1]
    field = 1.0 + scan.bias * jnp.sin(coordinates(shape) @ scan.wave + scan.phase)
    frequencies = [2.0 * jnp.pi * f(n, 2.0 / (n - 1)) for f, n in zip((jnp.fft.fftfreq, jnp.fft.rfftfreq), shape, strict=True)]
    squared = frequencies[0][:, None] ** 2 + frequencies[1][None] ** 2
    window = jnp.exp(-0.5 * scan.blur**2 * squared)
    blurred = jnp.fft.irfft2(jnp.fft.rfft2(image[..., 0] * field) * window, shape)[..., None]
    real, imaginary = scan.noise * jax.random.normal(key, (2, *image.shape))
    return jnp.sqrt((blurred + real) ** 2 + imaginary**2)
