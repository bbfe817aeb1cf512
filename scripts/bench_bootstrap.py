"""CPU seconds of 1000 patient bootstrap replicates of 20,000 rows x 26 classes on one core: bench_bootstrap.py

One method, scores of 2,000 distinct values, 12,000 patients; average precision alone, the pooled (micro) one, and all
other metrics.
"""

import time
from collections.abc import Callable

ROWS, CLASSES, PATIENTS, REPLICATES = 20_000, 26, 12_000, 1000


def bench(quick: bool) -> dict[str, float]:
    """CPU seconds (of this process, whatever else runs) of each part, and of all."""
    import numpy as np

    from data.bootstrap import patient_bootstrap
    from data.bootstrap_metrics import metric_bootstrap

    rng = np.random.default_rng(0)
    targets = (rng.random((ROWS, CLASSES)) < np.geomspace(0.35, 0.003, CLASSES)).astype(np.float32)
    noisy = 1 / (1 + np.exp(2 - 2 * targets - rng.normal(size=targets.shape)))
    scores = {"model": (np.round(noisy * 2000) / 2000).astype(np.float32)}
    patients = [f"p{number}" for number in rng.integers(PATIENTS, size=ROWS)]
    cuts = {"model": np.full(CLASSES, 0.4)}
    replicates = REPLICATES // 10 if quick else REPLICATES
    flat = {"model": scores["model"].reshape(-1, 1)}
    repeated = np.repeat(patients, CLASSES).tolist()
    parts: dict[str, Callable[[], object]] = {
        "average_precision_seconds": lambda: patient_bootstrap(scores, targets, patients, replicates=replicates),
        "micro_seconds": lambda: patient_bootstrap(flat, targets.reshape(-1, 1), repeated, replicates=replicates),
        "other_metrics_seconds": lambda: metric_bootstrap(
            scores, targets, patients, thresholds=cuts, specificity=0.9, replicates=replicates
        ),
    }
    numbers = {name: _cpu_seconds(part) for name, part in parts.items()}
    return {**numbers, "all_seconds": round(sum(numbers.values()), 2), "replicates": replicates}


def _cpu_seconds(part: Callable[[], object]) -> float:
    begun = time.process_time()
    part()
    return round(time.process_time() - begun, 2)


if __name__ == "__main__":
    import os

    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy starts its threads

    import _root  # noqa: F401
    from _bench import parse_options, report

    options = parse_options(__doc__)
    numbers = bench(options.quick)
    for name, value in numbers.items():
        print(f"{name:<28}{value:>8}")
    report("bootstrap", numbers, options)
