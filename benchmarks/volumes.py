"""Real pairs of volumes: how far landmarks, or how well organs, agree, in which time, beside SimpleITK's B-spline.

``python -m benchmarks.volumes FOLDER [FOLDER ...]`` takes folders with ``fixed.nii.gz`` and ``moving.nii.gz``, and either
``landmarks.csv`` (a header, then ``fixed_x, fixed_y, fixed_z, moving_x, moving_y, moving_z`` in world millimetres, and a kind
where there are several) or the labels ``fixed_seg.nii.gz`` and ``moving_seg.nii.gz``. It prints a Markdown table. Seconds are
of a second call: the first one compiles.
"""

import argparse
import csv
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

import r2n2_jax
from r2n2_jax.commands.command_line import run as run_command
from r2n2_jax.pretrained import package

_SPACING_MM = 20.0  # between a B-spline's control points at last
_HOUNSFIELD = (-1000.0, 400.0)


def ours(registrar: r2n2_jax.Registrar, **options: int) -> Callable[[sitk.Image, sitk.Image], tuple[sitk.Transform, str]]:
    """Volumes registered by a network, with the options of ``register``."""

    def register(fixed: sitk.Image, moving: sitk.Image) -> tuple[sitk.Transform, str]:
        result = registrar.register(fixed, moving, **options)
        return result.transform(), f"{12 * result.steps}, {result.status}, {result.stopped}"

    return register


def bspline(fixed: sitk.Image, moving: sitk.Image) -> tuple[sitk.Transform, str]:
    """An affine map where the grids differ; then cubic B-splines, each twice as fine as the last; correlation, LBFGS2."""
    fixed, moving = _windowed(fixed), _windowed(moving)
    affine = sitk.AffineTransform(3)
    if (fixed.GetSize(), fixed.GetOrigin()) != (moving.GetSize(), moving.GetOrigin()):
        centred = sitk.CenteredTransformInitializer(fixed, moving, affine, sitk.CenteredTransformInitializerFilter.GEOMETRY)
        method = _method([4, 2])
        method.SetMetricAsMattesMutualInformation(32)
        method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-3, 100)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(centred, inPlace=False)
        affine = method.Execute(fixed, moving)
    extent = np.array(fixed.GetSize()) * fixed.GetSpacing()
    mesh = [max(1, round(length / (4 * _SPACING_MM))) for length in extent]
    spline = sitk.BSplineTransformInitializer(fixed, mesh, order=3)
    method = _method([4, 2, 1])
    method.SetMovingInitialTransform(affine)
    method.SetMetricAsCorrelation()
    method.SetOptimizerAsLBFGS2(numberOfIterations=60, deltaConvergenceTolerance=1e-4, deltaConvergenceDistance=5)
    method.SetInitialTransformAsBSpline(spline, inPlace=True, scaleFactors=[1, 2, 4])
    found = method.Execute(fixed, moving)
    return sitk.CompositeTransform([affine, found]), f"{len(found.GetParameters())}"


def _method(shrink: list[int]) -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([1.0, 0.5, 0.15][: len(shrink)], 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel([factor / 2 for factor in shrink])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    return method


def _windowed(image: sitk.Image) -> sitk.Image:
    """From 0 to 1: of CT what is between air and bone."""
    values = sitk.GetArrayViewFromImage(image)
    low, high = _HOUNSFIELD if values.min() < -300 else np.percentile(values, (0.5, 99.5))
    return sitk.IntensityWindowing(sitk.Cast(image, sitk.sitkFloat32), float(low), float(high), 0.0, 1.0)


def landmarks(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Points of the fixed and of the moving volume ``[N, 3]``, world millimetres, and their kinds."""
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row and row[0][0] in "-0123456789"]
    points = np.array([[float(value) for value in row[:6]] for row in rows])
    return points[:, :3], points[:, 3:], [row[6] if len(row) > 6 else "all" for row in rows]


def agreement(folder: Path, transform: sitk.Transform) -> str:
    """The mean distance of landmarks of each kind, or the mean Dice coefficient of all labels."""
    if (folder / "landmarks.csv").exists():
        fixed, moving, kinds = landmarks(folder / "landmarks.csv")
        missed = np.linalg.norm([transform.TransformPoint(point) for point in fixed.tolist()] - moving, axis=1)
        of_kind = {kind: missed[[each == kind for each in kinds]].mean() for kind in dict.fromkeys(kinds)}
        return ", ".join(f"{kind} {mean:.2f} mm" for kind, mean in of_kind.items())
    labels = [sitk.ReadImage(str(folder / f"{name}_seg.nii.gz")) for name in ("fixed", "moving")]
    warped = sitk.GetArrayFromImage(sitk.Resample(labels[1], labels[0], transform, sitk.sitkNearestNeighbor, 0))
    fixed = sitk.GetArrayFromImage(labels[0])
    dice = [
        2 * np.sum((fixed == n) & (warped == n)) / np.sum((fixed == n).astype(int) + (warped == n))
        for n in np.unique(fixed)
        if n
    ]
    return f"Dice {np.mean(dice):.3f}"


def folded(fixed: sitk.Image, transform: sitk.Transform) -> float:
    """The percentage of the fixed volume's voxels at which the map folds."""
    grid = fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection()
    field = sitk.TransformToDisplacementField(transform, sitk.sitkVectorFloat64, *grid)
    return 100.0 * np.mean(sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field)) <= 0)


def main() -> None:
    """Prints a row a pair and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--checkpoint", default=package.NAME, help="a network for volumes; by default the package's")
    parser.add_argument("--skip", nargs="*", default=(), help="methods that are left out")
    arguments = parser.parse_args()
    registrar = r2n2_jax.load(arguments.checkpoint, ndim=3)
    methods = {
        "before": lambda *_: (sitk.Transform(3, sitk.sitkIdentity), ""),
        "network alone": ours(registrar, refine=0),
        "default": ours(registrar),
        "SimpleITK's B-spline": bspline,
    }
    methods = {name: register for name, register in methods.items() if name not in arguments.skip}
    print(
        "| pair | method | agreement | folded voxels, % | numbers, and how it ended | seconds | CPU-seconds |\n|" + "---|" * 7
    )
    for folder in arguments.folders:
        fixed, moving = (sitk.ReadImage(str(folder / f"{name}.nii.gz"), sitk.sitkFloat32) for name in ("fixed", "moving"))
        for name, register in methods.items():
            if name in ("network alone", "default"):
                register(fixed, moving)
            begun, used = time.perf_counter(), sum(os.times()[:4])
            transform, note = register(fixed, moving)
            seconds, used = time.perf_counter() - begun, sum(os.times()[:4]) - used
            cells = [folder.name, name, agreement(folder, transform), f"{folded(fixed, transform):.3f}", note]
            print(f"| {' | '.join(cells)} | {seconds:.1f} | {used:.1f} |", flush=True)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
