"""Where the time goes: the parts of one look of the network, and of one everyday registration.

``python -m benchmarks.profile`` prints two Markdown tables a preset. Every part is timed alone, in a compiled loop whose
turns depend on each other as the network's do; a pair at a time, on one device.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r2n2_jax.commands.motion_correction import Options
from r2n2_jax.config import PRESETS, ModelConfig, PhantomConfig
from r2n2_jax.data.dataset import held_out_phantoms
from r2n2_jax.models.conv_gru import ConvGRU
from r2n2_jax.models.convolution import Convolution
from r2n2_jax.models.joint import SCALES, quieted
from r2n2_jax.models.parameter_net import ParameterNetwork
from r2n2_jax.models.position_net import PositionNetwork
from r2n2_jax.models.r2n2 import R2N2
from r2n2_jax.models.residual import NormalisedConv, ResidualBlock
from r2n2_jax.ops.flow import flow
from r2n2_jax.ops.gaussian import Gaussians, covariance, local_transformation, to_free
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.joint_weights import weights_step
from r2n2_jax.ops.local_contrast import local_contrast
from r2n2_jax.ops.local_flow import local_flow
from r2n2_jax.ops.warp import warp
from r2n2_jax.registration.course import View, Wanted
from r2n2_jax.registration.least_squares import normal_equations, objective, pose
from r2n2_jax.registration.levenberg_marquardt import refine_batch
from r2n2_jax.registration.registrar import load
from r2n2_jax.registration.sequence import apply, find, views

_TURNS = 20
_RUNS = 5


def milliseconds(call: Callable[..., Any], *arrays: Any) -> float:
    """Of one call in a loop; the best of some runs of it."""

    def turn(carried: jax.Array, _: None) -> tuple[jax.Array, None]:
        found = call(*jax.tree.map(lambda array: array + carried.astype(array.dtype), arrays))
        return 1e-20 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(found)).astype(jnp.float32), None

    def loop(carried: jax.Array) -> jax.Array:
        return jax.lax.scan(turn, carried, None, length=_TURNS)[0]

    return _best(jax.jit(loop), jnp.float32(0)) / _TURNS


def look_parts(config: ModelConfig) -> dict[str, tuple[float, float]]:
    """Of every part of one look: milliseconds, and GFLOP of its convolutions."""
    key, size, found = jax.random.key(0), config.resolution, {}
    image = jax.random.normal(key, (1, size, size, 1))
    seen = jnp.concatenate([image] * 4, axis=-1)

    def add(name: str, module: Any, *inputs: jax.Array, gflop: float, times: int = 1) -> None:
        params = module.init(key, *inputs)
        found[name] = times * milliseconds(lambda *given: module.apply(params, *given), *inputs), times * gflop

    def convolution(side: int, taps: int, before: int, after: int) -> float:
        return 2e-9 * side**2 * taps * before * after

    widths, side = config.channels, size // 2
    norm = config.norm == "instance"
    add("stem, 7 x 7", NormalisedConv(widths[0], 7, 2, norm), seen, gflop=convolution(side, 49, 4, widths[0]))
    for width, after in itertools.pairwise(widths):
        features, name = jax.random.normal(key, (1, side, side, width)), f"{side}², {width} channels"
        one = convolution(side, 9, width, width)
        blocks = config.residual_blocks
        block = ResidualBlock(config.activation, norm)
        add(f"{name}: {blocks} residual blocks", block, features, gflop=2 * one, times=blocks)
        add(f"{name}: C-GRU", ConvGRU(width), features, features, gflop=6 * one)
        add(f"{name}: position", Convolution(1, 1) if config.joint else PositionNetwork(), features, gflop=0.0)
        side = -(-side // 2)
        add(f"{name}: down", NormalisedConv(after, 3, 2, norm), features, gflop=convolution(side, 9, width, after))
    features = jax.random.normal(key, (1, side, side, widths[-1]))
    head = ParameterNetwork(config.hidden, config.sigma_max, config.sigma_min, config.sigma_is, config.activation, norm)
    gflop = convolution(side, 9, widths[-1], widths[-1]) + convolution(side, 9, widths[-1], widths[-1] // 2)
    add("shape and weight", head, features, gflop=gflop)
    points = coordinates((size, size))
    position, variance, turn = jnp.zeros(2), jnp.full(2, 0.1), jnp.zeros(1)

    def moved(image: jax.Array, position: jax.Array) -> jax.Array:
        return warp(image, local_transformation(points, position, covariance(variance, turn), variance))

    found["Gaussian and warp"] = milliseconds(moved, image[0], position), 0.0
    if config.joint:
        found |= _joint_parts(config, image)
    if config.flow:
        bell = local_transformation(points, position, covariance(variance, turn), jnp.ones(2))[..., 0]
        found["flow under the Gaussian"] = milliseconds(lambda a, b: flow(a, b, bell), image[0], image[0]), 0.0
    return found


def _joint_parts(config: ModelConfig, image: jax.Array) -> dict[str, tuple[float, float]]:
    """What a joint look does beside its convolutions: milliseconds, none of them of convolutions."""
    key, pixels = jax.random.key(1), image[0].size
    pair = quieted(image, image)
    random = jax.random.normal(key, (2 + config.steps, pixels))
    slopes, bells = [random[0], random[1]], jnp.exp(-(random[2:] ** 2))
    sizes = (2, 2, 1, 2)
    gaussians = Gaussians(*(jnp.full((config.steps, size), 0.1) for size in sizes))
    taken = jnp.ones(config.steps, bool)
    flat = [slope.reshape(image.shape[1:-1]) for slope in slopes]

    def around(residual: jax.Array) -> jax.Array:
        return local_flow(residual, flat, deviations=SCALES)[0]

    def solved(residual: jax.Array) -> jax.Array:
        return weights_step(bells, residual, slopes, gaussians, taken, 0.1)

    return {
        "local contrast, both images": (2 * milliseconds(lambda one: local_contrast(one, pair.noise[0]), image[0]), 0.0),
        "motion around every pixel": (milliseconds(around, image[0, ..., 0]), 0.0),
        "the weights of all": (milliseconds(solved, random[0]), 0.0),
    }


def print_look(name: str) -> None:
    """The table of one preset."""
    config = PRESETS[name].model
    pair = jax.random.normal(jax.random.key(1), (2, 1, config.resolution, config.resolution, 1))
    params = R2N2(config).init(jax.random.key(0), *pair, steps=1)
    forward = jax.jit(lambda fixed, moving: R2N2(config).apply(params, fixed, moving).displacement)
    whole = _best(forward, *pair) / config.steps
    parts = look_parts(config)
    print(f"\nOne look of the preset `{name}`, {config.resolution}², {whole:.2f} ms of a pass's {config.steps}:\n")
    print("| part | ms | share, % | GFLOP/s |\n|---|---|---|---|")
    for part, (each, gflop) in parts.items():
        rate = f"{1e3 * gflop / each:.0f}" if gflop else ""
        print(f"| {part} | {each:.3f} | {100 * each / whole:.0f} | {rate} |")
    together, gflop = (sum(values) for values in zip(*parts.values(), strict=True))
    print(f"| together | {together:.3f} | {100 * together / whole:.0f} | {1e3 * gflop / together:.0f} |")


def print_registration() -> None:
    """The table of the everyday registration of one 256² pair."""
    registrar = load()
    model, refine = registrar.config.model, Options.refine
    phantom = held_out_phantoms(PhantomConfig(), (256, 256), "test", 1)
    fixed, moving = (np.asarray(images[..., 0]) for images in (phantom.fixed, phantom.moving))
    near, far = ((factor * model.resolution,) * 2 for factor in (1, 2))
    seen, finer = views(model, fixed, moving, refine=refine)

    wanted = Wanted(jnp.zeros(()), jnp.ones(model.ndim))

    def answer(refine: int) -> Any:
        seen = views(model, fixed, moving, refine=refine)
        found = find(registrar.params, model, seen, wanted, looks=model.steps, refine=refine).gaussians
        return found, apply(found, moving, shape=fixed.shape[1:])

    def refined(seen: View, iterations: int) -> Any:
        return refine_batch(seen.fixed, seen.moving, start, iterations=iterations)

    start = answer(0)[0]
    equations = pose(seen.fixed[0], seen.moving[0], None)
    free = to_free(jax.tree.map(lambda array: array[0], start))
    whole = _best(lambda: answer(refine))
    parts = {
        "network, with what comes before and after": _best(lambda: answer(0)),
        f"{refine} Levenberg-Marquardt steps at {near[0]}²": _best(lambda: refined(seen, refine)),
        f"{refine // 2} at {far[0]}²": _best(lambda: refined(finer, refine // 2)),
        "of a step: normal equations": milliseconds(lambda free: normal_equations(equations, free, 0.1), free),
        "of a step: a trial": milliseconds(lambda free: objective(equations, free, 0.1), free),
    }
    print(f"\nThe everyday registration of a 256² pair, {whole:.1f} ms:\n\n| part | ms | share, % |\n|---|---|---|")
    for part, each in parts.items():
        print(f"| {part} | {each:.2f} | {100 * each / whole:.0f} |")


def _best(call: Callable[..., Any], *arrays: Any) -> float:
    """Milliseconds of a call, compilation apart."""
    jax.block_until_ready(call(*arrays))
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        jax.block_until_ready(call(*arrays))
        times.append(1e3 * (time.perf_counter() - start))
    return min(times)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    matrix = jax.random.normal(jax.random.key(0), (2048, 2048))
    rate = 2e-6 * 2048**3 / _best(jax.jit(jnp.matmul), matrix, matrix)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, 2048² float32 matrix product {rate:.0f} GFLOP/s")
    print_registration()
    for name in parser.parse_args().presets:
        print_look(name)


if __name__ == "__main__":
    main()
