"""Imported first by every script: makes this repository's packages importable from any folder, and only these.

Other distributions install a package called `data` too; one that was imported already would silently take our place.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import data  # noqa: E402

folders = [Path(folder).resolve() for folder in getattr(data, "__path__", [data.__file__])]
if ROOT / "data" not in folders:
    raise SystemExit(f"error: the package 'data' comes from {folders[0]}, not {ROOT / 'data'}; uninstall or rename it")
