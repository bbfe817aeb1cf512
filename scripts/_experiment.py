"""What all comparisons share: cells that are run once and kept, a table over seeds, and a record of how it was made."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import _bench
import _root
import numpy as np

from data.bootstrap import BootstrapResult, patient_bootstrap
from data.manifest import Manifest
from data.predictions import read_predictions
from data.seeds import mean_over_seeds, seed_differences

Runs = dict[str, dict[int, Path]]
"""Method, seed, and the folder of stage two that holds its predictions."""

GROUPS = ("head", "medium", "tail")


def command(*words: object, threads: int = 0) -> None:
    """Run one of the project's commands as a user does; what is finished is recognised by the command itself.

    Args:
        threads: Of torch; 0 leaves that to torch.
    """
    line = [str(word) for word in words]
    print("$ python", *line, flush=True)
    limit = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    began = time.monotonic()
    log = subprocess.run(
        [sys.executable, *line], cwd=_root.ROOT, env=os.environ | limit, capture_output=True, text=True, check=False
    )
    if log.returncode:
        raise SystemExit(f"{log.stdout[-2000:]}\n{log.stderr[-3000:]}\nthe command above failed")
    print(f"  {time.monotonic() - began:.0f} s", flush=True)


def compare(
    runs: Runs, against: str, test: Manifest, replicates: int = 1000, groups: dict[str, str] | None = None
) -> dict[str, Any]:
    """Macro mAP of each method over image rows, and its difference from one of them: mean over seeds, 95 % interval.

    Args:
        against: The method that all others are compared with.
        test: Labels and patients of the test images.
        groups: Head, medium or tail of every class, for the same numbers over the classes of each.
    """
    scores, labels, patients = {}, None, None
    for method, seeds in runs.items():
        for seed, folder in seeds.items():
            ids, values, classes = read_predictions(folder / "predictions_test.csv")
            rows = test.images.reset_index().set_index("image_id").loc[ids["image_id"], "index"].to_numpy()
            assert classes == test.classes, "the same classes everywhere"
            found = test.labels[rows], ids["patient_id"].tolist()
            assert patients is None or found[1] == patients, "the same rows everywhere"
            (labels, patients), scores[f"{method}/{seed}"] = found, values
    names = {method: [f"{method}/{seed}" for seed in seeds] for method, seeds in runs.items()}
    result = patient_bootstrap(scores, labels, patients, replicates=replicates)
    means = mean_over_seeds(result, names)
    columns = {name: [c for c, label in enumerate(test.classes) if groups and groups[label] == name] for name in GROUPS}
    return {
        method: {
            **_numbers(means, method, against),
            "by_seed": np.round(seed_differences(result, names[method], names[against]), 4).tolist(),
            "mAP_by_seed": [round(result.estimate(name), 4) for name in names[method]],
            **{name: _numbers(means, method, against, own) for name, own in columns.items() if own},
        }
        for method in runs
    }


def _numbers(means: BootstrapResult, method: str, against: str, columns: list[int] | None = None) -> dict[str, Any]:
    difference = None if method == against else _rounded(means.difference(method, against, columns))
    return {"mAP": _rounded(means.interval(method, columns)), "minus_" + against: difference}


def _rounded(interval: Any) -> list[float]:
    return [round(value, 4) for value in (interval.estimate, interval.low, interval.high)]


def table_lines(table: dict[str, Any], against: str) -> list[str]:
    """The table as people read it."""
    lines = [f"{'method':<24}{'mAP':>24}   {'minus ' + against:<28}by seed"]
    for method, row in table.items():
        difference = row["minus_" + against]
        shown = "" if difference is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*difference)
        mean = "{:.4f} [{:.4f}, {:.4f}]".format(*row["mAP"])
        lines.append(f"{method:<24}{mean:>24}   {shown:<28}{' '.join(f'{value:+.4f}' for value in row['by_seed'])}")
    if not all(name in row for row in table.values() for name in GROUPS):
        return lines
    lines += ["", f"{'method':<24}" + "".join(f"{name + ' mAP':>12}   {'minus ' + against:<28}" for name in GROUPS)]
    for method, row in table.items():
        cells = [(row[name]["mAP"][0], row[name]["minus_" + against]) for name in GROUPS]
        texts = [(f"{mean:.4f}", "" if d is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*d)) for mean, d in cells]
        lines.append(f"{method:<24}" + "".join(f"{mean:>12}   {shown:<28}" for mean, shown in texts))
    return lines


def keep(name: str, record: dict[str, Any]) -> None:
    """Write a result to scripts/results/, with command, commit, machine and versions."""
    path = _root.ROOT / "scripts" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    stamped = {"command": " ".join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])}
    path.write_text(json.dumps(stamped | record | _bench.stamp(), indent=1) + "\n")
    print(f"kept as {path.relative_to(_root.ROOT)}")
