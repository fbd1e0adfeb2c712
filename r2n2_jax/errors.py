"""The one exception that a user's input raises."""


class InputError(ValueError):
    """Input that cannot be used: the message names what it is, what is wrong with it and what would be right, in one line."""
