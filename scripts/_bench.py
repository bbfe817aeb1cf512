"""What all benches share: how they are called, and the one flat JSON line they end with."""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "timm", "numpy", "pillow", "simplejpeg", "imagecodecs", "webdataset")


def parse_options(doc: str | None) -> argparse.Namespace:
    """--quick and --out."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores, for a look")
    parser.add_argument("--out", action="store_true", help="keep the result under scripts/results/")
    return parser.parse_args()


def commit() -> str:
    """The commit that is checked out, marked where a file of it was changed; results kept before do not count."""
    options = {"cwd": ROOT, "capture_output": True, "text": True, "check": False}
    head = subprocess.run(["git", "rev-parse", "HEAD"], **options).stdout.strip()
    status = ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!scripts/results"]
    return (head or "unknown") + "+changed" * bool(subprocess.run(status, **options).stdout)


def stamp() -> dict[str, str]:
    """Commit, machine and versions."""
    return {
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": " ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES),
    }


def report(name: str, numbers: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the result as one line of JSON, last of all, and keep it if asked to."""
    record = {**numbers, "quick": options.quick, **stamp()}
    if options.out:
        short = record["machine"].replace(", ", "_").replace(" ", "")
        path = ROOT / "scripts" / "results" / f"{name}_{short}_{date.today():%Y-%m}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"kept as {path.relative_to(ROOT)}")
    print(json.dumps(record))
