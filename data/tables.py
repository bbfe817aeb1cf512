"""CSV tables whose every fault is one line naming the file, the row and the column.

`pandas.read_csv` repairs what it should refuse: a row with one field too many turns the first column into the index
and shifts all others, ids such as `007` or `NA` become numbers or gaps, duplicate columns are renamed, NUL bytes stay.
Here the csv module reads in strict mode, every value stays text, and the field count of every row is checked.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from data.errors import InputError
from data.files import atomic_write

MAX_LINE = 1 << 24  # characters; a report text is thousands, a line without end is a damaged or hostile file
MAX_EXPANSION = 200  # a label table of zeros and ones shrinks about 20 times under gzip, a bomb 1000 times
FREE_EXPANSION = 1 << 26  # bytes that any gzip file may expand to
CHUNK_ROWS = 20_000  # rows held as Python lists at a time: bounds the memory that reading takes over the result

NEEDS_QUOTES = re.compile('[",\r\n]')


def read_table(
    path: Path,
    required: Sequence[str] = (),
    *,
    only_required: bool = False,
    unnamed: bool = False,
    blank_end: bool = False,
) -> pd.DataFrame:
    """Read a comma-separated UTF-8 table (`.csv` or `.csv.gz`, byte order mark allowed) with a header row.

    Args:
        required: Columns that must be there; others are kept too, in the file's order.
        only_required: Others are checked, but not kept: a tenth of the memory for a table with report texts.
        unnamed: Columns may lack a name, such as the row index of some tools; column 4 is then called "column 4".
        blank_end: The header and any row may end in empty fields beyond the last named column; they are dropped.

    Returns:
        One row per data row, RangeIndex, every value a `str`, `""` for an empty field. Blank lines are skipped.

    Raises:
        InputError: The file is missing, empty, not UTF-8, cut off, has no data rows, a wrong number of fields in a
            row, an unclosed quote, a NUL, or an empty, repeated or missing column name.
    """
    path = Path(path)
    try:
        with _open(path) as file:
            return _parse(path, file, required, only_required, unnamed, blank_end)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason}); save it as CSV in UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged or cut gzip file ({error}); copy it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def require_columns(path: Path, header: Sequence[str], required: Sequence[str]) -> None:
    """Refuse a table without the required columns, or one that is not separated by commas.

    Raises:
        InputError: Names the missing columns, those that are there, and a wrong separator if there seems to be one.
    """
    missing = [name for name in required if name not in header]
    separated = len(header) == 1 and re.search(r"\S[;\t|]\s*\S", header[0])
    hint = "; fields must be separated by commas" if separated else ""
    if missing:
        raise InputError(f"{path}, row 1: missing column {_names(missing)}; found {_names(header)}{hint}")
    if hint:
        raise InputError(f"{path}, row 1: one column, '{header[0][:40]}...'{hint}")


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as UTF-8, comma, LF, minimal quotes; the file is complete or absent.

    Floats get the shortest text that reads back as the same number of their dtype; NaN becomes an empty field.
    """
    atomic_write(Path(path), table_bytes(list(frame.columns), [_as_text(frame[name]) for name in frame.columns]))


def table_bytes(names: Sequence[str], columns: Sequence[Sequence[str]]) -> bytes:
    """The bytes of a table given as columns of text: the one form that tables and digests are made from."""
    quoted = [_quote([name, *values], alone=len(names) == 1) for name, values in zip(names, columns, strict=True)]
    return ("\n".join(map(",".join, zip(*quoted, strict=True))) + "\n").encode()


def _open(path: Path) -> io.TextIOWrapper:
    raw = gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb")
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")  # newline "": the csv module sees line ends itself


def _parse(
    path: Path,
    file: io.TextIOWrapper,
    required: Sequence[str],
    only_required: bool,
    unnamed: bool,
    blank_end: bool,
) -> pd.DataFrame:
    rows = _rows(path, file)
    _, header = next(rows, (0, None))
    if header is None:
        raise InputError(f"{path}: empty file; a header row with column names is wanted")
    while blank_end and header and not header[-1].strip():
        header.pop()
    if unnamed:
        header = [name if name.strip() else f"column {number}" for number, name in enumerate(header, start=1)]
    _check_header(path, header, required)
    kept = [place for place, name in enumerate(header) if not only_required or name in required]
    parts: list[list[np.ndarray]] = []
    while chunk := _read_chunk(path, rows, len(header), kept, blank_end):
        parts.append([np.array(column, dtype=object) for column in zip(*chunk, strict=True)])
    if not parts:
        raise InputError(f"{path}: no rows below the header")
    columns = [pd.array(np.concatenate(values), dtype="str") for values in zip(*parts, strict=True)]
    return pd.DataFrame(dict(zip((header[place] for place in kept), columns, strict=True)))


def _lines(path: Path, file: io.TextIOWrapper) -> Iterator[str]:
    """Lines of the file, each bounded, without NUL; stops a gzip file that expands beyond reason."""
    limit = max(FREE_EXPANSION, MAX_EXPANSION * path.stat().st_size)
    num_characters = 0
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        num_characters += len(line)
        if len(line) == MAX_LINE:
            raise InputError(f"{path}, row {number}: line longer than {MAX_LINE} characters")
        if num_characters > limit:
            raise InputError(f"{path}, row {number}: expands to more than {MAX_EXPANSION} times its size; refused")
        if "\0" in line:
            raise InputError(f"{path}, row {number}: NUL character; the file is damaged or not UTF-8 text")
        yield line


def _rows(path: Path, file: io.TextIOWrapper) -> Iterator[tuple[int, list[str]]]:
    """(line number at which the row starts, fields), blank lines left out."""
    reader = csv.reader(_lines(path, file), strict=True)
    start = 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path}, row {start}: {error}; is a quote left open or misplaced?") from None
        if row:
            yield start, row
        start = reader.line_num + 1


def _read_chunk(
    path: Path, rows: Iterator[tuple[int, list[str]]], num_columns: int, kept: list[int], blank_end: bool
) -> list[list[str]]:
    chunk: list[list[str]] = []
    for number, row in rows:
        if blank_end and len(row) > num_columns and not any(row[num_columns:]):
            del row[num_columns:]
        if len(row) != num_columns:
            raise InputError(f"{path}, row {number}: {len(row)} fields, but the header has {num_columns} columns")
        chunk.append(row if len(kept) == num_columns else [row[place] for place in kept])
        if len(chunk) == CHUNK_ROWS:
            break
    return chunk


def _check_header(path: Path, header: list[str], required: Sequence[str]) -> None:
    seen: set[str] = set()
    for number, name in enumerate(header, start=1):
        if not name.strip():
            raise InputError(f"{path}, row 1: column {number} has no name")
        if name in seen:
            raise InputError(f"{path}, row 1: column '{name}' occurs twice")
        seen.add(name)
    require_columns(path, header, required)


def _names(names: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _as_text(column: pd.Series) -> list[str]:
    if isinstance(column.dtype, pd.StringDtype):
        return column.tolist()
    return ["" if value != value else str(value) for value in column.array]  # NaN is the one value unlike itself


def _quote(values: list[str], alone: bool) -> list[str]:
    if alone:  # a row that is one empty field would be a blank line
        return [_quote_one(value) if not value or NEEDS_QUOTES.search(value) else value for value in values]
    together = "".join(values)
    if not any(character in together for character in '",\r\n'):  # most columns need no quotes
        return values
    return [_quote_one(value) if NEEDS_QUOTES.search(value) else value for value in values]


def _quote_one(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'
