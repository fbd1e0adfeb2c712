"""Frames of the phantom, pure JAX on device: float32 images ``[*spatial, 1]`` with their exact displacement, normalised units.

A patient is an ``Anatomy``, drawn once in its mid-respiratory position; a frame is that anatomy under a ``Breath``, as a
scanner shows it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r2n2_jax.config import PhantomConfig
from r2n2_jax.data.phantom.anatomy import Anatomy, outline, sample_anatomy
from r2n2_jax.data.phantom.motion import Breath, from_tissue, to_tissue, volume_change
from r2n2_jax.data.phantom.tissue import intensity
from r2n2_jax.ops.grid import coordinates

Array = jax.Array


class Scan(NamedTuple):
    """The scanner's settings for one series: scalars but for ``wave [d]``.

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
        fixed: ``[*spatial, 1]``, intensities at least zero.
        moving: the same.
        displacement: ``[*spatial, d]``, exact, from the fixed grid into the moving image, normalised.
        fixed_landmarks: ``[N, d]``, normalised.
        moving_landmarks: ``[N, d]``, the same tissue in the moving image.
        body: ``[*spatial]`` bool, the body in the fixed image.
    """

    fixed: Array
    moving: Array
    displacement: Array
    fixed_landmarks: Array
    moving_landmarks: Array
    body: Array


@functools.partial(jax.jit, static_argnums=(1, 2))
def sample(key: Array, config: PhantomConfig, shape: tuple[int, ...]) -> Pair:
    """One pair: a random patient in two random states of breathing.

    Args:
        key: decides everything.
        config: how patients and frames vary.
        shape: ``(H, W)`` of a coronal slice, ``(D, H, W)`` of a volume from front to back.

    Returns:
        the pair. The same key gives the same patient and breaths at any shape; only the noise is drawn per pixel.
    """
    key_anatomy, key_breath, key_coil, key_fixed, key_moving = jax.random.split(key, 5)
    anatomy = sample_anatomy(key_anatomy, ndim=len(shape))
    fixed_breath, moving_breath = sample_breaths(key_breath, config)
    points = coordinates(shape)
    fixed_tissue = to_tissue(anatomy, fixed_breath, points)
    moving_tissue = to_tissue(anatomy, moving_breath, points)
    landmarks = anatomy.landmarks
    scan = sample_scan(key_coil, config, ndim=len(shape))
    return Pair(
        fixed=acquire(key_fixed, scan, render(anatomy, fixed_breath, fixed_tissue, density=config.density)),
        moving=acquire(key_moving, scan, render(anatomy, moving_breath, moving_tissue, density=config.density)),
        displacement=from_tissue(anatomy, moving_breath, fixed_tissue) - points,
        fixed_landmarks=from_tissue(anatomy, fixed_breath, landmarks),
        moving_landmarks=from_tissue(anatomy, moving_breath, landmarks),
        body=outline(anatomy.shape, points) > 0,
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def sample_batch(keys: Array, config: PhantomConfig, shape: tuple[int, ...]) -> Pair:
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
    """The noise-free frame ``[*spatial, 1]`` whose pixels show ``tissue [*spatial, d]`` (see ``to_tissue``).

    Without ``density`` it is a pure rearrangement of the anatomy's intensities, which a warp can undo exactly.
    """
    edge = max(0.015, 2.0 / (min(tissue.shape[-3:-1]) - 1))  # a pixel of a coronal slice, however thick
    lung_density = 1.0 / volume_change(anatomy, breath, tissue) if density else 1.0
    return intensity(anatomy, tissue, edge=edge, lung_density=lung_density)[..., None]


def sample_scan(key: Array, config: PhantomConfig, *, ndim: int = 2) -> Scan:
    """A random setting of the scanner, the same for all frames of a series."""
    key_wave, key_phase, key_noise, key_blur = jax.random.split(key, 4)
    return Scan(
        wave=jax.random.uniform(key_wave, (ndim,), minval=-1.8, maxval=1.8),
        phase=jax.random.uniform(key_phase, maxval=2.0 * jnp.pi),
        bias=jnp.asarray(config.bias),
        noise=config.noise * jax.random.uniform(key_noise, minval=0.2),
        blur=config.blur * jax.random.uniform(key_blur),
    )


def acquire(key: Array, scan: Scan, image: Array) -> Array:
    """What the scanner makes of a noise-free image ``[*spatial, 1]``: coil field, blur, Rician noise.

    The coil's field is fixed in space, it does not move with the body. The blur is a Gaussian window on k-space.
    """
    shape = image.shape[:-1]
    field = 1.0 + scan.bias * jnp.sin(coordinates(shape) @ scan.wave + scan.phase)
    steps = [2.0 / max(n - 1, 1) for n in shape]
    axes = [jnp.fft.fftfreq(n, step) for n, step in zip(shape[:-1], steps[:-1], strict=True)]
    mesh = jnp.meshgrid(*axes, jnp.fft.rfftfreq(shape[-1], steps[-1]), indexing="ij")
    window = jnp.exp(-0.5 * (2.0 * jnp.pi * scan.blur) ** 2 * sum(frequency**2 for frequency in mesh))
    blurred = jnp.fft.irfftn(jnp.fft.rfftn(image[..., 0] * field) * window, shape)[..., None]
    real, imaginary = scan.noise * jax.random.normal(key, (2, *image.shape))
    return jnp.sqrt((blurred + real) ** 2 + imaginary**2)
