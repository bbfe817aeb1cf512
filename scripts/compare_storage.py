"""What a cheaper storage form of the cache costs in mAP: float16, uint8, pooled, both; same maps, same fusion, 3 seeds.

    python scripts/compare_storage.py            # about an hour on two cores; finished parts are recognised
    python scripts/compare_storage.py --check    # one cell again, compared with the kept table

Phantom at 256 px, 16 x 16 maps (256 tokens per view, 64 where pooled). The cache is extracted once and converted.
"""

import argparse
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import _root  # noqa: F401
from _experiment import check_cell, command, compare, keep, table_lines

from data.cache import read_cache_record
from data.cache_convert import coding_error
from data.manifest import read_manifest

FORMS = {
    "float16": [],
    "uint8": ["--dtype", "uint8"],
    "pooled": ["--pool", "2"],
    "uint8 pooled": ["--dtype", "uint8", "--pool", "2"],
}
SEEDS = (0, 1, 2)
EXTRACT, FUSION = "extract/configs/phantom_256.yaml", "fusion/configs/phantom_256.yaml"


def main() -> None:
    """Prepare, extract, convert, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, default=Path("runs/phantom_256"))
    parser.add_argument("--check", action="store_true", help="train one cell anew and compare it with the kept table")
    options = parser.parse_args()
    run_dir = options.run_dir.resolve()
    if not (run_dir / "manifest.csv").exists():
        command("scripts/prepare.py", "phantom", "--size", 256, "--out", run_dir / "manifest.csv")
    command("extract.py", "--config", EXTRACT, "--run_dir", run_dir)
    for form, words in FORMS.items():
        if words and not (folder(run_dir, form) / "cache.json").exists():
            command("scripts/cache.py", "convert", run_dir / "cache", "--target", folder(run_dir, form), *words)
    if options.check:
        return check(run_dir)
    with ThreadPoolExecutor(2) as pool:  # one core each
        list(pool.map(lambda cell: train(run_dir, *cell), [(form, seed) for seed in SEEDS for form in FORMS]))
    runs = {form: {seed: result(run_dir, form, seed) for seed in SEEDS} for form in FORMS}
    table = compare(runs, "float16", read_manifest(run_dir / "manifest.csv").of_split("test"))
    sizes = {form: cache_bytes(folder(run_dir, form)) for form in FORMS}
    for form, row in table.items():
        row["bytes_vs_float16"] = round(sizes[form] / sizes["float16"], 4)
    print("\n".join(table_lines(table, "float16")))
    error = round(coding_error(run_dir / "cache"), 5)
    print(f"uint8 is off by {error:.2%} (root mean square)")
    keep("compare_storage", {"seeds": list(SEEDS), "uint8_rms_error": error, "table": table})


def folder(run_dir: Path, form: str) -> Path:
    """The cache of a storage form."""
    return run_dir / ("cache" if form == "float16" else f"cache_{form.replace(' ', '_')}")


def result(run_dir: Path, form: str, seed: int, again: str = "") -> Path:
    """The folder of a cell: a run of its own on the same data, for a run folder has one writer."""
    return run_dir.with_name(f"{run_dir.name}_cells") / f"{form.replace(' ', '_')}_{seed}{again}" / "fusion"


def train(run_dir: Path, form: str, seed: int, again: str = "") -> None:
    """One cell."""
    cell = result(run_dir, form, seed, again).parent
    cell.mkdir(parents=True, exist_ok=True)
    for part in ("manifest.csv", "manifest.json", "stage_one", "phantom"):
        if not (cell / part).exists():
            (cell / part).symlink_to(run_dir / part)
    words = ["--run_dir", cell, "--cache_dir", folder(run_dir, form), "--seed", seed]
    command("train_fusion.py", "--config", FUSION, *words, threads=1)


def cache_bytes(cache: Path) -> int:
    """Bytes of all shards."""
    return sum(shard["bytes"] for shard in read_cache_record(cache)[0]["shards"])


def check(run_dir: Path) -> None:
    """Train the last cell again and compare."""
    form, seed = list(FORMS)[-1], SEEDS[-1]
    again = result(run_dir, form, seed, "_check")
    shutil.rmtree(again.parent, ignore_errors=True)
    train(run_dir, form, seed, "_check")
    check_cell("compare_storage", form, seed, again, read_manifest(run_dir / "manifest.csv").of_split("test"))


if __name__ == "__main__":
    main()
