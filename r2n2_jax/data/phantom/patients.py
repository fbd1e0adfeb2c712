"""Phantom patients as the paper has them, series of frames along one breathing curve: of several slices, or of the volume.

Frames are float32 ``[T, *spatial, 1]``, positions normalised.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r2n2_jax.config import PhantomConfig
from r2n2_jax.data.phantom.anatomy import Anatomy, sample_anatomy
from r2n2_jax.data.phantom.frame import acquire, render, sample_scan
from r2n2_jax.data.phantom.motion import Breath, displacement_between, from_tissue, to_tissue
from r2n2_jax.data.phantom.tissue import organs
from r2n2_jax.data.splits import Split
from r2n2_jax.ops.grid import coordinates

Array = jax.Array

FRAMES = 140
CYCLE = 21

# Far from the seeds that training and its validation pairs are made from.
_SEEDS = {"validation": 2_000_000_057, "test": 2_000_000_087}


class PhantomSeries(NamedTuple):
    """One slice of one patient over time, or the volume.

    Attributes:
        anatomy: the tissue in its mid position.
        breaths: the state of motion of every frame, fields ``[T]``.
        frames: ``[T, *spatial, 1]``.
        landmarks: ``[T, L, d]``, the same tissue in every frame.
        fixed: index of the frame nearest the mean respiratory position.
    """

    anatomy: Anatomy
    breaths: Breath
    frames: Array
    landmarks: Array
    fixed: int


def held_out_patients(
    config: PhantomConfig, resolution: int, split: Split, *, patients: int = 4, slices: int = 3, frames: int = CYCLE
) -> list[list[PhantomSeries]]:
    """The fixed validation or test set: ``patients`` x ``slices``, each one breathing cycle from within a long series."""
    window = ((FRAMES - frames) // 2, frames)
    return [
        [sample_slice(key, config, resolution, number=number, of=slices, window=window) for number in range(slices)]
        for key in _held_out_keys(split, patients)
    ]


def held_out_volumes(
    config: PhantomConfig, resolution: int, split: Split, *, patients: int = 4, frames: int = CYCLE
) -> list[PhantomSeries]:
    """The fixed validation or test set of volumes, one breathing cycle of each patient."""
    window, shape = ((FRAMES - frames) // 2, frames), (resolution,) * 3
    return [sample_volume(key, config, shape, window=window) for key in _held_out_keys(split, patients)]


def _held_out_keys(split: Split, count: int) -> list[Array]:
    return [jax.random.fold_in(jax.random.key(_SEEDS[split]), patient) for patient in range(count)]


def sample_slice(
    key: Array, config: PhantomConfig, resolution: int, *, number: int, of: int, window: tuple[int, int] = (0, FRAMES)
) -> PhantomSeries:
    """One slice of the patient ``key``.

    Args:
        key: the patient's.
        config: how patients and frames vary.
        resolution: pixels per axis.
        number: which slice, from the front to the back.
        of: how many slices the patient has.
        window: the first frame of its 140 to render, and how many.
    """
    keys = jax.random.split(key, 4)
    anatomy = slice_anatomy(keys[0], (number + 0.5) / of)
    return _series(keys, config, (resolution, resolution), anatomy, number, window)


def sample_volume(
    key: Array, config: PhantomConfig, shape: tuple[int, int, int], *, window: tuple[int, int] = (0, FRAMES)
) -> PhantomSeries:
    """The volume of the patient ``key``, ``shape`` is ``(D, H, W)`` from front to back; arguments as of ``sample_slice``."""
    keys = jax.random.split(key, 4)
    return _series(keys, config, shape, sample_anatomy(keys[0], ndim=3), 0, window)


def _series(
    keys: Array, config: PhantomConfig, shape: tuple[int, ...], anatomy: Anatomy, number: int, window: tuple[int, int]
) -> PhantomSeries:
    """Frames of an anatomy; ``number`` decides what the scanner and the breath do while it is recorded."""
    _, key_scan, key_breath, key_noise = keys
    first, count = window
    breaths = jax.tree.map(
        lambda curve: curve[first : first + count], breathing(jax.random.fold_in(key_breath, number), config)
    )
    noise = jax.random.split(jax.random.fold_in(key_noise, number), count)
    frames = _frames(noise, key_scan, config, shape, anatomy, breaths)
    landmarks = jax.vmap(from_tissue, in_axes=(None, 0, None))(anatomy, breaths, anatomy.landmarks)
    fixed = int(jnp.argmin(jnp.abs(breaths.depth - jnp.mean(breaths.depth))))
    return PhantomSeries(anatomy, breaths, frames, landmarks, fixed)


def slice_anatomy(key: Array, posterior: float) -> Anatomy:
    """The patient ``key`` cut at ``posterior`` (0 front, 1 back): the same body, with the vessels and texture of that cut."""
    body = sample_anatomy(key).shape._replace(posterior=jnp.asarray(posterior))
    return sample_anatomy(jax.random.fold_in(key, round(1000 * posterior)), body=body)


@functools.partial(jax.jit, static_argnums=1)
def breathing(key: Array, config: PhantomConfig) -> Breath:
    r"""A breathing curve of 140 frames, about 21 a cycle, deep and shallow breaths, with the heart beating faster.

    .. math:: \mathrm{depth}(t) = a(t) \left(\cos^4 \tfrac{\varphi(t)}2 - \tfrac38\right)

    stays longer near expiration; amplitude and pace vary slowly.

    References:
        Lujan et al., A method for incorporating organ motion due to breathing into 3D dose calculations, Med. Phys. 26, 1999.
    """
    key_amplitude, key_slow, key_phase, key_beat = jax.random.split(key, 4)
    t = jnp.arange(FRAMES, dtype=jnp.float32)
    slow = jax.random.uniform(key_slow, (2, 3), minval=0.3, maxval=1.0)
    phases = jax.random.uniform(key_phase, (2, 3), maxval=2.0 * jnp.pi)
    periods = jnp.array([31.0, 53.0, 97.0])
    waves = jnp.sin(2.0 * jnp.pi * t[None, None] / periods[None, :, None] + phases[..., None])
    wobble = jnp.sum(slow[..., None] * waves, axis=1) / 3.0
    largest = config.breath[1] * jax.random.uniform(key_amplitude, minval=0.5, maxval=1.3)
    amplitude = largest * (1.0 + 0.35 * wobble[0])
    phase = 2.0 * jnp.pi * t / CYCLE + 0.8 * wobble[1] + phases[0, 0]
    depth = amplitude * (jnp.cos(0.5 * phase) ** 4 - 0.375)
    beat = 2.0 * jnp.pi * 0.31 * t + jax.random.uniform(key_beat, maxval=2.0 * jnp.pi)
    return Breath(depth, config.pulsation * jnp.sin(beat))


@jax.jit
def exact_displacement(series: PhantomSeries, frame: Array, points: Array) -> Array:
    """The true displacement of fixed points ``[..., d]`` into ``frame``."""
    fixed, moving = (jax.tree.map(lambda curve, i=i: curve[i], series.breaths) for i in (series.fixed, frame))
    return displacement_between(series.anatomy, fixed, moving, points)


@jax.jit
def exact_displacements(series: PhantomSeries, frames: Array, points: Array) -> Array:
    """``exact_displacement`` into every one of ``frames [N]``, one after the other: ``[N, ..., d]``."""
    return jax.lax.map(lambda frame: exact_displacement(series, frame, points), frames)


def masks(series: PhantomSeries) -> dict[str, np.ndarray]:
    """Body, lungs and liver in every frame: ``[T, *spatial]`` bool each."""
    found = _masks(series.anatomy, series.breaths, series.frames.shape[1:-1])
    return {name: np.asarray(value) for name, value in found.items()}


@functools.partial(jax.jit, static_argnums=(2, 3))
def _frames(
    keys: Array, key_scan: Array, config: PhantomConfig, shape: tuple[int, ...], anatomy: Anatomy, breaths: Breath
) -> Array:
    scan = sample_scan(key_scan, config, ndim=len(shape))
    points = coordinates(shape)

    def frame(item: tuple[Array, Breath]) -> Array:
        key, breath = item
        return acquire(key, scan, render(anatomy, breath, to_tissue(anatomy, breath, points), density=config.density))

    return jax.lax.map(frame, (keys, breaths))


@functools.partial(jax.jit, static_argnums=2)
def _masks(anatomy: Anatomy, breaths: Breath, shape: tuple[int, ...]) -> dict[str, Array]:
    points = coordinates(shape)
    return jax.lax.map(lambda breath: organs(anatomy.shape, to_tissue(anatomy, breath, points)), breaths)
