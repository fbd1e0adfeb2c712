"""The weights that come with the package, a file for each network: the config of its training and the arrays, by flax."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization

from r2n2_jax.config import Config, from_dict, to_dict

NAME = "pretrained"
_FILES = {2: "everyday.msgpack", 3: "volume.msgpack"}


def restore(*, ndim: int = 2) -> tuple[Config, Any]:
    """The config and the weights of the network for slices (2) or volumes (3); their cards are in ``README.md`` beside them."""
    plain = serialization.msgpack_restore(resources.files(__package__).joinpath(_FILES[ndim]).read_bytes())
    return from_dict(json.loads(plain["config"])), plain["params"]


def save(path: Path, config: Config, params: Any) -> None:
    """Writes a file as ``restore`` reads it."""
    arrays = jax.tree.map(np.asarray, params)
    path.write_bytes(serialization.msgpack_serialize({"config": json.dumps(to_dict(config)), "params": arrays}))
