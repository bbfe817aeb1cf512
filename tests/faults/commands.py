"""Small runs of the commands that write something, to be cut off anywhere."""

import contextlib
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data import prepare, submit
from data.cache_convert import convert, convert_in_place
from data.errors import InputError
from data.manifest import Manifest, write_manifest
from tests.launch import run
from tests.make_challenge import make_challenge
from tests.make_data import make_cache, make_manifest, write_images


@dataclass(frozen=True)
class Case:
    """A command and the folder that it writes to."""

    folder: Path
    command: Callable[[], object]
    skip: tuple[str, ...] = ()
    """What it only reads."""
    in_place: tuple[str, ...] = (".lock",)
    """What it writes under its final name: nothing that a result consists of."""


def tiny_manifest(root: Path) -> Manifest:
    """Twelve images, a third of the patients in each split."""
    manifest = make_manifest(root, 8, max_views=2)
    patient = manifest.images["patient_id"].str[1:].astype(int).to_numpy()
    manifest.images["split"] = np.array(["train", "val", "test"])[patient % 3]
    return manifest


def submission(base: Path) -> Case:
    """`submit.py`, over a former submission."""
    files = make_challenge(base / "in", "cxr-lt-2023")
    options = {"template": files.template, "test_table": files.test_table, "out": base / "out"}
    return Case(base / "out", lambda: submit.submit("cxr-lt-2023", files.predictions, **options))


def table(base: Path) -> Case:
    """`prepare.py table`."""
    manifest = tiny_manifest(base / "images")
    write_images(manifest)
    frame = pd.concat([manifest.images, pd.DataFrame(manifest.labels, columns=manifest.classes)], axis=1)
    frame.to_csv(base / "table.csv", index=False)
    words = ["table", f"--table={base}/table.csv", f"--images={base}/images", f"--classes={','.join(manifest.classes)}"]
    return Case(base / "run", lambda: prepare.main([*words, "--split=split", f"--out={base}/run/manifest.csv"]))


def dicom(base: Path) -> Case:
    """`prepare.py dicom`, with files that are left out."""
    from tests.test_dicom_folder import canaries, save

    for name, dataset in canaries().items():
        save(base / "images" / name, dataset)
    (base / "key").write_text("ab" * 32)
    words = ["dicom", f"--images={base}/images", f"--key={base}/key", f"--out={base}/run/manifest.csv"]
    return Case(base / "run", lambda: prepare.main(words))


def images(base: Path) -> Case:
    """`prepare.py images`."""
    manifest = tiny_manifest(base / "images")
    write_images(manifest)
    write_manifest(manifest, base / "in" / "manifest.csv")
    words = ["images", f"--manifest={base}/in/manifest.csv", "--size=16", "--workers=1"]
    return Case(base / "out", lambda: prepare.main([*words, f"--out={base}/out/manifest.csv"]))


def conversion(base: Path) -> Case:
    """`cache.py convert` into a new folder."""
    make_cache(base / "source", tiny_manifest(base)).close()
    return Case(base / "target", lambda: convert(base / "source", base / "target", dtype="uint8"))


def replacement(base: Path) -> Case:
    """`cache.py convert --replace`: the command again says that the form is there already, or finishes."""
    make_cache(base / "run" / "cache", tiny_manifest(base)).close()

    def command() -> None:
        try:
            convert_in_place(base / "run" / "cache", dtype="uint8")
        except InputError as error:
            if "has this form already" not in str(error):
                raise

    return Case(base / "run", command)


def stage_one(base: Path) -> Case:
    """`extract.py`: training with saves, then the cache."""
    manifest = tiny_manifest(base / "run" / "images")
    write_images(manifest)
    write_manifest(manifest, base / "run" / "manifest.csv")
    options = ["--image.size=32", "--batch_size=2", "--save_steps=2", "--ema_decay=0.9", "--cache.flip=true"]
    skip = ("images", "manifest.csv", "manifest.json")
    return Case(base / "run", lambda: run("extract", base / "run", *options), skip, (".lock", "log.txt"))


def stage_two(base: Path) -> Case:
    """`train_fusion.py`: training, baselines, predictions, submission."""
    first = stage_one(base)
    first.command()
    skip = (*first.skip, "cache", "stage_one", "images.csv", "rejected.csv", "environment.json")
    options = ["--batch_size=2", "--save_steps=2", "--retrain_single=false"]
    return Case(base / "run", lambda: run("fusion", base / "run", *options), skip, (".lock", "log.txt"))


CASES: dict[str, Callable[[Path], Case]] = {
    make.__name__: make for make in (submission, table, dicom, images, conversion, replacement, stage_one, stage_two)
}
TIMES = re.compile(r'"[a-z_]*seconds": ([0-9.e+-]+|null)')


def results(content: dict[str, bytes]) -> dict[str, object]:
    """What counts of a finished folder: every byte, but for clocks and for which of two good saves is the older one."""
    found: dict[str, object] = {}
    for name, data in content.items():
        path = Path(name)
        if path.name in ("log.txt", ".lock", "digests.json", "environment.json") or path.suffix == ".png":
            continue  # curves show seconds, digests are those of the files beside them, the commit may be another
        if path.parent.name == "previous":
            found[name] = "there"
        elif path.suffix == ".jsonl":
            found[name] = [TIMES.sub("", json.dumps(json.loads(line))) for line in data.decode().splitlines()]
        elif path.suffix == ".json":
            found[name] = TIMES.sub("", data.decode())
        else:
            found[name] = data
    return found


def quietly(command: Callable[[], object]) -> Callable[[], object]:
    """The command without what it prints."""

    def silent() -> object:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return command()

    os.environ.setdefault("TQDM_DISABLE", "1")
    return silent
