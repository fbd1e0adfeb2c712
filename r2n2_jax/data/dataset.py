"""Where training takes its batches from, and the pairs it is judged on: the phantom, or a folder of series.

Both are a function of the step: the batch of step ``t`` is the same whenever and however often training was stopped before.
"""

import functools
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import grain.python as grain
import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from r2n2_jax.config import Config, PhantomConfig
from r2n2_jax.data.phantom.frame import Pair, sample_batch
from r2n2_jax.data.series import Series
from r2n2_jax.data.splits import Split
from r2n2_jax.data.streams import streams
from r2n2_jax.data.variety import vary
from r2n2_jax.ops.intensity import prepare, standardise
from r2n2_jax.runtime.devices import own_part
from r2n2_jax.runtime.programs import kept

Array = jax.Array

# Far from any seed a user would choose, so that no training run ever meets a held-out phantom.
_HELD_OUT_SEEDS = {"validation": 2_000_000_011, "test": 2_000_000_033}
_HELD_OUT_AT_ONCE = 4

# Threads that load and vary pairs, ahead of the training; the order of the batches does not depend on them.
_WORKERS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

# How much a pair of a series is varied: radians, the field of view's extent, half fields of view.
_TURN, _ZOOM, _SHIFT = 0.25, (0.7, 1.1), 0.1


class Batch(NamedTuple):
    """``[B, *spatial, 1]`` standardised images at the model's resolution."""

    fixed: Array
    moving: Array


class Examples(NamedTuple):
    """Pairs to judge by.

    Attributes:
        fixed: ``[N, *spatial, 1]`` standardised, at the model's resolution.
        moving: the same.
        fixed_landmarks: ``[N, L, d]`` normalised, or None where none are known.
        moving_landmarks: the same tissue in the moving images.
    """

    fixed: Array
    moving: Array
    fixed_landmarks: Array | None = None
    moving_landmarks: Array | None = None


class Source(Protocol):
    """What the training loop needs of its data."""

    def batches(self, start: int) -> Iterator[Batch]:
        """Own part (of several processes) of the batches of steps ``start, start + 1, ...``, without end."""

    def examples(self, count: int) -> Examples:
        """At most ``count`` unseen pairs to validate on."""


class PhantomSource:
    """Fresh phantom pairs at every step, made on the device, each in both directions."""

    def __init__(self, config: Config):
        self._config = config
        self._key = streams(config.training.seed).data

    def batches(self, start: int) -> Iterator[Batch]:
        """See ``Source``."""
        shape, size = self._config.model.shape, self._config.training.batch
        for step in itertools.count(start):
            key = jax.random.fold_in(self._key, step)
            yield own_part(_phantom_batch(key, config=self._config.phantom, size=size, shape=shape))

    def examples(self, count: int) -> Examples:
        """See ``Source``."""
        return phantom_examples(self._config, "validation", count)


