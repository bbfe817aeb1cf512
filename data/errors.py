"""The one exception for everything a user can get wrong."""

import os
import re

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class InputError(ValueError):
    """A file, key or value that cannot be used.

    The message is one line: which file, row or key; what was wanted; what was found; what to do. Commands print
    it as ``error: ...`` and leave with status 1, without a traceback. Line breaks and other control characters of a
    quoted name or value are spelled out, so that no file can forge a second line or speak to the terminal.
    """

    def __init__(self, message: str) -> None:
        super().__init__(CONTROL.sub(lambda found: repr(found[0])[1:-1], message))


def tell_launcher(error: Exception) -> None:
    """Hand an error to the launcher of several processes, whose summary ends with the first one that it got."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler  # seconds to load, rarely needed

        get_error_handler().record_exception(error)
