"""The one exception for everything a user can get wrong."""

import os


class InputError(ValueError):
    """A file, key or value that cannot be used.

    The message is one line: which file, row or key; what was wanted; what was found; what to do. Commands print
    it as ``error: ...`` and leave with status 1, without a traceback.
    """


def tell_launcher(error: Exception) -> None:
    """Hand an error to the launcher of several processes, whose summary ends with the first one that it got."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler  # seconds to load, rarely needed

        get_error_handler().record_exception(error)
