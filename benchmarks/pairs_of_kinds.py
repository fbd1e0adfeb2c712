"""Pairs of images of many kinds, each under a motion that is known: what ``benchmarks.kinds`` and the tests register.

Places are ``(y, x)`` in pixels from the image's centre. A scene is a function of them, and so is a motion: it leads from a
fixed pixel to its place in the moving image. The pairs of one function have one shape and one mask.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

Scene = Callable[[np.ndarray, np.ndarray], np.ndarray]
Motion = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

_SHAPE = (256, 256)
_GRAIN = 5.0  # pixels, of the texture


class Pair(NamedTuple):
    """Two images, and what is true of them.

    Attributes:
        name: of their kind.
        fixed: ``[H, W]``.
        moving: ``[H, W]``.
        displacement: ``[H, W, 2]``, the true one in pixels, in ``(x, y)`` order.
        judged: ``[H, W]`` bool, the fixed pixels at which a displacement is judged.
        mask: ``[H, W]`` bool, the fixed pixels that the registration looks at; by default all.
    """

    name: str
    fixed: np.ndarray
    moving: np.ndarray
    displacement: np.ndarray
    judged: np.ndarray
    mask: np.ndarray | None = None


def places(shape: tuple[int, int]) -> np.ndarray:
    """``y`` and ``x`` of every pixel."""
    return np.indices(shape) - (np.array(shape)[:, None, None] - 1) / 2


def shift(along_x: float, along_y: float) -> Motion:
    """The same everywhere."""
    return lambda y, x: (along_x + 0 * x, along_y + 0 * y)


still = shift(0.0, 0.0)


def turn(degrees: float, along_x: float = 0.0, along_y: float = 0.0) -> Motion:
    """A turn about the centre, then a shift."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return lambda y, x: (cos * x - sin * y + along_x - x, sin * x + cos * y + along_y - y)


def smooth(largest: float, width: float = 58.0, height: float | None = None) -> Motion:
    """Most near the middle, along ``x`` and a little less back along ``y``; ``width`` and ``height`` are deviations."""
    height = width if height is None else height

    def motion(y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        along_x, along_y = (np.exp(-0.5 * (((x - at) / width) ** 2 + (y / height) ** 2)) for at in (-0.3 * width, 0.3 * width))
        return largest * along_x, -0.8 * largest * along_y

    return motion


@functools.cache
def _wallpaper() -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(1).normal(size=(512, 512)), _GRAIN, mode="wrap")
    return noise / noise.std()


