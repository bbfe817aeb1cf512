"""What becomes of every DICOM file in a folder: read, or refused and why. For a look before a data set is prepared."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from pydicom import uid

from data.dicom import read_dicom
from data.errors import InputError
from data.files import atomic_write
from data.images import ImageError, decode_image, read_bytes

SUFFIXES = (".dcm", ".dicom", "")
COLUMNS = ("file", "outcome", "rows x columns", "transfer syntax", "grey scale", "view", "reason")


class Outcome(NamedTuple):
    """One line of the table, all text, nothing of it copied from a header."""

    file: str
    outcome: str  # "read" or "refused"
    size: str = ""
    transfer_syntax: str = ""
    photometric: str = ""
    view_position: str = ""
    reason: str = ""


def list_outcomes(folder: Path) -> list[Outcome]:
    """Try every file below a folder that ends in .dcm or .dicom or has no suffix, in the order of their names.

    Raises:
        InputError: no such folder, or none of these files in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise InputError(f"{folder}: no file in it ends in .dcm or .dicom, or has no suffix")
    return [outcome(path, path.relative_to(folder).as_posix()) for path in files]


def outcome(path: Path, name: str) -> Outcome:
    """Decode one file."""
    try:
        data = read_bytes(path)
        decode_image(data, name)  # refuses blank images and other formats too
        info = read_dicom(data, name)[1]
    except ImageError as error:
        return Outcome(name, "refused", reason=error.reason)
    size, syntax = f"{info.rows} x {info.columns}", uid.UID(info.transfer_syntax).name
    return Outcome(name, "read", size, syntax, info.photometric, info.view_position)


def markdown(outcomes: list[Outcome]) -> str:
    """The table, below a line that counts."""
    counts = Counter(entry.outcome for entry in outcomes)
    lines = [f"{len(outcomes)} files: {counts['read']} read, {counts['refused']} refused.", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(text.replace('|', chr(92) + '|') for text in entry)} |" for entry in outcomes]
    return "\n".join(lines) + "\n"


def main(folder: Path, out: Path | None = None) -> None:
    """Print the table.

    Args:
        folder: Folder with DICOM files, searched with all folders below it.
        out: Markdown file to write the table to instead.
    """
    text = markdown(list_outcomes(folder))
    if out is None:
        print(text, end="")
    else:
        atomic_write(out, text)
