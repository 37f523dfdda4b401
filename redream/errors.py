"""The base of every named error: one sentence that says what is wrong and what to do."""


class RedreamError(ValueError):
    """Bad input, or a thing that cannot be had. Its message is one sentence for the person who asked; screens show it as
    it is. Any other exception is a fault of this program."""