def texture(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Smooth noise of mean 0 and deviation 1, without an end."""
    return map_coordinates(_wallpaper(), [y + 256, x + 256], order=1, mode="grid-wrap")


def disc(y: np.ndarray, x: np.ndarray, *, radius: float, edge: float = 1.0) -> np.ndarray:
    """1 inside and 0 outside, with a soft edge."""
    return 1 / (1 + np.exp(np.clip((np.hypot(x, y) - radius) / edge, -50, 50)))


def body(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """1 where the object is: a little wider than high, on an empty ground."""
    return disc(y, x / 1.1, radius=90.0, edge=3.0)


def tissue(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """An object with texture, 0 to 140."""
    return body(y, x) * (100 + 40 * np.tanh(texture(y, x)))


def ground(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Texture without an end, 75 to 165."""
    return 120 + 45 * np.tanh(texture(y, x))


def everywhere(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """1 at every place."""
    return np.ones(y.shape)


def pair(
    name: str,
    motion: Motion,
    scene: Scene = tissue,
    later: Scene | None = None,
    *,
    shown: Scene = body,
    shape: tuple[int, int] = _SHAPE,
    noise: float = 2.0,
    seed: int = 0,
) -> Pair:
    """A scene, moved, in the fixed image, and unmoved in the moving one.

    Args:
        name: of the kind.
        motion: from fixed to moving pixels.
        scene: what the fixed image shows.
        later: what the moving image shows; by default the same.
        shown: above a half where the displacement is judged, unless that place has left the moving image.
        shape: of the images.
        noise: its deviation, in both images.
        seed: of the noise.
    """
    random, (y, x) = np.random.default_rng(seed), places(shape)
    along_x, along_y = motion(y, x)
    there_y, there_x = y + along_y, x + along_x
    images = [image + noise * random.normal(size=shape) for image in (scene(there_y, there_x), (later or scene)(y, x))]
    seen = (np.abs(there_y) <= -y[0, 0]) & (np.abs(there_x) <= -x[0, 0])
    return Pair(name, *images, np.stack([along_x, along_y], axis=-1), seen & (shown(there_y, there_x) > 0.5))


def burnt(image: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The image with so many pixels of thousands, where the others have hundreds."""
    random, result = np.random.default_rng(seed), image.copy()
    result[tuple(random.integers(0, image.shape[0], (2, count)))] = random.uniform(20_000, 65_535, count)
    return result


def hot_pixels() -> list[Pair]:
    """A smooth motion, and the same with pixels that are hot."""
    clean = pair("smooth motion", smooth(6.0))
    return [clean] + [
        clean._replace(name=f"hot pixels: {count}", fixed=burnt(clean.fixed, count, 1), moving=burnt(clean.moving, count, 2))
        for count in (1, 5, 30)
    ]


def bumps(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A flat ground with bumps, 105 to 120."""
    return 105 + 5 * np.maximum(texture(0.8 * y, 0.8 * x) - 0.7, 0)


_mostly_noise = functools.partial(pair, scene=bumps, shown=everywhere, noise=5.0)


def still_frames_of_low_snr() -> list[Pair]:
    """Bumps three times as high as the noise's deviation at most, and no motion."""
    return [_mostly_noise(f"low SNR, still {seed}", still, seed=seed) for seed in (1, 2)]


def jumps_of_low_snr() -> list[Pair]:
    """The same bumps after a jump."""
    return [
        _mostly_noise("low SNR, a jump of 5 px", shift(3.0, 4.0)),
        _mostly_noise("low SNR, a jump of 7 px", shift(-5.0, 5.0)),
    ]


def uptake() -> list[Pair]:
    """An organ and a vessel that contrast agent makes four times as bright, judged in and around the organ."""

    def organ(y: np.ndarray, x: np.ndarray, radius: float = 32.0) -> np.ndarray:
        return disc(y - 4, (x - 44) / 0.7, radius=radius)

    def after(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return tissue(y, x) + 300 * organ(y, x) + 300 * disc(y + 8, x + 12, radius=10.0)

    shot = functools.partial(pair, shown=functools.partial(organ, radius=44.0), noise=3.0)
    breath = shift(0.0, 6.0)
    return [
        shot("contrast arrives, still", still, tissue, after),
        shot("contrast arrives, breathing", breath, tissue, after),
        shot("contrast has arrived in the fixed image, still", still, after, tissue),
        shot("contrast has arrived in the fixed image, breathing", breath, after, tissue),
    ]


def contrasts() -> list[Pair]:
    """The same object as two modalities show it, one value for another."""

    def inverted(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return 140 - tissue(y, x)

    def gamma(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return 140 * (tissue(y, x) / 140) ** 0.4

    def second(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return body(y, x) * np.interp(tissue(y, x), [60, 70, 90, 110, 140], [133, 126, 49, 84, 21])

    kinds = {"inverted": inverted, "gamma 0.4": gamma, "T1 against T2": second}
    return [pair(name, smooth(5.0), tissue, later) for name, later in kinds.items()]


def drift() -> list[Pair]:
    """A window that moves over a scene without end, 11 pixels a frame."""
    shot = functools.partial(pair, scene=ground, shown=everywhere)
    return [shot(f"drift of {length} px", shift(0.8 * length, -0.6 * length)) for length in (11, 44, 77, 100)]


def turns() -> list[Pair]:
    """The object as it lay another time."""
    return [
        pair("turned by 90 degrees", turn(90.0)),
        pair("turned by 170 degrees, shifted by 25 px", turn(170.0, 20.0, -15.0)),
    ]


def behind_an_aperture(*, masked: bool) -> list[Pair]:
    """A scene that moves behind a round edge and behind letters, which do not; ``masked`` says where neither is."""
    (y, x), letters = places(_SHAPE), np.zeros(_SHAPE, bool)
    letters[60:76, 80:176] = np.kron(np.random.default_rng(7).random((4, 32)) > 0.5, np.ones((4, 3)))
    moved = pair("behind an aperture", smooth(8.0, 80.0), ground, shown=everywhere, noise=3.0)
    images = {name: np.where(np.hypot(x, y) < 105, getattr(moved, name), 0) for name in ("fixed", "moving")}
    seen = moved._replace(judged=np.hypot(x, y) < 93, **images)
    written = seen._replace(
        name="behind an aperture, with text", **{name: np.where(letters, 255, image) for name, image in images.items()}
    )
    if not masked:
        return [seen, written]
    mask = (np.hypot(x, y) < 95) & ~((np.abs(y + 60) < 16) & (np.abs(x) < 56))
    return [one._replace(name=f"{one.name}, masked", mask=mask) for one in (seen, written)]


def patterns() -> list[Pair]:
    """What repeats itself, and what is hardly there."""

    def tagged(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        waves = np.cos(2 * np.pi * (x + y) / 11.3) + np.cos(2 * np.pi * (x - y) / 11.3)
        return tissue(y, x) * (0.6 + 0.2 * waves)

    def nuclei(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        random = np.random.default_rng(3)
        return sum(disc(y - at_y, x - at_x, radius=random.uniform(6, 9)) for at_y, at_x in random.uniform(-88, 88, (9, 2)))

    def stained(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return 200 + 9000 * nuclei(y, x) * (1 + 0.5 * np.tanh(texture(3 * y, 3 * x)))

    return [
        pair("a grid of 8 px", smooth(3.0), tagged),
        pair("sparse nuclei", smooth(6.0), stained, shown=nuclei, noise=60.0),
        stripes(),
    ]


def itself() -> Pair:
    """An image twice, with the same noise."""
    once = pair("an image against itself", still)
    return once._replace(moving=once.fixed)


def one_disc() -> Pair:
    """A disc of tissue, moved by 4 pixels in tissue that stands still."""

    def motion(y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        carried = disc(y, x, radius=40.0, edge=4.0)
        return 4.0 * carried, 0.0 * carried

    return pair("one disc", motion)


def stripes() -> Pair:
    """Tagging: stripes 7 pixels apart, on tissue that moves by 6."""

    def tagged(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return tissue(y, x) * (0.6 + 0.4 * np.cos(2 * np.pi * x / 7.0))

    return pair("stripes 7 px apart", smooth(6.0), tagged)


def of_size(height: int, width: int) -> list[Pair]:
    """A motion and a texture as large as the shorter side says."""
    short = min(height, width)

    def fine(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return ground(125 / short * y, 125 / short * x)

    motion = smooth(0.05 * short, 0.22 * width, 0.22 * height)
    return [pair(f"{width} x {height} pixels", motion, fine, shown=everywhere, shape=(height, width))]
