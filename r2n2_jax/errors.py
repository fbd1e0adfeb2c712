"""What ends a command with one line and no traceback."""


class InputError(ValueError):
    """Input that cannot be used: the message names what it is, what is wrong with it and what would be right, in one line."""


class DivergedError(RuntimeError):
    """Training whose gradients are no longer finite."""
