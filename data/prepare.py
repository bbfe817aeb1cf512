"""The command `scripts/prepare.py`: a data set in, `manifest.csv` out, and a short account of what it holds.

A data set is one file in `data/sources/` with a function `read`, and one line in `SOURCES`: parameters and docstring of
`read` are the options of the command and their help.
"""

import csv
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from data import prepared_images
from data.errors import InputError
from data.join import join
from data.label_maps import SPACES
from data.label_spaces import class_groups
from data.manifest import SPLITS, Manifest, describe, read_manifest, write_manifest
from data.runs import run_command
from data.scan import write_rejected
from data.sources import (
    brax,
    chexpert,
    chexpert_plus,
    cxr_lt_2023,
    cxr_lt_2024,
    cxr_lt_2026,
    dicom_folder,
    mimic_cxr,
    mimic_cxr_jpg,
    nih_chest_xray14,
    nih_cxr_lt,
    padchest,
    rsna,
    table,
    vinbigdata,
    vindr,
)
from data.sources.cxr_lt_tables import read_challenge
from data.views import VIEWS

SOURCES: dict[str, tuple[Callable[..., Manifest], str]] = {
    "cxr-lt-2023": (cxr_lt_2023.read, "CXR-LT 2023 labels on MIMIC-CXR-JPG images"),
    "cxr-lt-2024": (cxr_lt_2024.read, "CXR-LT 2024 labels of task 1, 2 or 3 on MIMIC-CXR-JPG images"),
    "cxr-lt-2026": (cxr_lt_2026.read, "CXR-LT 2026 labels on PadChest images, and the test tables of tasks 1 and 2"),
    "mimic-cxr-jpg": (mimic_cxr_jpg.read, "MIMIC-CXR-JPG 2.0.0 or 2.1.0 with its report labels and official split"),
    "mimic-cxr": (mimic_cxr.read, "MIMIC-CXR, the DICOM files, with the tables of MIMIC-CXR-JPG"),
    "padchest": (padchest.read, "PadChest with the labels of its own table"),
    "chexpert": (chexpert.read, "CheXpert v1.0 or v1.0-small with its report labels, radiologists' for valid and test"),
    "chexpert-plus": (chexpert_plus.read, "CheXpert Plus, the PNGs, with CheXbert's labels of its reports"),
    "nih-chest-xray14": (nih_chest_xray14.read, "NIH ChestX-ray14 with the labels of its table and its official lists"),
    "nih-cxr-lt": (nih_cxr_lt.read, "NIH-CXR-LT (MICCAI 2023): 20 labels on NIH ChestX-ray14 images, its own split"),
    "vindr": (vindr.read, "VinDr-CXR with the labels of its readers and its test split"),
    "vinbigdata": (vinbigdata.read, "VinBigData (Kaggle), which is VinDr-CXR's training images, with 15 classes"),
    "rsna": (rsna.read, "RSNA Pneumonia Detection (Kaggle), on images of NIH ChestX-ray14"),
    "brax": (brax.read, "BRAX with its report labels"),
    "dicom": (dicom_folder.read, "a folder of DICOM radiographs, grouped by their headers"),
}
OUT_HELP = "the manifest to write, runs/<name>/manifest.csv"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a fault of the input ends it with one line and status 1."""
    logging.basicConfig(format="%(message)s")
    parser, commands = _parsers()
    arguments = parser.parse_args(argv)
    options = arguments[arguments.subcommand]
    try:
        commands[arguments.subcommand](options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def summary(manifest: Manifest) -> str:
    """Images, studies, patients, views and positives per split, as a table, and the classes that cannot be scored."""
    counts = {split: describe(manifest.of_split(split)) for split in SPLITS}
    groups = class_groups(counts["train"]["positives"], counts["train"]["images"])
    parts = ("head", "medium", "tail")
    header = ["", "images", "studies", "patients", *VIEWS, *(f"{part} +" for part in parts)]
    lines = [header]
    for split, count in counts.items():
        positives = [sum(n for name, n in count["positives"].items() if groups[name] == part) for part in parts]
        numbers = [count["images"], count["studies"], count["patients"], *count["views"].values(), *positives]
        lines.append([split, *(f"{number:,}" for number in numbers)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    sizes = ", ".join(f"{list(groups.values()).count(part)} {part}" for part in parts)
    text.append(f"{len(manifest.classes)} classes ({sizes}); + counts positive labels of images")
    for split, count in counts.items():
        if not count["images"]:
            text.append(f"no images in {split}")
            continue
        absent = [name for name, positives in count["positives"].items() if not positives]
        if absent:
            text.append(f"without a positive in {split}: {', '.join(absent)}")
    return "\n".join(text)


def _parsers() -> tuple[ArgumentParser, dict[str, Callable[[Namespace], None]]]:
    """The parser, and what each sub-command does with its options."""
    parser = ArgumentParser(prog="prepare.py", description="Turn a data set into runs/<name>/manifest.csv.")
    subcommands = parser.add_subcommands(required=True)
    commands: dict[str, Callable[[Namespace], None]] = {}
    for name, (read, help_text) in SOURCES.items():
        part = ArgumentParser(description=help_text)
        part.add_function_arguments(read)
        _add_out(part)
        subcommands.add_subcommand(name, part, help=help_text)
        commands[name] = partial(_read_and_write, read)
    for name, add_arguments, run, help_text in (
        ("table", _table_arguments, _table, "any CSV with one row per image"),
        ("phantom", _phantom_arguments, _phantom, "simulated chests, made here: nothing to download"),
        ("images", _images_arguments, _images, "the images of a manifest, once and for all at a working size"),
        ("join", _join_arguments, _join, "several manifests in one, in the classes of one challenge or data set"),
        ("accept", _accept_arguments, _accept, "take over a manifest.csv that was edited by hand"),
    ):
        part = ArgumentParser(description=help_text)
        add_arguments(part)
        subcommands.add_subcommand(name, part, help=help_text)
        commands[name] = run
    return parser, commands


def _add_out(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help=OUT_HELP)


def _read_and_write(read: Callable[..., Manifest], options: Namespace) -> None:
    out = _checked_out(options.pop("out"))
    _write(read(**vars(options)), out)


def _table_arguments(parser: ArgumentParser) -> None:
    parser.add_function_arguments(table.read, skip={"classes", "view_map"})
    parser.add_argument("--classes", required=True, help='label columns "A,B,C", or auto: all that hold only labels')
    parser.add_argument("--view_map", default="", help='views by other names, "PA view=PA,AP Supine=AP"')
    _add_out(parser)


def _table(options: Namespace) -> None:
    out = _checked_out(options.pop("out"))
    classes = options.pop("classes")
    view_map = dict(_pair(text) for text in _split_commas(options.pop("view_map")))
    names = "auto" if classes == "auto" else _split_commas(classes)
    _write(table.read(**vars(options), classes=names, view_map=view_map), out)


def _phantom_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--studies", default="1200,250,450", help="studies to simulate: train,val,test")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the patients, findings and noise")
    parser.add_argument("--out", type=Path, default=Path("runs/demo/manifest.csv"), help=OUT_HELP)


def _phantom(options: Namespace) -> None:
    """Simulate the data set beside the manifest, in the layout of the real one, then read it as the real one."""
    from data.sources.phantom import phantom_is_complete, write_phantom

    out = _checked_out(options.out)
    folder = out.parent / "phantom"
    sizes = [int(text) if text.strip().isdigit() else 0 for text in options.studies.split(",")]
    if len(sizes) != len(SPLITS) or min(sizes) < 1:
        raise InputError(f"--studies: three numbers from 1 on (train,val,test) are wanted, got '{options.studies}'")
    num_studies = (sizes[0], sizes[1], sizes[2])
    if phantom_is_complete(folder, num_studies=num_studies, size=options.size, seed=options.seed):
        print(f"{folder}: already complete")
    else:
        write_phantom(folder, num_studies=num_studies, size=options.size, seed=options.seed)
    form = replace(cxr_lt_2023.CHALLENGE, source="phantom", images={})  # the tables' form, not the release's numbers
    _write(read_challenge(form, folder / "mimic-cxr-jpg", folder / "cxr-lt-2023"), out)


def _images_arguments(parser: ArgumentParser) -> None:
    parser.add_function_arguments(prepared_images.prepare, skip={"folder"})
    _add_out(parser)


def _images(options: Namespace) -> None:
    out = _checked_out(options.pop("out"))
    run_command(lambda: _write(prepared_images.prepare(**vars(options), folder=out.parent / "images"), out))


def _join_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--manifests", type=Path, nargs="+", required=True, help="two or more; the first counts first")
    parser.add_argument("--classes", required=True, choices=list(SPACES), help="the label space to join them in")
    parser.add_argument(
        "--overlap",
        choices=("refuse", "drop"),
        default="refuse",
        help="for a patient with other splits elsewhere: refuse, or keep the rows in test, else in val, alone",
    )
    _add_out(parser)


def _join(options: Namespace) -> None:
    out = _checked_out(options.out)
    if out.resolve() in [path.resolve() for path in options.manifests]:
        raise InputError(f"--out {out}: is one of the manifests to join; name another folder")
    manifests = [read_manifest(path) for path in options.manifests]
    _write(join(manifests, [str(path) for path in options.manifests], options.classes, options.overlap), out)


def _accept_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--manifest", type=Path, required=True, help="the edited manifest.csv")


def _accept(options: Namespace) -> None:
    _write(read_manifest(options.manifest, accept_edits=True), options.manifest)


def _write(manifest: Manifest, out: Path) -> None:
    try:
        write_manifest(manifest, out)
        if manifest.rejected:
            write_rejected(out.parent, manifest.rejected)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); make room or name another folder"
        ) from None
    print(summary(manifest))
    if manifest.rejected:
        print(f"{len(manifest.rejected)} files left out, with reasons: {out.parent / 'rejected.csv'}")
    if (manifest.images["split"] == "train").any():  # a folder to predict on has nothing to train
        print(f"next: accelerate launch extract.py --run_dir {shlex.quote(str(out.parent))}")


def _checked_out(out: Path) -> Path:
    """The manifest's path, after seeing that it can be written: before the work, not after."""
    if out.name != "manifest.csv":
        raise InputError(f"--out {out}: the file must be called manifest.csv; the stages look for that name")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out.parent}: cannot be made ({error.strerror or error})") from None
    if not os.access(out.parent, os.W_OK):
        raise InputError(f"{out.parent}: cannot be written to")
    return out


def _split_commas(text: str) -> list[str]:
    """Names separated by commas; one that holds a comma itself stands in double quotes."""
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True), []) if name.strip()]


def _pair(text: str) -> tuple[str, str]:
    name, equals, view = text.rpartition("=")
    if not equals:
        raise InputError(f"--view_map: '{text}' is not of the form text=VIEW")
    return name.strip(), view.strip()
