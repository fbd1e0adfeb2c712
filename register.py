"""Registers two images, or the frames of series: ``r2n2-jax register``, from a checkout."""

from r2n2_jax.commands.register import command

if __name__ == "__main__":
    raise SystemExit(command())
