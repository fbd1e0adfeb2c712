"""The B-spline baseline: the paper's settings, better ones, and SimpleITK's own B-spline registration, on the same pairs.

``python -m benchmarks.bspline_baseline`` registers phantom validation patients at 256² and prints a Markdown table: TRE in
pixels, folded share, seconds a pair (compilation apart).
"""

import argparse

import jax
import numpy as np
import SimpleITK as sitk

from r2n2_jax.baseline.optimise import Settings
from r2n2_jax.config import PhantomConfig
from r2n2_jax.data.phantom.patients import held_out_patients
from r2n2_jax.evaluation.cases import Case
from r2n2_jax.evaluation.methods import Found, Method, bspline_method, identity, run
from r2n2_jax.ops.grid import half_extent

PAPER = Settings()
TUNED = Settings(shrink=(8, 4, 2, 1), learning_rate=3e-3, tv_weight=0.1)


def simpleitk(case: Case) -> Found:
    """Mean squares, a cubic B-spline of 4 to 16 spans an axis, four levels, LBFGS2: the best and fastest that was found.

    Gradient descent with line search takes minutes a pair on two cores, LBFGSB ends early.
    """
    fields = []
    for pair in zip(case.fixed, case.moving, strict=True):
        images = [sitk.GetImageFromArray(np.asarray((image - image.mean()) / image.std(), np.float32)) for image in pair]
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMeanSquares()
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsLBFGS2(numberOfIterations=200)
        method.SetShrinkFactorsPerLevel([8, 4, 2, 1])
        method.SetSmoothingSigmasPerLevel([4, 2, 1, 0])
        start = sitk.BSplineTransformInitializer(images[0], [4, 4], order=3)
        method.SetInitialTransformAsBSpline(start, inPlace=True, scaleFactors=[1, 2, 4, 4])
        found = method.Execute(*images)
        field = sitk.TransformToDisplacementField(found, sitk.sitkVectorFloat64, images[0].GetSize())
        fields.append(sitk.GetArrayFromImage(field) / half_extent(pair[0].shape))
    return Found(np.stack(fields).astype(np.float32), np.full(len(fields), 2 * 19**2))


def pairs(patients: int, resolution: int) -> Case:
    """A few frames of every slice of the phantom's validation patients against the slice's fixed frame."""
    parts = []
    for members in held_out_patients(PhantomConfig(), resolution, "validation", patients=patients, slices=2):
        for one in members:
            others = [t for t in range(0, len(one.frames), 5) if t != one.fixed]
            fixed = [one.fixed] * len(others)
            parts.append([np.asarray(a)[i] for a in (one.frames[..., 0], one.landmarks) for i in (fixed, others)])
    fixed, moving, fixed_landmarks, moving_landmarks = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Case("phantom", "", fixed, moving, (1.0, 1.0), fixed_landmarks, moving_landmarks)


def main() -> None:
    """Prints a row a method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=4)
    parser.add_argument("--resolution", type=int, default=256)
    arguments = parser.parse_args()
    case = pairs(arguments.patients, arguments.resolution)
    methods = {
        "before": identity(),
        "the paper's settings": bspline_method(PAPER, spacing=8.0),
        "a level at 1/8 first, steps of 3e-3, TV 0.1": bspline_method(TUNED, spacing=8.0),
        "the same, 16 px between control points": bspline_method(TUNED, spacing=16.0),
        "SimpleITK's own": Method("simpleitk", simpleitk, lambda case: None),
    }
    print(f"{len(case.fixed)} pairs at {arguments.resolution}², {jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    print("| B-spline | TRE mean | median | max | folded, % | seconds a pair |\n|---|---|---|---|---|---|")
    for name, method in methods.items():
        outcome = run(method, [case], progress=False)
        (judged,) = outcome.metrics
        spread = f"{judged.tre_px.mean():.2f} | {np.median(judged.tre_px):.2f} | {judged.tre_px.max():.2f}"
        print(f"| {name} | {spread} | {100 * judged.folded.mean():.2f} | {outcome.seconds_per_pair:.2f} |", flush=True)


if __name__ == "__main__":
    main()
