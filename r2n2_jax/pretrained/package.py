"""The weights that come with the package, one file: the config they were trained with and the arrays, as flax packs them."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization

from r2n2_jax.config import Config, from_dict, to_dict

NAME = "pretrained"
_FILE = "everyday.msgpack"


def restore() -> tuple[Config, Any]:
    """The config and the weights of the everyday network; its card is ``README.md`` in this folder."""
    plain = serialization.msgpack_restore(resources.files(__package__).joinpath(_FILE).read_bytes())
    return from_dict(json.loads(plain["config"])), plain["params"]


def save(path: Path, config: Config, params: Any) -> None:
    """Writes a file as ``restore`` reads it."""
    arrays = jax.tree.map(np.asarray, params)
    path.write_bytes(serialization.msgpack_serialize({"config": json.dumps(to_dict(config)), "params": arrays}))
