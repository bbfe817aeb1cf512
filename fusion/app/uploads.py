"""What may be uploaded, and what a file is called on the page: the name it was uploaded with, and nothing of its path.

The limits keep one careless drop from filling memory for everybody else; the server refuses larger files while they
arrive, and everything else is refused here, before anything is decoded.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.errors import InputError

MAX_FILES = 16  # views of one study: more than 4 are rare in every public set
MAX_FILE_MIB = 64  # an uncompressed 16-bit image of the largest detectors has 30
MAX_STUDY_MIB = 256
LONGEST_NAME = 48
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ufeff]")


class Upload(NamedTuple):
    """A file on its way in."""

    path: Path
    name: str
    """What to call it on the page."""


def take(files: Sequence[tuple[str, str]]) -> list[Upload]:
    """Uploaded files under the names to show, all within the limits.

    Args:
        files: Path on the server, and the file's name on the user's machine.

    Raises:
        InputError: No file, too many, or too large a study.
    """
    if not files:
        raise InputError("No file arrived. Drop the views of one study: JPEG, PNG or DICOM.")
    if len(files) > MAX_FILES:
        raise InputError(
            f"{len(files)} files are more than one study; at most {MAX_FILES} are read together. Drop the views of one"
            " study only."
        )
    uploads = [Upload(Path(path), shown_name(name)) for path, name in files]
    size = sum(upload.path.stat().st_size for upload in uploads if upload.path.is_file())
    if size > MAX_STUDY_MIB * 2**20:
        raise InputError(f"These files have {size >> 20} MiB together; at most {MAX_STUDY_MIB} MiB are read at a time.")
    return uploads


def shown_name(name: str) -> str:
    """The last part of a file's name, without control characters, shortened in the middle."""
    last = UNPRINTABLE.sub("", re.split(r"[/\\]", name)[-1]).strip() or "unnamed file"
    if len(last) <= LONGEST_NAME:
        return last
    return f"{last[: LONGEST_NAME - 17]}…{last[-16:]}"
