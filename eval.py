"""Judges a network: ``r2n2-jax eval``, from a checkout."""

from r2n2_jax.commands.evaluate import command

if __name__ == "__main__":
    raise SystemExit(command())
