"""A challenge's submission file: its own sample file filled in by image id, or a refusal that says why.

Axes: **N** images, **C** classes.

Rows are joined by id. Aligning them by position scrambles every score, silently, once two processes finish in another
order. The sample file alone is not trusted either: a 2026 challenge shipped one 100 rows short of its test set, so the
test table can be given too and both must name the same images.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float32

from data.challenges import check_same_images
from data.errors import InputError
from data.files import atomic_write
from data.ids import check_ids, check_not_rounded
from data.predictions import check_predictions, check_probabilities, read_predictions, value_table
from data.tables import read_table, write_table

Predictions = tuple[pd.DataFrame, Float32[np.ndarray, "N C"], Sequence[str]]
"""Ids (`image_id, study_id, patient_id`), probabilities, classes: what `read_predictions` returns."""

ZIP_MEMBER = "submission.csv"
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest a zip can hold; a fixed one makes equal submissions equal files."""


@dataclass(frozen=True)
class SubmissionReport:
    """What was written, for the user to look at before an upload counts against the daily limit."""

    rows: int
    columns: tuple[str, ...]
    """The header, the id column first."""
    ranges: dict[str, tuple[float, float]]
    """Smallest and largest probability per class; one value only means that the class ranks nothing."""
    extra_predictions: int
    """Predicted images that the template does not ask for; left out."""


def write_submission(
    predictions: Path | Predictions,
    template: Path,
    out_csv: Path,
    out_zip: Path | None = None,
    test_table: Path | None = None,
    *,
    one_per_study: bool = False,
) -> SubmissionReport:
    """Write the template's rows and columns, in its order, with the predicted probabilities.

    Nothing is written unless every check passes.

    Args:
        predictions: A prediction table, or its ids, probabilities and classes.
        template: The challenge's sample file: an id column, then its classes. Its values are ignored.
        out_csv: Values in 9 significant digits.
        out_zip: Holds the same bytes as `submission.csv` at its root.
        test_table: The challenge's list of test images, with the template's id column or `image_id`.
        one_per_study: The predictions are study-level: all images of a study must carry the same probabilities.

    Raises:
        InputError: The files do not fit each other or a value is no probability; names file, id or column.
    """
    assert out_csv.suffix == ".csv", "the zip holds these bytes under the name submission.csv"
    where, (ids, values, classes) = _load(predictions)
    wanted = read_table(template)
    wanted_ids = _ids(wanted, wanted.columns[0], str(template))
    check_not_rounded(ids["image_id"], where)
    _check_classes(tuple(wanted.columns[1:]), tuple(classes), template, where)
    check_probabilities(ids["image_id"], values, classes, where)
    if one_per_study:
        _check_one_per_study(ids, values, classes, where)
    if test_table is not None:
        check_same_images(wanted_ids, template, _test_ids(wanted_ids, template, test_table), test_table)
    rows = _rows_of(wanted_ids, ids, template, where)
    names = list(wanted.columns[1:])
    order = [list(classes).index(name) for name in names]
    return write_files(wanted_ids, values[rows][:, order], names, out_csv, out_zip, len(ids) - len(rows))


def _load(predictions: Path | Predictions) -> tuple[str, Predictions]:
    if isinstance(predictions, Path):
        return str(predictions), read_predictions(predictions)
    check_predictions(*predictions, where="predictions")
    return "predictions", predictions


def _ids(table: pd.DataFrame, column: str, where: str) -> pd.Series:
    """The id column of a template or test table: not empty, every id there once and intact."""
    if not len(table):
        raise InputError(f"{where}: no rows, wanted one per test image")
    check_ids(table[column], where)
    return table[column]


def _check_classes(wanted: tuple[str, ...], found: tuple[str, ...], template: Path, where: str) -> None:
    unknown = [name for name in wanted if name not in found]
    if unknown or not wanted:
        names = ", ".join(unknown) or "no class columns at all"
        raise InputError(f"{template}: wants {names}, which {where} does not predict (it has {', '.join(found)})")
    left = [name for name in found if name not in wanted]
    if left:
        raise InputError(
            f"{template}: lacks the predicted classes {', '.join(left)} of {where}; use the template of the same "
            "class list, or remove these columns from the predictions"
        )


def _check_one_per_study(
    ids: pd.DataFrame, values: Float32[np.ndarray, "N C"], classes: Sequence[str], where: str
) -> None:
    study, _ = pd.factorize(ids["study_id"])
    first_row = np.unique(study, return_index=True)[1]
    differs = values != values[first_row[study]]
    if differs.any():
        row, column = np.argwhere(differs)[0]
        studies = len(np.unique(study[differs.any(axis=1)]))
        raise InputError(
            f"{where}, row {row + 2}, column {classes[column]!r}: image {ids['image_id'].iloc[row]!r} has "
            f"{values[row, column]:.9g} but image {ids['image_id'].iloc[first_row[study[row]]]!r} of the same study "
            f"{ids['study_id'].iloc[row]!r} has {values[first_row[study[row]], column]:.9g} ({studies} such studies)"
        )


def _test_ids(wanted_ids: pd.Series, template: Path, test_table: Path) -> pd.Series:
    table = read_table(test_table, unnamed=True)
    column = next((name for name in (str(wanted_ids.name), "image_id") if name in table.columns), None)
    if column is None:
        raise InputError(f"{test_table}: has neither a column {wanted_ids.name} (as {template}) nor image_id")
    return _ids(table, column, str(test_table))


def _rows_of(wanted_ids: pd.Series, ids: pd.DataFrame, template: Path, where: str) -> np.ndarray:
    """For each row of the template, the row of its prediction."""
    rows = pd.Index(ids["image_id"]).get_indexer(wanted_ids)
    if (rows < 0).any():
        raise InputError(
            f"{where}: no prediction for {wanted_ids.name} {wanted_ids[rows < 0].iloc[0]!r} of {template} "
            f"({(rows < 0).sum()} of {len(rows)} ids lack one)"
        )
    return rows


def write_files(
    ids: pd.Series,
    values: Float32[np.ndarray, "N C"],
    classes: Sequence[str],
    out_csv: Path,
    out_zip: Path | None,
    extra_predictions: int = 0,
) -> SubmissionReport:
    """Write checked rows as CSV and zip; equal rows give equal bytes.

    Args:
        ids: Text; its name becomes the first column's.
        out_zip: Holds the bytes of `out_csv` as `submission.csv` at its root, and nothing else.
    """
    write_table(out_csv, value_table(ids.to_frame(), values, classes))
    if out_zip is not None:
        atomic_write(out_zip, _zip_bytes(out_csv.read_bytes()))
    lows, highs = values.min(axis=0), values.max(axis=0)
    return SubmissionReport(
        rows=len(values),
        columns=(str(ids.name), *classes),
        ranges={name: (float(lows[c]), float(highs[c])) for c, name in enumerate(classes)},
        extra_predictions=extra_predictions,
    )


def _zip_bytes(content: bytes) -> bytes:
    member = zipfile.ZipInfo(ZIP_MEMBER, date_time=ZIP_TIME)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.create_system = 3  # Unix, wherever it was written: the bytes are the same
    member.external_attr = 0o644 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, content)
    return buffer.getvalue()
