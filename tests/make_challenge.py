"""A challenge's official files and a model's predictions, made up in the published layout, and ways to break them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from tests.submission_checker import HEADERS

NUM_TEST = 11
NUM_PREDICTED = 17


@dataclass
class Files:
    """What a participant has on disk; all ids are text."""

    folder: Path
    template: Path
    test_table: Path
    predictions: Path
    manifest: Path
    images: pd.DataFrame
    """image_id, study_id, patient_id of all predicted images, in the order of `values`."""
    values: pd.DataFrame


def make_challenge(folder: Path, challenge: str, seed: int = 0) -> Files:
    """The test set is 11 of 17 predicted images, in another order; the predictions know two classes more."""
    rng = np.random.default_rng(seed)
    id_column, *classes = HEADERS[challenge].split(",")
    images = image_ids(challenge, rng)
    columns = ["Extra finding", *rng.permutation(classes), "Other extra"]
    values = pd.DataFrame(rng.random((NUM_PREDICTED, len(columns)), dtype=np.float32), columns=columns)
    folder.mkdir(exist_ok=True)
    files = Files(
        folder,
        folder / "sample_submission.csv",
        folder / "test.csv",
        folder / "predictions_test.csv",
        folder / "manifest.csv",
        images,
        values,
    )
    test = images.iloc[rng.permutation(NUM_PREDICTED)[:NUM_TEST]]
    sample = pd.DataFrame({id_column: test["image_id"], **dict.fromkeys(classes, "0.5")})
    sample.to_csv(files.template, index=False)
    write_test_table(files.test_table, challenge, test)
    pd.concat([images, values], axis=1).to_csv(files.predictions, index=False, float_format="%.9g")
    return files


def image_ids(challenge: str, rng: np.random.Generator) -> pd.DataFrame:
    """Ids of the data set's form: studies of 1 to 3 images, patients of 1 to 4 studies."""
    study = sorted(rng.integers(0, 8, NUM_PREDICTED).tolist())
    if "2026" in challenge:
        studies = [f"{10**38 + 7 * number}" for number in study]
        names = [f"{text}_{number:06x}.png" for number, text in enumerate(studies)]
        names[3] = "00001335_006.png"  # NIH: zeros in front
        patients = [f"{2 * 10**38 + number // 4}" for number in study]
    else:
        words = rng.integers(0, 2**32, (NUM_PREDICTED, 5))
        names = ["-".join(f"{word:08x}" for word in row) for row in words]
        studies, patients = [f"{50000000 + n}" for n in study], [f"{10000032 + n // 4}" for n in study]
    return pd.DataFrame({"image_id": names, "study_id": studies, "patient_id": patients}, dtype=str)


def write_test_table(path: Path, challenge: str, test: pd.DataFrame) -> None:
    """2023 and 2024: six columns without labels. 2026: a rounded patient id, and 30 columns that have no name."""
    if "2026" in challenge:
        lines = ["ImageID,StudyDate_DICOM,PatientID" + "," * 30]
        lines += [f"{image},20170303,2.00E+38" + "," * 30 for image in test["image_id"]]
        path.write_text("\n".join(lines) + "\n")
        return
    s, name = ("", "path") if challenge == "cxr-lt-2023" else ("s", "fpath")
    columns = {
        "dicom_id": test["image_id"],
        "subject_id": test["patient_id"],
        "study_id": s + test["study_id"],
        "ViewPosition": "PA",
        "ViewCodeSequence_CodeMeaning": "",
        name: "files/p10/" + test["image_id"] + ".jpg",
    }
    pd.DataFrame(columns).to_csv(path, index=False)


def edit(path: Path, old: str, new: str, count: int = -1) -> None:
    """Replace text in a file; it must be there."""
    text = path.read_text()
    assert old in text, old
    path.write_text(text.replace(old, new, count))


def with_column(path: Path, column: int, change) -> None:
    """Rewrite one field of every data row."""
    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        row[column] = change(number, row[column])
    path.write_text("\n".join(map(",".join, [header, *rows])) + "\n")


def official(files: Files) -> dict[str, Path]:
    return {"template": files.template, "test_table": files.test_table}


def write_groups(files: Files, level: str, **changes) -> None:
    """Predictions with one row per study or patient, and no image: those of its first image."""
    table = pd.concat([files.images[[f"{level}_id"]], files.values], axis=1).drop_duplicates(f"{level}_id")
    table.assign(**changes).to_csv(files.predictions, index=False, float_format="%.9g")


def set_value(name: str, value: str):
    """Put a value into the last column but one (the last is not asked for) of the third row of a file."""
    return lambda files: with_column(getattr(files, name), -2, lambda row, old: value if row == 2 else old)


def reverse_rows(text: str) -> str:
    header, *rows = text.splitlines()
    return "\n".join([header, *reversed(rows)]) + "\n"


def repeat_last(text: str) -> str:
    return text + text.splitlines()[-1] + "\n"
