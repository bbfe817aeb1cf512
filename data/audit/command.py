"""The command `scripts/audit.py`: manifests in; a page, data cards and a leak certificate out."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from jsonargparse import ArgumentParser, Namespace

from data.audit.card import data_card
from data.audit.certificate import certificate
from data.audit.duplicates import SAME_PICTURE
from data.audit.page import html_page, markdown_page
from data.audit.result import Audit, audit
from data.audit.sides import Collection
from data.errors import InputError
from data.files import atomic_write
from data.manifest import read_manifest
from data.runs import run_command
from data.tables import write_table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a leak, like a fault of the input, ends it with one line and status 1."""
    options = _parser().parse_args(argv)
    run_command(lambda: _run(options))


def collect(manifests: Sequence[Path], pretraining: Sequence[Path]) -> list[Collection]:
    """Read manifests and name each after its folder (after its path where two folders have one name).

    Raises:
        InputError: A manifest that cannot be used, or the same file twice.
    """
    paths = [Path(os.path.abspath(path)) for path in (*manifests, *pretraining)]
    twice = next((path for path, number in Counter(paths).items() if number > 1), None)
    if twice is not None:
        raise InputError(f"{twice}: named twice; a manifest is either audited or a pretraining set")
    folders = Counter(path.parent.name for path in paths)
    names = [path.parent.name if folders[path.parent.name] == 1 else str(path.parent) for path in paths]
    roles = ["data"] * len(manifests) + ["pretraining"] * len(pretraining)
    return [
        Collection(name, read_manifest(path), "data" if role == "data" else "pretraining")
        for name, path, role in zip(names, paths, roles, strict=True)
    ]


def write_audit(found: Audit, out_dir: Path) -> None:
    """Write pages, tables, a data card per manifest and the certificate, which comes last."""
    statement = certificate(found)
    for number, collection in enumerate(found.collections):
        card = f"card_{number}.md" if len(found.collections) > 1 else "card.md"
        atomic_write(out_dir / card, data_card(found, collection))
    names = found.table["place"] + "/" + found.table["image_id"]
    leaking = set(found.leaking_copies)
    copies = [(names[c.first], names[c.second], f"{c.score:.4f}", c.how, str(c in leaking)) for c in found.copies]
    _write(out_dir / "copies.csv", ["first", "second", "score", "how", "leak"], copies)
    flags = [(names[flag.row], flag.fault, flag.detail) for flag in found.flags]
    _write(out_dir / "flags.csv", ["image", "fault", "detail"], flags)
    both = [("patient", each) for each in found.patients] + [("image", each) for each in found.images]
    leaks = [(kind, o.archive, o.name, "; ".join(o.places)) for kind, o in both if o.leaks]
    _write(out_dir / "leaks.csv", ["kind", "archive", "id", "places"], leaks)
    atomic_write(out_dir / "audit.md", markdown_page(found, statement))
    atomic_write(out_dir / "audit.html", html_page(found, statement))
    atomic_write(out_dir / "certificate.json", json.dumps(statement, indent=1) + "\n")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="audit.py", description="Leaks, duplicates and faults of one or several manifests.")
    parser.add_argument("manifests", type=Path, nargs="+", help="manifests used together, runs/<name>/manifest.csv")
    parser.add_argument(
        "--pretraining", type=Path, nargs="+", default=[], help="manifests of which every image was learned from before"
    )
    parser.add_argument("--out", type=Path | None, default=None, help="folder (default: audit/ beside the first one)")
    parser.add_argument(
        "--least_score", type=float, default=SAME_PICTURE, help="of a near-duplicate; lower finds more, and look-alikes"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads that read images")
    return parser


def _run(options: Namespace) -> None:
    if options.workers < 1:
        raise InputError(f"--workers must be at least 1, got {options.workers}")
    out_dir = options.out or options.manifests[0].parent / "audit"
    found = audit(collect(options.manifests, options.pretraining), options.least_score, options.workers)
    write_audit(found, out_dir)
    print(
        f"{found.num_compared:,} images, {len(found.copies)} near-duplicate pairs, {len(found.flags)} images to look at"
    )
    for what, overlaps in (("patient", found.patients), ("image", found.images)):
        for overlap in [overlap for overlap in overlaps if overlap.leaks][:3]:
            print(f"leak: {what} {overlap.name} of {overlap.archive}: {', '.join(overlap.places)}")
    for copy in found.leaking_copies[:3]:
        first, second = (f"{found.table['image_id'].iat[n]} ({found.table['place'].iat[n]})" for n in copy[:2])
        print(f"leak: picture {first} is {second}, {copy.how}")
    if found.num_leaks:
        raise InputError(f"{found.verdict}; see {out_dir / 'audit.html'}")
    print(f"{found.verdict}; see {out_dir / 'audit.html'}")


def _write(path: Path, names: list[str], rows: Sequence[tuple[str, ...]]) -> None:
    write_table(path, pd.DataFrame(rows, columns=names, dtype="str"))
