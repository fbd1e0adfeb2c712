"""Every number a run depends on, as frozen dataclasses, and the presets ``small``, ``volume`` and ``paper``."""

import dataclasses
import math
import typing
from typing import Any, Literal


def _require(section: str, checks: dict[str, bool]) -> None:
    for message, holds in checks.items():
        if not holds:
            raise ValueError(f"{section}.{message}")


Precision = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture; the defaults are the paper's."""

    ndim: int = 2
    """Spatial dimensions of the images, 2 or 3; in 3D --preset volume is of a size that a CPU can train."""
    resolution: int = 256
    """Pixels per axis on which the network looks at the images."""
    depth: int | None = None
    """Voxels along the third axis, of volumes of few slices; by default as many as along the others."""
    steps: int = 25
    """Local transformations per registration (T)."""
    channels: tuple[int, int, int, int] = (32, 64, 128, 256)
    """Features at 1/2, 1/4 and 1/8 resolution, and those that the parameter network sees."""
    residual_blocks: int = 3
    """Residual blocks in each GR2U."""
    hidden: int = 1024
    """Units of the parameter network's hidden layer."""
    sigma_max: float = 0.3
    """Largest extension of a local transformation, normalised units."""
    sigma_min: float = 0.0
    """Smallest extension: a floor keeps training from shrinking them all to nothing, where no gradient brings them back."""
    sigma_is: Literal["variance", "std"] = "variance"
    """What eq 9's sigma is: a variance (to the letter) or a standard deviation (the authors' code)."""
    position_gain: float = 1.0
    """Factor on the features whose spatial softmax is the position: the same network, whose positions sharpen sooner."""
    flow: bool = False
    """Start each weight at what the images say of the motion under its Gaussian (Lucas and Kanade), and let the network answer
    with what to add; the paper's network answers with the whole."""
    joint: bool = False
    """Solve for the weights of all local transformations at every look, by local contrast, and show the network what the images
    say of the motion around every pixel; the paper's network answers for the newest alone. Goes without
    ``flow``, with ``optimiser.contrast``; from the seventh look on detail counts."""
    activation: Literal["tanh", "leaky_relu"] = "tanh"
    """tanh as in the paper, leaky ReLU as in the authors' code."""
    norm: Literal["none", "instance"] = "none"
    """Instance norm after the convolutions, as in the authors' code, or none."""
    noise: float = math.sqrt(0.5) / 0.5
    """Standard deviation of the multiplicative training noise; 0 draws none."""
    precision: Precision = "float32"
    """What the convolutions compute with; weights, transformations and images are float32 either way."""
    remat: bool = True
    """Recompute each step's activations in the backward pass instead of storing them."""

    def __post_init__(self) -> None:
        checks = {
            "ndim must be 2 or 3": self.ndim in (2, 3),
            "resolution must be at least 16": self.resolution >= 16,
            "depth is of volumes (ndim 3)": self.depth is None or self.ndim == 3,
            "depth must be at least 8": self.depth is None or self.depth >= 8,
            "steps must be at least 1": self.steps >= 1,
            "channels must be positive, the last one even": min(self.channels) >= 1 and self.channels[-1] % 2 == 0,
            "residual_blocks must not be negative": self.residual_blocks >= 0,
            "hidden must be at least 1": self.hidden >= 1,
            "sigma_min must not be negative, and below sigma_max": 0 <= self.sigma_min < self.sigma_max,
            "position_gain must be positive": self.position_gain > 0,
            "joint needs a sigma_min above zero, and no flow": not self.joint or (self.sigma_min > 0 and not self.flow),
            "noise must not be negative": self.noise >= 0,
        }
        _require("model", checks)

    @property
    def shape(self) -> tuple[int, ...]:
        """What the network looks at: ``(H, W)``, or ``(D, H, W)`` of volumes."""
        plane = (self.resolution,) * 2
        return plane if self.ndim == 2 else (self.depth or self.resolution, *plane)


@dataclasses.dataclass(frozen=True)
class PhantomConfig:
    """How the phantom's patients, breaths and acquisitions vary."""

    breath: tuple[float, float] = (0.06, 0.4)
    """Least and largest difference of the diaphragm's height between two frames; the field of view is 2 high."""
    pulsation: float = 0.02
    """Largest cardiac displacement, normalised units."""
    noise: float = 0.04
    """Largest standard deviation of the Rician noise, as a fraction of the brightest tissue."""
    bias: float = 0.3
    """Largest relative change of intensity by the coil's bias field."""
    blur: float = 0.008
    """Largest standard deviation of the blur, normalised units; 0.008 is a pixel at 256²."""
    density: bool = True
    """Let the lung's signal follow its density, 1 / det J of the motion."""
    variety: float = 0.0
    """Fraction of the training pairs that are made into something else: turned, zoomed, moved at random, recoloured, and
    half of them given contrast agent in one image."""
    shapes: float = 0.0
    """Fraction of these whose anatomy is random shapes in place of a patient."""

    def __post_init__(self) -> None:
        checks = {
            "breath must be two numbers, 0 <= least <= largest <= 0.4": 0 <= self.breath[0] <= self.breath[1] <= 0.4,
            "pulsation must be in [0, 0.05]": 0 <= self.pulsation <= 0.05,
            "noise must not be negative": self.noise >= 0,
            "bias must be in [0, 1)": 0 <= self.bias < 1,
            "blur must not be negative": self.blur >= 0,
            "variety must be in [0, 1]": 0 <= self.variety <= 1,
            "shapes must be in [0, 1], and variety above zero for any": 0 <= self.shapes <= (self.variety > 0),
        }
        _require("phantom", checks)


