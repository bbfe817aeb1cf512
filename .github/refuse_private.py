"""Refuse files that may hold patients: python .github/refuse_private.py FILE [FILE ...]

DICOM files by name and by content, tables with a column of patients' or images' ids, tables that no reviewer can read,
and notebooks with outputs. Needs nothing but Python. A line for each file refused; the status is 1 if there is one.
"""

import csv
import gzip
import json
import re
import sys
import zlib
from pathlib import Path

ID_COLUMNS = {"subjectid", "patientid", "dicomid", "patientname", "accessionnumber", "studyinstanceuid"}
TEXT_TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
BINARY_TABLES = (".xls", ".xlsx", ".ods", ".parquet", ".feather", ".sqlite", ".db")
HEADER_BYTES = 64 * 1024


def reason_to_refuse(path: Path) -> str | None:
    """Why a file should not be committed; None if nothing speaks against it."""
    name = path.name.lower()
    with path.open("rb") as file:
        start = file.read(132)
    if name.endswith((".dcm", ".dicom")) or name == "dicomdir" or start[128:] == b"DICM":
        return "a DICOM file"
    if name.endswith(BINARY_TABLES):
        return "a table that cannot be reviewed; commit text"
    if name.endswith(TEXT_TABLES):
        columns = id_columns(path)
        return f"a table with ids of patients or images ({', '.join(columns)})" if columns else None
    if name.endswith(".ipynb"):
        return "a notebook with outputs; clear them" if has_outputs(path) else None
    return None


def id_columns(path: Path) -> list[str]:
    """The columns of a table that name patients, studies or images, however they are spelt."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            line = file.readline(HEADER_BYTES).decode("utf-8-sig", errors="replace")
    except (OSError, EOFError, zlib.error):
        return ["unreadable"]
    delimiter = max(",;\t", key=line.count)
    names = next(csv.reader([line], delimiter=delimiter), [])
    return [name.strip() for name in names if re.sub(r"[^a-z0-9]", "", name.lower()) in ID_COLUMNS]


def has_outputs(path: Path) -> bool:
    """Whether any cell of a notebook has been run; so if it cannot be read."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8")).get("cells", [])
        return any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    except (ValueError, AttributeError):
        return True


def main() -> int:
    """Look at the files named on the command line."""
    refused = {
        path: reason for path in map(Path, sys.argv[1:]) if path.is_file() and (reason := reason_to_refuse(path))
    }
    for path, reason in refused.items():
        print(f"{path}: {reason}")
    return int(bool(refused))


if __name__ == "__main__":
    raise SystemExit(main())
