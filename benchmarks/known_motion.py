"""Real anatomy, known motion: slices of your volumes under a breath that is a formula, so that the error is exact.

``python -m benchmarks.known_motion IMAGE LUNGS [IMAGE LUNGS ...]`` takes coronal volumes with lung masks, lets the lungs'
base sink by 5 to 35 mm while the lungs widen, adds noise to both images, and registers the moving image back. It prints a
Markdown table: TRE over the lungs and what surrounds them, in millimetres, for the weights that come with the package or those
of ``--checkpoint``.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import binary_dilation, map_coordinates

from benchmarks.bspline_baseline import TUNED
from r2n2_jax.commands.command_line import run as run_command
from r2n2_jax.commands.motion_correction import Options
from r2n2_jax.evaluation.cases import Case
from r2n2_jax.evaluation.methods import bspline_method, identity, network, run
from r2n2_jax.io.geometry import Geometry, points_from_px
from r2n2_jax.io.images import read_image
from r2n2_jax.ops.gaussian import Gaussians, displacement
from r2n2_jax.ops.grid import coordinates, half_extent
from r2n2_jax.pretrained import package
from r2n2_jax.registration.registrar import load

_SLICES, _BREATHS = 6, 4
_DEEPEST_MM, _LEAST_MM = 35.0, 5.0
_NOISE = 0.02
_LEAST_LUNG = 400  # pixels
_INVERSE_STEPS = 60


def breath(lung: np.ndarray, geometry: Geometry, depth_mm: float, rng: np.random.Generator) -> Gaussians:
    """Where a moving pixel comes from in the fixed image: two Gaussians, the base that sinks and the sides that widen."""
    rows, columns = np.nonzero(lung)
    rows_go_up = np.reshape(geometry.direction, (3, 3))[2, 1] > 0  # towards the head, in physical axes
    spacing = geometry.spacing
    half = half_extent(lung.shape)
    base = np.array([columns.mean(), np.percentile(rows, 2 if rows_go_up else 98)])
    centre = np.array([columns.mean(), rows.mean()])
    sink = depth_mm / (half[1] * spacing[1]) * (-1.0 if rows_go_up else 1.0)
    widen = 0.15 * depth_mm / (half[0] * spacing[0]) * rng.uniform(-1, 1)
    deviation = np.array([[np.ptp(columns) * 0.5, np.ptp(rows) * 0.45], [np.ptp(columns) * 0.4, np.ptp(rows) * 0.5]]) / half
    place = np.stack([base, centre]) / half - 1.0
    weight = np.array([[0.0, -sink], [-widen, 0.0]])
    arrays = (place, deviation**2, rng.uniform(-0.2, 0.2, (2, 1)), weight)
    return Gaussians(*(jnp.asarray(array, jnp.float32) for array in arrays))


def pair(image: np.ndarray, lung: np.ndarray, back: Gaussians, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Fixed, moving, and landmarks in both, normalised: ``moving(y) = fixed(y + back(y))``."""
    half = half_extent(image.shape)
    grid = np.asarray(coordinates(image.shape))
    source = (grid + np.asarray(displacement(back, jnp.asarray(grid))) + 1.0) * half
    moving = map_coordinates(image, [source[..., 1], source[..., 0]], order=3, mode="nearest")
    seen = np.argwhere(binary_dilation(lung, iterations=3))[::7, ::-1]
    fixed_points = jnp.asarray(points_from_px(seen.astype(np.float32), image.shape))
    points = fixed_points
    for _ in range(_INVERSE_STEPS):
        points = fixed_points - displacement(back, points)
    noise = _NOISE * np.ptp(image) * rng.normal(size=(2, *image.shape))
    return image + noise[0], moving + noise[1], np.asarray(fixed_points), np.asarray(points)


def cases(image: Path, lungs: Path) -> Iterator[Case]:
    """A few slices of one volume, each under a few breaths."""
    volume, mask = read_image(image), read_image(lungs)
    wide = [k for k in range(len(volume.pixels)) if (mask.pixels[k] > 0).sum() > _LEAST_LUNG]
    spacing = volume.geometry.spacing[:2]
    for k in [wide[i] for i in np.linspace(0, len(wide) - 1, _SLICES + 2).round().astype(int)[1:-1]]:
        rng = np.random.default_rng(k)
        pixels, lung = volume.pixels[k].astype(np.float32), mask.pixels[k] > 0
        depths = np.linspace(_LEAST_MM, _DEEPEST_MM, _BREATHS)
        made = [pair(pixels, lung, breath(lung, volume.geometry, depth, rng), rng) for depth in depths]
        fixed, moving, fixed_points, moving_points = (np.stack(part).astype(np.float32) for part in zip(*made, strict=True))
        yield Case(image.name, str(k), fixed, moving, spacing, fixed_points, moving_points)


def main() -> None:
    """Prints a row a method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--checkpoint", default=package.NAME)
    arguments = parser.parse_args()
    files = arguments.files
    if len(files) % 2:
        parser.error("name an image and its lungs, an image and its lungs, ...: files in pairs")
    found = [case for image, lungs in zip(files[::2], files[1::2], strict=True) for case in cases(image, lungs)]
    registrar = load(arguments.checkpoint)
    methods = {
        "before": identity(),
        "network": network(registrar, refine=0),
        "refined": network(registrar, refine=Options.refine),
        "B-spline": bspline_method(TUNED, spacing=8.0),
    }
    print(f"{sum(len(case.fixed) for case in found)} pairs, {jax.devices()[0].device_kind}\n")
    print("| | TRE mean, mm | median | largest | worse than before | folded, % |\n|---|---|---|---|---|---|")
    before = np.inf
    for name, method in methods.items():
        judged = run(method, found, progress=False).metrics
        tre, folded = (np.concatenate([getattr(one, key) for one in judged]) for key in ("tre_mm", "folded"))
        spread = f"{tre.mean():.2f} | {np.median(tre):.2f} | {tre.max():.2f}"
        print(f"| {name} | {spread} | {(tre > before).sum()} | {100 * folded.mean():.3f} |", flush=True)
        before = tre if name == "before" else before


if __name__ == "__main__":
    raise SystemExit(run_command(main, share_cores=True))