@dataclasses.dataclass(frozen=True)
class OptimiserConfig:
    """The loss (eq 6) and AMSGrad; the defaults are the paper's."""

    learning_rate: float = 1e-4
    """The rate after warm-up."""
    warmup: int = 0
    """Steps over which the rate rises from zero."""
    decay: Literal["constant", "cosine"] = "constant"
    """Keep the rate, or let it fall to a hundredth by the last step."""
    clip: float = 1.0
    """Largest global norm of a gradient."""
    tv_weight: float = 0.1
    """The weight lambda of the isotropic total variation."""
    brightness: bool = False
    """Leave out of the mismatch what a smooth change of brightness explains: a coil's sensitivity is not motion."""
    contrast: bool = False
    """Measure the mismatch of local contrast, as joint looks do: against an ever narrower window."""
    charge_leaving: bool = False
    """Charge a pixel that leaves the moving image what it cost undisplaced; in the paper it does not count."""

    def __post_init__(self) -> None:
        checks = {
            "learning_rate must be positive": self.learning_rate > 0,
            "warmup must not be negative": self.warmup >= 0,
            "clip must be positive": self.clip > 0,
            "tv_weight must not be negative": self.tv_weight >= 0,
            "brightness has nothing to leave out of contrast: one of both": not (self.contrast and self.brightness),
        }
        _require("optimiser", checks)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How long, on how much, from which seed."""

    steps: int = 180_000
    """Optimiser steps in all."""
    batch: int = 1
    """Pairs per step."""
    accumulate: int = 1
    """Parts of a batch, one after the other: the same gradient in less memory."""
    pairs: Literal["any", "fixed"] = "any"
    """Of one's own series: any two frames of a slice, or, as in the paper, every frame with the slice's fixed one."""
    checkpoint_every: int = 500
    """Steps between two validations, each followed by a checkpoint."""
    validation_pairs: int = 32
    """Unseen pairs that each validation registers."""
    seed: int = 0
    """Decides the initial weights, the data, their order and the noise."""

    def __post_init__(self) -> None:
        counts = ("steps", "batch", "accumulate", "checkpoint_every", "validation_pairs")
        _require("training", {f"{name} must be at least 1": getattr(self, name) >= 1 for name in counts})
        _require("training", {"batch must be a multiple of accumulate": self.batch % self.accumulate == 0})

    @property
    def at_once(self) -> int:
        """Pairs of which the activations are in memory together."""
        return self.batch // self.accumulate


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig = ModelConfig()
    phantom: PhantomConfig = PhantomConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    training: TrainingConfig = TrainingConfig()

    def __post_init__(self) -> None:
        warmup, steps = self.optimiser.warmup, self.training.steps
        compared = self.model.joint == self.optimiser.contrast
        _require("optimiser", {"contrast is what joint looks compare: set it and model.joint, or neither": compared})
        _require("optimiser", {f"warmup ({warmup}) must be below training.steps ({steps}); lower it too": warmup < steps})


# What older versions could set and what changed no result, by section.
_RETIRED = {"model": {"unroll"}}

_SMALL = Config(
    model=ModelConfig(
        resolution=64,
        steps=8,
        channels=(8, 16, 32, 64),
        hidden=256,
        sigma_min=0.005,
        position_gain=10.0,
        joint=True,
        noise=0.0,
        remat=False,
    ),
    optimiser=OptimiserConfig(learning_rate=1.5e-3, warmup=50, decay="cosine", contrast=True, charge_leaving=True),
    training=TrainingConfig(steps=560, batch=8, checkpoint_every=100, validation_pairs=32),
)

PRESETS = {
    "small": _SMALL,
    "volume": dataclasses.replace(
        _SMALL,
        model=dataclasses.replace(_SMALL.model, ndim=3, resolution=32, steps=12),
        training=TrainingConfig(steps=600, batch=4, checkpoint_every=50, validation_pairs=16),
    ),
    "paper": Config(),
}


def with_shorter_warmup(config: Config, steps: int) -> Config:
    """The config of a run of so many steps, its warm-up lowered to a tenth of them where it is longer."""
    warmup = min(config.optimiser.warmup, steps // 10)
    return dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, warmup=warmup))


def to_dict(config: Config) -> dict[str, Any]:
    """Plain dictionaries, lists and numbers, as JSON keeps them."""
    plain = dataclasses.asdict(config)
    return {
        section: {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        for section, fields in plain.items()
    }


def from_dict(plain: dict[str, Any]) -> Config:
    """The inverse of ``to_dict``, also of an older version's.

    Raises:
        ValueError: where a section or field is unknown or out of range.
    """
    sections = typing.get_type_hints(Config)
    unknown = set(plain) - set(sections)
    if unknown:
        raise ValueError(f"unknown config sections: {', '.join(sorted(unknown))}")
    built = {}
    for section, fields in plain.items():
        known = {name: value for name, value in fields.items() if name not in _RETIRED.get(section, ())}
        tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
        try:
            built[section] = sections[section](**tuples)
        except TypeError as error:
            raise ValueError(f"config section {section}: {error}") from error
    return Config(**built)


def differences(saved: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """``section.field: saved -> asked`` for every field in which two plain configs differ.

    What a run of an older version did not know, and so did not save, it did as the defaults say.
    """
    lines, defaults = [], to_dict(Config())
    for section in sorted(saved.keys() | asked.keys()):
        old, new = defaults.get(section, {}) | saved.get(section, {}), asked.get(section, {})
        lines += [
            f"{section}.{name}: {old.get(name)} -> {new.get(name)}"
            for name in sorted((old.keys() | new.keys()) - _RETIRED.get(section, set()))
            if old.get(name) != new.get(name)
        ]
    return lines
