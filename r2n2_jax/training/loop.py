"""The training loop: resume, step, validate, checkpoint."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from tensorboardX import SummaryWriter
from tqdm import tqdm

from r2n2_jax.config import Config, differences, to_dict
from r2n2_jax.data.dataset import Examples, Source
from r2n2_jax.errors import DivergedError, InputError
from r2n2_jax.io.files import read_json, write_json
from r2n2_jax.pretrained.checkpoints import Checkpoints
from r2n2_jax.runtime.devices import EVERYWHERE, leads, own_copy, training_mesh, whole_batch
from r2n2_jax.runtime.programs import kept
from r2n2_jax.training.state import TrainState, init_state, learning_rate, restore_state, save_state
from r2n2_jax.training.step import make_train_step
from r2n2_jax.training.validation import Validation, make_validate

_REPORT_EVERY = 10
_MOST_SKIPPED_IN_A_ROW = 20
_PICTURES = 4


def claim(workdir: Path, config: Config, data: str, init: str | None = None) -> None:
    """Makes ``workdir`` this run's, or makes sure that it already is.

    Args:
        workdir: the run's folder.
        config: the run's config, kept in ``config.json``.
        data: what it trains on, kept there too.
        init: whose weights it starts from, likewise.

    Raises:
        InputError: where the folder belongs to a run with another config or other data.
    """
    asked = {"data": {"source": data, "init": init}, **to_dict(config)}
    path = workdir / "config.json"
    if path.exists():
        changed = differences(read_json(path), asked)
        if changed:
            raise InputError(
                f"{workdir}: holds a run of another config ({'; '.join(changed)}); name a new --workdir, "
                f"or ask for what it was begun with"
            )
        return
    if workdir.is_file() or (workdir.is_dir() and any(workdir.iterdir())):
        raise InputError(f"{workdir}: holds something else than a training run; name a new or empty --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, asked)


def train(
    config: Config,
    workdir: Path,
    source: Source,
    *,
    params: Any = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = True,
) -> TrainState:
    """Trains until ``config.training.steps``, from the last checkpoint of ``workdir`` where there is one.

    Leaves checkpoints in ``workdir/checkpoints`` and curves in ``workdir/tensorboard``.

    Args:
        config: the run's config.
        workdir: its folder, see ``claim``.
        source: what it trains and validates on.
        params: weights to start from, of the config's architecture; by default fresh ones.
        devices: those that share every batch; by default all, of all processes. Process 0 writes.
        progress: show a bar.

    Raises:
        DivergedError: where too many steps in a row had no finite gradient.
    """
    with Checkpoints(workdir, create=True) as checkpoints:
        return _train(config, workdir, source, checkpoints, params, training_mesh(config.training.at_once, devices), progress)


def _train(
    config: Config, workdir: Path, source: Source, checkpoints: Checkpoints, params: Any, mesh: Mesh, progress: bool
) -> TrainState:
    # Resume order: 1. the state, whose step says how far the run had come; 2. the data from that step on; 3. the curves,
    # cleared of what a killed run wrote after its last checkpoint. The noise needs nothing: its key is in the state.
    everywhere = NamedSharding(mesh, EVERYWHERE)
    if checkpoints.latest is None:
        state = jax.jit(init_state, static_argnums=0, out_shardings=everywhere)(config, params)
    else:
        state = restore_state(checkpoints, config, everywhere)
    start = int(state.step)
    total = config.training.steps
    batches = source.batches(start)
    examples = source.examples(config.training.validation_pairs)
    train_step = kept(make_train_step(config), depends=config, donate=1)
    validate = make_validate(config.model, examples)

    with _curves(workdir, start) as writer, _bar(start, total, shown=progress and leads()) as bar:
        shown: dict[str, Any] = {}
        metrics: dict[str, Any] = {}
        for step in range(start + 1, total + 1):
            before = metrics
            state, metrics = train_step(state, *whole_batch(next(batches), mesh))
            # One step ahead of the device and no more: what the bar counts is what is done.
            jax.block_until_ready(before)

            if step % _REPORT_EVERY == 0 or step == total:
                values = {name: float(value) for name, value in metrics.items()}
                if values["skipped_in_a_row"] >= _MOST_SKIPPED_IN_A_ROW:
                    raise DivergedError(
                        f"step {step}: the last {values['skipped_in_a_row']:.0f} gradients were not finite; "
                        f"start again in a new --workdir with a lower --optimiser.learning-rate"
                    )
                _write_scalars(writer, "train", values | {"learning_rate": _rate(config, step)}, step)
                shown |= {"loss": f"{values['loss']:.4f}"}
                if values["skipped"]:
                    shown |= {"skipped": int(values["skipped"])}

            if step % config.training.checkpoint_every == 0 or step == total:
                found = validate(own_copy(state.params))
                _write_validation(writer, examples, found, step)
                save_state(checkpoints, state, config, found.score)
                shown |= {"val_mse": f"{found.mse:.4f}"} if found.tre_px is None else {"TRE": f"{found.tre_px:.2f}px"}

            if step == start + 1:
                jax.block_until_ready(metrics)
                bar.unpause()  # the first step compiled: its time says nothing of the others'
            bar.set_postfix(shown, refresh=False)
            bar.update()
    return state


def _bar(start: int, total: int, *, shown: bool) -> tqdm:
    """A bar whose rate is the mean of all steps but the first, validations included: what the time left is made of."""
    return tqdm(total=total, initial=start, unit="step", smoothing=0.0, disable=not shown)


@contextlib.contextmanager
def _curves(workdir: Path, start: int) -> Iterator[SummaryWriter]:
    writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1, write_to_disk=leads())
    try:
        yield writer
    finally:
        writer.close()


def _rate(config: Config, step: int) -> float:
    return float(learning_rate(config.optimiser, config.training.steps)(step - 1))


def _write_scalars(writer: SummaryWriter, group: str, values: dict[str, float], step: int) -> None:
    for name, value in values.items():
        writer.add_scalar(f"{group}/{name}", value, step)


def _write_validation(writer: SummaryWriter, examples: Examples, found: Validation, step: int) -> None:
    values = {"mse": found.mse, "coverage": found.coverage}
    values |= {} if found.tre_px is None else {"tre_px": found.tre_px}
    _write_scalars(writer, "validation", values, step)
    writer.add_image("validation/fixed_moving_warped_difference", _montage(examples, found), step, dataformats="HW")
    writer.flush()


def _montage(examples: Examples, found: Validation) -> np.ndarray:
    """A row a pair: fixed, moving, warped, and |fixed - warped|, of volumes the middle plane; uint8."""
    fixed, moving, warped = (_plane(images[:_PICTURES]) for images in (examples.fixed, examples.moving, found.warped))
    rows = np.concatenate([fixed + 2.0, moving + 2.0, warped + 2.0, 2.0 * np.abs(fixed - warped)], axis=2)
    return (np.clip(rows.reshape(-1, rows.shape[-1]) / 4.0, 0.0, 1.0) * 255.0).astype(np.uint8)


def _plane(images: jax.Array) -> np.ndarray:
    """``[N, *spatial, 1]`` to ``[N, H, W]``."""
    pixels = np.asarray(jax.device_get(images))[..., 0]
    return pixels if pixels.ndim == 3 else pixels[:, pixels.shape[1] // 2]