@functools.partial(kept, returns=[Batch])
@functools.partial(jax.jit, static_argnames=("config", "size", "shape"))
def _phantom_batch(key: Array, *, config: PhantomConfig, size: int, shape: tuple[int, ...]) -> Batch:
    key_pairs, key_direction, key_varied, key_last = jax.random.split(key, 4)
    pairs = sample_batch(jax.random.split(key_pairs, -(-size // 2)), config, shape)
    first, second = (jax.vmap(standardise)(images) for images in (pairs.fixed, pairs.moving))
    batch = Batch(jnp.concatenate([first, second])[:size], jnp.concatenate([second, first])[:size])
    if size % 2:
        # One pair is there in one direction only: in either, by chance.
        turned = jax.random.bernoulli(key_direction)
        batch = Batch(*(jnp.where(turned, *both) for both in (batch[::-1], batch)))
    varied = math.ceil(config.variety * size)
    if varied == 0:
        return batch
    # Pairs from both halves: as many of one direction as of the other.
    chosen = np.linspace(0, size - 1, varied).round().astype(int)
    keys = jax.random.split(key_varied, varied)
    others = jax.vmap(functools.partial(vary, shapes=config.shapes))(keys, *(images[chosen] for images in batch))
    # Where the fraction is no whole number of pairs, the last one is varied as often as the rest of it says.
    unchanged = jnp.arange(varied) + jax.random.uniform(key_last) >= config.variety * size
    unchanged = unchanged.reshape(-1, *(1,) * (len(shape) + 1))
    mixed = (jnp.where(unchanged, images[chosen], other) for images, other in zip(batch, others, strict=True))
    return Batch(*(images.at[chosen].set(new) for images, new in zip(batch, mixed, strict=True)))


class SeriesSource:
    """Every frame of every series with another one of its series or its fixed one, loaded by grain, shuffled every epoch.

    Both images of a pair are turned, zoomed and shifted a little, alike: a few patients show few sizes and places of a motion.
    They are NOT mirrored or turned round, because the network learns first where in the image what moves.
    """

    def __init__(self, train: Sequence[Series], validation: Sequence[Series], config: Config):
        self._config = config
        self._train, self._validation = (at_resolution(part, config.model.shape) for part in (train, validation))

    def batches(self, start: int) -> Iterator[Batch]:
        """See ``Source``."""
        for batch in self.varied(start):
            yield Batch(*(_standardise(images) for images in batch))

    def varied(self, start: int) -> Iterator[Batch]:
        """The same batches before their images are standardised again."""
        any_two = self._config.training.pairs == "any"
        frames = [
            (i, t) for i, slice_ in enumerate(self._train) for t in range(len(slice_.frames)) if any_two or t != slice_.fixed
        ]
        dataset = (
            grain.MapDataset.source(frames)
            .seed(self._config.training.seed)
            .shuffle()
            .repeat(reseed_each_epoch=True)
            .random_map(functools.partial(_load_any if any_two else _load_with_fixed, self._train))
            .random_map(_vary)
        )
        # Of several processes each loads its own part of every batch, in the order that one process would.
        processes = jax.process_count()
        parts = dataset.batch(self._config.training.batch // processes, drop_remainder=True)[jax.process_index() :: processes]
        yield from parts[start:].to_iter_dataset(grain.ReadOptions(num_threads=_WORKERS, prefetch_buffer_size=4 * _WORKERS))

    def examples(self, count: int) -> Examples:
        """See ``Source``."""
        return series_examples(self._validation, count)


def held_out_phantoms(config: PhantomConfig, shape: tuple[int, ...], split: Split, count: int) -> Pair:
    """The first ``count`` pairs of the phantom's validation or test set, fields ``[count, ...]``; never trained on.

    ``shape`` is theirs, ``(H, W)`` or ``(D, H, W)``.
    """
    root = jax.random.key(_HELD_OUT_SEEDS[split])
    parts = []
    for start in range(0, count, _HELD_OUT_AT_ONCE):
        keys = jax.vmap(functools.partial(jax.random.fold_in, root))(jnp.arange(start, start + _HELD_OUT_AT_ONCE))
        parts.append(_phantoms(keys, config=config, shape=shape))
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays)[:count], *parts)


@functools.partial(kept, returns=[Pair])
@functools.partial(jax.jit, static_argnames=("config", "shape"))
def _phantoms(keys: Array, *, config: PhantomConfig, shape: tuple[int, ...]) -> Pair:
    return sample_batch(keys, config, shape)


def phantom_examples(config: Config, split: Split, count: int) -> Examples:
    """Held-out phantoms, as training sees pairs."""
    pairs = held_out_phantoms(config.phantom, config.model.shape, split, count)
    fixed, moving = (jax.vmap(standardise)(images) for images in (pairs.fixed, pairs.moving))
    return Examples(fixed, moving, pairs.fixed_landmarks, pairs.moving_landmarks)


def series_examples(series: Sequence[Series], count: int | None = None) -> Examples:
    """Pairs of series whose frames are standardised already: all, or ``count`` spread evenly over them."""
    pairs = _pairs(series)
    if count is not None and count < len(pairs):
        pairs = [pairs[i] for i in np.linspace(0, len(pairs) - 1, count).round().astype(int)]
    loaded = [_load(series, pair) for pair in pairs]
    return Examples(*(jnp.stack(images) for images in zip(*loaded, strict=True)))


def at_resolution(series: Sequence[Series], shape: tuple[int, ...]) -> list[Series]:
    """The same series without blank frames, every frame resampled to ``shape`` and standardised."""

    def of(slice_: Series) -> Series:
        kept = slice_.kept
        frames = [np.asarray(prepare(frame, shape))[..., 0] for frame in slice_.frames[kept]]
        return slice_._replace(frames=np.stack(frames), fixed=int(np.searchsorted(kept, slice_.fixed)), blank=())

    return [of(slice_) for slice_ in series if len(slice_.kept)]


def _pairs(series: Sequence[Series]) -> list[tuple[int, int]]:
    """(series, frame) for every frame but the fixed ones."""
    return [(i, t) for i, slice_ in enumerate(series) for t in range(len(slice_.frames)) if t != slice_.fixed]


def _load(series: Sequence[Series], pair: tuple[int, int]) -> Batch:
    index, frame = pair
    slice_ = series[index]
    return Batch(slice_.frames[slice_.fixed][..., None], slice_.frames[frame][..., None])


def _load_any(series: Sequence[Series], pair: tuple[int, int], random: np.random.Generator) -> Batch:
    """The frame with any other one of its series as the fixed image."""
    index, frame = pair
    frames = series[index].frames
    other = (frame + random.integers(1, len(frames))) % len(frames)
    return Batch(frames[other][..., None], frames[frame][..., None])


def _load_with_fixed(series: Sequence[Series], pair: tuple[int, int], _: np.random.Generator) -> Batch:
    return _load(series, pair)


def _vary(pair: Batch, random: np.random.Generator) -> Batch:
    """The same small rotation, zoom and shift of both images; beyond the border the border's pixels go on."""
    centre = (np.array(pair.fixed.shape[:-1]) - 1) / 2
    d = len(centre)
    angles, zoom = random.uniform(-_TURN, _TURN, d * (d - 1) // 2), np.exp(random.uniform(*np.log(_ZOOM)))
    matrix = zoom * (Rotation.from_rotvec(angles).as_matrix() if d == 3 else _turn(*angles))
    offset = centre * (1.0 + random.uniform(-_SHIFT, _SHIFT, d)) - matrix @ centre
    varied = (affine_transform(image[..., 0], matrix, offset, order=1, mode="nearest") for image in pair)
    return Batch(*(image[..., None] for image in varied))


def _turn(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


_standardise = jax.jit(jax.vmap(standardise))
