"""The one exception for everything a user can get wrong."""


class InputError(ValueError):
    """A file, key or value that cannot be used.

    The message is one line: which file, row or key; what was wanted; what was found; what to do. Commands print
    it as ``error: ...`` and leave with status 1, without a traceback.
    """
