"""Kinds of image that the weights have not seen, under a known motion: ``python -m benchmarks.kinds``.

Prints the mean error of the displacement in pixels, over the fixed pixels that show the object, before and after the default
registration. Still pairs have no motion: what is found there is error.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from r2n2_jax.ops.grid import half_extent
from r2n2_jax.registration.registrar import load

_SIZE = 192
_FIELD = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Kind(NamedTuple):
    """A pair with its true displacement ``[H, W, 2]`` in pixels, and the pixels that are judged."""

    fixed: np.ndarray
    moving: np.ndarray
    displacement: np.ndarray
    judged: np.ndarray


def scene(seed: int = 1) -> np.ndarray:
    """An object with texture on an empty ground, ``[3 size, 3 size]``, values 0 to 200."""
    random, wide = np.random.default_rng(seed), 3 * _SIZE
    y, x = np.mgrid[:wide, :wide] - wide / 2
    texture = gaussian_filter(random.normal(size=(wide, wide)), 4.0)
    body = 1.0 / (1.0 + np.exp(0.3 * (np.hypot(x / 1.1, y) - 0.37 * _SIZE)))
    return body * (100.0 + 40.0 * np.tanh(texture / texture.std()))


def seen(whole: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The scene at places in pixels from its centre."""
    return map_coordinates(whole, [y + whole.shape[0] / 2, x + whole.shape[1] / 2], order=1)


def smooth(y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A smooth motion of up to six pixels: its ``x`` and its ``y``."""
    return 6.0 * np.exp(-((x + 14) ** 2 + y**2) / 4000.0), -5.0 * np.exp(-((x - 16) ** 2 + (y + 6) ** 2) / 3600.0)


def rigid(degrees: float, shift: tuple[float, float]) -> _FIELD:
    """A turn about the centre and a shift."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return lambda y, x: (cos * x - sin * y + shift[0] - x, sin * x + cos * y + shift[1] - y)


def still(y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """No motion."""
    return 0.0 * x, 0.0 * y


def pair(
    motion: _FIELD, *, noise: float = 2.0, hot: int = 0, uptake: float = 0.0, contrast: Callable[..., np.ndarray] | None = None
) -> Kind:
    """One pair of the scene.

    Args:
        motion: from fixed to moving pixels.
        noise: its standard deviation.
        hot: pixels of each image that are set to thousands.
        uptake: by how much a disc of the moving image is brighter.
        contrast: what the moving image's values become.
    """
    random, whole = np.random.default_rng(0), scene()
    y, x = np.mgrid[:_SIZE, :_SIZE] - (_SIZE - 1) / 2
    along_x, along_y = motion(y, x)
    disc = 1.0 / (1.0 + np.exp(1.5 * (np.hypot(x - 25, y) - 18)))
    fixed, moving = seen(whole, y + along_y, x + along_x), seen(whole, y, x) + uptake * disc
    moving = moving if contrast is None else contrast(moving)
    images = [image + noise * random.normal(size=image.shape) for image in (fixed, moving)]
    for image in images:
        image[tuple(random.integers(0, _SIZE, (2, hot)))] = random.uniform(20_000, 65_535, hot)
    return Kind(*images, np.stack([along_x, along_y], axis=-1), fixed > 30.0)


def main() -> None:
    """Prints the table."""
    registrar = load()
    kinds = {
        "smooth motion": pair(smooth),
        "5 hot pixels": pair(smooth, hot=5),
        "30 hot pixels": pair(smooth, hot=30),
        "turned by 90 degrees": pair(rigid(90.0, (0.0, 0.0))),
        "turned by 160 degrees, shifted": pair(rigid(160.0, (20.0, -15.0))),
        "shifted by 60 pixels": pair(rigid(0.0, (50.0, 33.0))),
        "dark for bright": pair(smooth, contrast=lambda image: 200.0 - image),
        "still, strong noise": pair(still, noise=40.0),
        "still, a disc three times as bright": pair(still, uptake=200.0),
    }
    print("| kind | before, px | after | largest after |\n|---|---|---|---|")
    for name, kind in kinds.items():
        found = registrar.register(kind.fixed, kind.moving).displacement * np.array(half_extent(kind.fixed.shape))
        before, after = (np.linalg.norm(field - kind.displacement, axis=-1)[kind.judged] for field in (0.0, found))
        print(f"| {name} | {before.mean():.2f} | {after.mean():.2f} | {after.max():.2f} |", flush=True)


if __name__ == "__main__":
    main()
