"""Checkpoints: weights, what training goes on with, and the config, kept by orbax under ``WORKDIR/checkpoints``."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from r2n2_jax.config import Config, from_dict, to_dict
from r2n2_jax.errors import InputError
from r2n2_jax.models.r2n2 import init_params

_policies = ocp.checkpoint_managers


class Checkpoints:
    """The checkpoints of one run: the last and the best, by a score where lower is better.

    Writing is atomic: a run killed while it writes finds its previous checkpoint. At the end of a ``with`` block the folder is
    released.

    Args:
        workdir: the run's folder.
        create: make the folder where it is missing (to train), or refuse it (to read).

    Raises:
        InputError: where there is nothing to read, or what is there is damaged.
    """

    def __init__(self, workdir: Path, *, create: bool = False):
        self._workdir = workdir
        folder = workdir / "checkpoints"
        if not create and not folder.is_dir():
            raise InputError(f"{workdir}: no checkpoint here; name the --workdir of a training run")
        policy = _policies.AnyPreservationPolicy(
            [_policies.LatestN(1), _policies.BestN(get_metric_fn=lambda metrics: metrics["score"], reverse=True, n=1)]
        )
        options = ocp.CheckpointManagerOptions(
            create=create,
            best_fn=lambda metrics: metrics["score"],
            best_mode="min",
            preservation_policy=policy,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=create,
        )
        try:
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        except ValueError as error:
            raise InputError(f"{workdir}: a checkpoint's score cannot be read, it is damaged ({error})") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The last step saved, or None."""
        return self._manager.latest_step()

    @property
    def best(self) -> int:
        """The step of the best score.

        Raises:
            InputError: where no checkpoint was finished yet.
        """
        step = self._manager.best_step()
        if step is None:
            raise InputError(f"{self._workdir}: no finished checkpoint here yet; train on with the same --workdir")
        return step

    def save(self, step: int, params: Any, rest: Any, config: Config, score: float) -> None:
        """Writes one checkpoint: the weights, the rest of the training's state, the config."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                rest=ocp.args.StandardSave(rest),
                config=ocp.args.JsonSave(to_dict(config)),
            ),
            metrics={"score": score},
        )

    def restore(self, params: Any, rest: Any, sharding: jax.sharding.Sharding | None = None) -> tuple[Any, Any]:
        """The last step's weights and the rest, on whichever devices they were saved.

        Args:
            params: the weights' shapes.
            rest: the shapes of the rest.
            sharding: where both go; by default to this process's first device.
        """
        saved = self._restored(
            self.latest,
            params=ocp.args.StandardRestore(_placed(params, sharding)),
            rest=ocp.args.StandardRestore(_placed(rest, sharding)),
        )
        return saved.params, saved.rest

    def restore_best(self) -> tuple[Config, Any]:
        """The config and the weights of the best step, to register with."""
        config = self.config(self.best)
        template = _placed(jax.eval_shape(lambda key: init_params(key, config.model), jax.random.key(0)))
        return config, self._restored(self.best, params=ocp.args.StandardRestore(template)).params

    def config(self, step: int) -> Config:
        """The config that a checkpoint was made with.

        Raises:
            InputError: where this version cannot read it.
        """
        plain = self._restored(step, config=ocp.args.JsonRestore()).config
        try:
            return from_dict(plain)
        except ValueError as error:
            raise InputError(f"{self._workdir}: a checkpoint of another version: {error}") from error

    def _restored(self, step: int, **items: ocp.args.CheckpointArgs) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except ValueError as error:
            raise InputError(
                f"{self._workdir}: the checkpoint of step {step} cannot be read, it is damaged or of another version ({error})"
            ) from error


def _placed(template: Any, sharding: jax.sharding.Sharding | None = None) -> Any:
    """Shapes that carry a sharding, so that a state saved on other devices lands where it is wanted."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0]) if sharding is None else sharding
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), template)
