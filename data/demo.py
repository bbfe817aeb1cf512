"""The embedded default: runs without arguments make their own data."""

from pathlib import Path

from data.errors import InputError

DEMO_RUN = Path("runs/demo")


def ensure_manifest(run_dir: Path) -> None:
    """Check that a run has its manifest; the demo's is made on the spot from the chest phantom.

    Raises:
        InputError: any other run without a manifest.
    """
    path = run_dir / "manifest.csv"
    if path.exists():
        return
    if run_dir != DEMO_RUN:
        raise InputError(f"{path}: no manifest; make one with: python scripts/prepare.py SOURCE ... --out {path}")
    from data import prepare  # here, because it is the demo's alone

    prepare.main(["phantom", "--out", str(path)])
