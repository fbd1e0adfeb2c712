"""Trains a network: ``r2n2-jax train``, from a checkout."""

from r2n2_jax.commands.train import command

if __name__ == "__main__":
    raise SystemExit(command())
