"""What re-training, balancing, tau-normalisation and nearest neighbours do to head, medium and tail, and how long.

    python scripts/compare_tail.py            # about a minute from a finished run, after make demo
    python scripts/compare_tail.py --check    # the last cell again, compared with the kept table

The mean baseline and fusion are those of the run. Everything learned here is learned once from all training patients,
and three times from as many patients drawn with replacement. Rare classes of the phantom are rare by name only: the
fewest positives of a simulated class are 108 of 1,200 training studies.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import _root  # noqa: F401
import numpy as np
from _experiment import keep

from data.bootstrap import patient_bootstrap
from data.seeds import mean_over_seeds
from fusion.tail.methods import TailResult, resampled_patients, run_methods
from fusion.tail.run import Loaded, band_columns, compared_with, load

SEEDS = (1, 2, 3)


def main() -> None:
    """Run all cells, or one of them again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--check", action="store_true", help="run one cell anew and compare it with the kept table")
    options = parser.parse_args()
    loaded = load(options.run_dir.resolve())
    if options.check:
        return check(loaded)
    whole = run_methods(loaded.data, loaded.head)
    cells = {seed: cell(loaded, seed) for seed in SEEDS}
    record = {"groups": len(loaded.sets["test"]), "seeds": list(SEEDS)}
    record |= {"all_patients": compare(loaded, {0: whole}), "drawn_patients": compare(loaded, cells)}
    record |= {"chosen": {name: {b: repr(s) for b, s in chosen.items()} for name, chosen in whole.chosen.items()}}
    record |= {"seconds": whole.seconds | {"pooling maps": loaded.pooling_seconds}}
    for title in ("all_patients", "drawn_patients"):
        print("\n".join(table_lines(title, record[title])))
    print(record["seconds"])
    keep("compare_tail", record)


def cell(loaded: Loaded, seed: int) -> TailResult:
    """All methods, learned from one draw of training patients."""
    return run_methods(loaded.data, loaded.head, resampled_patients(loaded.sets["train"].patient_ids, seed))


def compare(loaded: Loaded, cells: dict[int, TailResult]) -> dict[str, Any]:
    """Per method and band: mean over cells, and differences, with 95 % intervals over the test patients."""
    test, methods = loaded.sets["test"], list(cells[next(iter(cells))].scores)
    names = {method: [f"{method}/{seed}" for seed in cells] for method in methods}
    scores = {f"{method}/{seed}": found.scores[method]["test"] for seed, found in cells.items() for method in methods}
    result = patient_bootstrap(scores, test.labels, test.patient_ids)
    means, columns = mean_over_seeds(result, names), band_columns(loaded.data.bands)
    return {
        "methods": {m: {b: rounded(means.interval(m, c)) for b, c in columns.items()} for m in methods},
        "differences": {
            f"{a} - {b}": {band: rounded(means.difference(a, b, c)) for band, c in columns.items()}
            for a, b in compared_with(methods)
        },
        "by_cell": {
            m: {b: [round(result.estimate(name, c), 4) for name in names[m]] for b, c in columns.items()}
            for m in methods
        },
    }


def rounded(interval: Any) -> list[float]:
    """Estimate, low, high."""
    return np.round([interval.estimate, interval.low, interval.high], 4).tolist()


def table_lines(title: str, table: dict[str, Any]) -> list[str]:
    """The table as people read it."""
    lines = [f"{title.replace('_', ' '):<24}" + "".join(f"{band:>27}" for band in ("all", "head", "medium", "tail"))]
    for part, form in (("methods", "{:.3f} [{:.3f}, {:.3f}]"), ("differences", "{:+.3f} [{:+.3f}, {:+.3f}]")):
        for name, row in table[part].items():
            lines.append(f"{name:<24}" + "".join(f"{form.format(*values):>27}" for values in row.values()))
    return lines


def check(loaded: Loaded) -> None:
    """Run the last cell again and compare."""
    found = compare(loaded, {SEEDS[-1]: cell(loaded, SEEDS[-1])})["by_cell"]
    kept = json.loads((Path(__file__).parent / "results" / "compare_tail.json").read_text())
    wanted = kept["drawn_patients"]["by_cell"]
    apart = {m: abs(found[m]["all"][0] - wanted[m]["all"][-1]) for m in wanted}
    agrees = max(apart.values()) < 5e-4
    print(f"seed {SEEDS[-1]}: largest difference in mAP {max(apart.values()):.4f}: {'agrees' if agrees else 'DIFFERS'}")
    raise SystemExit(not agrees)


if __name__ == "__main__":
    main()
