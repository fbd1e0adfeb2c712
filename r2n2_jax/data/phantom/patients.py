"""Phantom patients as the paper has them: several slices, each a series of frames along one breathing curve.

Frames are float32 ``[T, H, W, 1]``, positions normalised.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r2n2_jax.config import PhantomConfig
from r2n2_jax.data.phantom.anatomy import Anatomy, organs, sample_anatomy
from r2n2_jax.data.phantom.frame import acquire, render, sample_scan
from r2n2_jax.data.phantom.motion import Breath, displacement_between, from_tissue, to_tissue
from r2n2_jax.data.splits import Split
from r2n2_jax.ops.grid import coordinates

Array = jax.Array

FRAMES = 140
CYCLE = 21

# Far from the seeds that training and its validation pairs are made from.
_SEEDS = {"validation": 2_000_000_057, "test": 2_000_000_087}


class PhantomSlice(NamedTuple):
    """One slice of one patient over time.

    Attributes:
        anatomy: the slice's tissue in its mid position.
        breaths: the state of motion of every frame, fields ``[T]``.
        frames: ``[T, H, W, 1]``.
        landmarks: ``[T, L, 2]``, the same tissue in every frame.
        fixed: index of the frame nearest the mean respiratory position.
    """

    anatomy: Anatomy
    breaths: Breath
    frames: Array
    landmarks: Array
    fixed: int


def held_out_patients(
    config: PhantomConfig, resolution: int, split: Split, *, patients: int = 4, slices: int = 3, frames: int = CYCLE
) -> list[list[PhantomSlice]]:
    """The fixed validation or test set: ``patients`` x ``slices``, each one breathing cycle from within a long series."""
    root = jax.random.key(_SEEDS[split])
    start = (FRAMES - frames) // 2
    return [
        [
            sample_slice(
                jax.random.fold_in(root, patient), config, resolution, number=number, of=slices, window=(start, frames)
            )
            for number in range(slices)
        ]
        for patient in range(patients)
    ]


def sample_slice(
    key: Array, config: PhantomConfig, resolution: int, *, number: int, of: int, window: tuple[int, int] = (0, FRAMES)
) -> PhantomSlice:
    """One slice of the patient ``key``.

    Args:
        key: the patient's.
        config: how patients and frames vary.
        resolution: pixels per axis.
        number: which slice, from the front to the back.
        of: how many slices the patient has.
        window: the first frame of its 140 to render, and how many.
    """
    key_anatomy, key_scan, key_breath, key_noise = jax.random.split(key, 4)
    anatomy = slice_anatomy(key_anatomy, (number + 0.5) / of)
    first, count = window
    breaths = jax.tree.map(
        lambda curve: curve[first : first + count], breathing(jax.random.fold_in(key_breath, number), config)
    )
    keys = jax.random.split(jax.random.fold_in(key_noise, number), count)
    frames = _frames(keys, key_scan, config, resolution, anatomy, breaths)
    landmarks = jax.vmap(from_tissue, in_axes=(None, 0, None))(anatomy, breaths, anatomy.landmarks)
    fixed = int(jnp.argmin(jnp.abs(breaths.depth - jnp.mean(breaths.depth))))
    return PhantomSlice(anatomy, breaths, frames, landmarks, fixed)


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
def exact_displacement(slice_: PhantomSlice, frame: Array, points: Array) -> Array:
    """The true displacement of fixed points ``[..., 2]`` into ``frame``."""
    fixed, moving = (jax.tree.map(lambda curve, i=i: curve[i], slice_.breaths) for i in (slice_.fixed, frame))
    return displacement_between(slice_.anatomy, fixed, moving, points)


@jax.jit
def exact_displacements(slice_: PhantomSlice, frames: Array, points: Array) -> Array:
    """``exact_displacement`` into every one of ``frames [N]``, one after the other: ``[N, ..., 2]``."""
    return jax.lax.map(lambda frame: exact_displacement(slice_, frame, points), frames)


def masks(slice_: PhantomSlice) -> dict[str, np.ndarray]:
    """Body, lungs and liver in every frame: ``[T, H, W]`` bool each."""
    return {name: np.asarray(value) for name, value in _masks(slice_.anatomy, slice_.breaths, slice_.frames.shape[1:3]).items()}


@functools.partial(jax.jit, static_argnums=(2, 3))
def _frames(keys: Array, key_scan: Array, config: PhantomConfig, resolution: int, anatomy: Anatomy, breaths: Breath) -> Array:
    scan = sample_scan(key_scan, config)
    points = coordinates((resolution, resolution))

    def frame(item: tuple[Array, Breath]) -> Array:
        key, breath = item
        return acquire(key, scan, render(anatomy, breath, to_tissue(anatomy, breath, points), density=config.density))

    return jax.lax.map(frame, (keys, breaths))


@functools.partial(jax.jit, static_argnums=2)
def _masks(anatomy: Anatomy, breaths: Breath, shape: tuple[int, int]) -> dict[str, Array]:
    points = coordinates(shape)
    return jax.lax.map(lambda breath: organs(anatomy.shape, to_tissue(anatomy, breath, points)), breaths)
