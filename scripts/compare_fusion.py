"""Fusion against every baseline, the published wiring and the ceilings; phantom, one backbone, 5 seeds of stage two.

    python scripts/compare_fusion.py            # after the demo, about 20 minutes on two cores; it resumes
    python scripts/compare_fusion.py --check    # one cell again, compared with the kept table

All on the demo's cached maps, groups are studies. Every seed trains our module, the same module with the published
3x3 convolution of stride 2 (a quarter of the tokens), the published wiring on it (fusion/published.py), the module on
single images as the baselines' head, and the MLP on pooled maps: same groups, epochs, loss, optimizer, schedule. "best"
is per seed the baseline that was best on validation. Intervals come from patients; seeds are listed beside them. Then
views are taken away from the test groups (fusion/missing_views.py), for our module and all baselines.
"""

import argparse
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _root  # noqa: F401
import numpy as np
from _experiment import check_cell, command, keep, link_run

from data.bootstrap import patient_bootstrap
from data.intervals import BootstrapResult, ratio_interval
from data.manifest import read_manifest
from data.seeds import mean_over_seeds, seed_differences
from extract.checkpoint import load_json
from fusion.ceilings import read_visibility
from fusion.missing_report import plot, table_lines
from fusion.missing_views import compare_missing, load_run
from fusion.scoring import load_scores

SEEDS = (0, 1, 2, 3, 4)
OURS, STRIDE_2, PUBLISHED = "fusion", "fusion, stride 2", "published wiring"
ALONE = ["--retrain_single", "false", "--pooled_mlp", "false"]
ARMS: dict[str, list[object]] = {
    OURS: [],
    STRIDE_2: ["--model.token_stride", 2, *ALONE],
    PUBLISHED: ["--model.kind", "published", "--model.token_stride", 2, *ALONE],
}
METHODS = (OURS, STRIDE_2, PUBLISHED, "single", "mean", "max", "weighted", "mlp", "best", "ceiling F", "ceiling P")
PARTS = ["manifest.csv", "manifest.json", "phantom", "stage_one", "cache"]
Scores = dict[str, np.ndarray]
"""By method and seed, "fusion/0"; probabilities of rows by classes."""


def main() -> None:
    """Train all cells, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, default=Path("runs/demo"), help="the demo's run folder")
    parser.add_argument("--check", action="store_true", help="train one cell anew and compare it with the kept table")
    options = parser.parse_args()
    run_dir = options.run_dir.resolve()
    if options.check:
        shutil.rmtree(cell(run_dir, STRIDE_2, SEEDS[-1], "_check"), ignore_errors=True)
        train(run_dir, STRIDE_2, SEEDS[-1], "_check")
        test = read_manifest(run_dir / "manifest.csv").of_split("test")
        check_cell("compare_fusion", STRIDE_2, SEEDS[-1], stage_two(run_dir, STRIDE_2, SEEDS[-1], "_check"), test)
    with ThreadPoolExecutor(2) as pool:  # one core each
        list(pool.map(lambda pair: train(run_dir, *pair), [(arm, seed) for seed in SEEDS for arm in ARMS]))
    record = tables(run_dir)
    print("\n".join(lines(record)))
    keep("compare_fusion", {"seeds": list(SEEDS)} | record)
    missing = compare_missing([load_run(cell(run_dir, OURS, seed)) for seed in SEEDS])
    print("\n".join(table_lines(missing)))
    plot(missing, cell(run_dir, OURS, SEEDS[0]).parent / "missing_views.png")
    keep("missing_views", {"seeds": list(SEEDS)} | missing)


def cell(run_dir: Path, arm: str, seed: int, again: str = "") -> Path:
    """The run folder of a cell."""
    return run_dir.with_name(f"{run_dir.name}_fusion") / f"{arm.replace(', ', '-').replace(' ', '_')}_{seed}{again}"


def stage_two(run_dir: Path, arm: str, seed: int, again: str = "") -> Path:
    """Where a cell's results are."""
    return cell(run_dir, arm, seed, again) / "fusion"


def train(run_dir: Path, arm: str, seed: int, again: str = "") -> None:
    """One cell, unless it is finished: its submission is what it writes last."""
    folder = cell(run_dir, arm, seed, again)
    if not (folder / "fusion" / "submission.zip").exists():
        link_run(run_dir, folder, PARTS)
        words = [*ARMS[arm], "--run_dir", folder, "--seed", seed, "--num_workers", 1]
        command("train_fusion.py", "--config", "fusion/configs/demo.yaml", *words, threads=1)


def tables(run_dir: Path) -> dict[str, Any]:
    """Everything that is kept: both units, groups of one view, classes."""
    groups, images, common = collect(run_dir)
    views, labels, patients = common["num_views"], common["labels"], common["patient_id"]
    in_groups = bootstrap(groups, labels, patients)
    in_images = bootstrap(images, np.repeat(labels, views, axis=0), np.repeat(patients, views))
    alone = views == 1
    of_one = bootstrap({name: values[alone] for name, values in groups.items()}, labels[alone], patients[alone])
    manifest = read_manifest(run_dir / "manifest.csv")
    return {
        "table": unit(in_images),
        "groups": unit(in_groups),
        "groups of one view": {"groups": int(alone.sum())} | unit(of_one, ("single", "best")),
        "classes": classes(in_groups, labels, manifest.classes, run_dir),
    }


def collect(run_dir: Path) -> tuple[Scores, Scores, dict[str, np.ndarray]]:
    """Scores of all methods and seeds in both units, and what all share: labels, patients, numbers of views."""
    groups, images, common = {}, {}, {}
    for seed in SEEDS:
        found = {arm: load_scores(stage_two(run_dir, arm, seed) / "scores_test.npz") for arm in ARMS}
        common = {name: found[OURS][name] for name in ("group_id", "labels", "patient_id", "num_views")}
        assert all((one["group_id"] == common["group_id"]).all() for one in found.values()), "the same groups"
        best = load_json(stage_two(run_dir, OURS, seed) / "metrics.json")["best_baseline_on_validation"]
        for method in METHODS:
            own = found[method if method in ARMS else OURS]
            column = "fusion" if method in ARMS else best if method == "best" else method
            groups[f"{method}/{seed}"] = own[f"groups/{column}"]
            images[f"{method}/{seed}"] = np.repeat(own[f"groups/{column}"], common["num_views"], axis=0)
        images[f"single/{seed}"] = found[OURS]["images/single"]
    return groups, images, common


def bootstrap(scores: Scores, labels: np.ndarray, patients: np.ndarray) -> tuple[BootstrapResult, BootstrapResult]:
    """All seeds' scores on the same draws of patients, and their means over seeds."""
    result = patient_bootstrap(scores, labels, patients.tolist())
    return result, mean_over_seeds(result, {method: named(method) for method in METHODS})


def named(method: str) -> list[str]:
    """A method's scores, seed by seed."""
    return [f"{method}/{seed}" for seed in SEEDS]


def unit(results: tuple[BootstrapResult, BootstrapResult], others: tuple[str, ...] = METHODS[1:]) -> dict[str, Any]:
    """mAP, fusion's lead, and how much of the gap to the ceiling F each trained method closes."""
    each, means = results
    table: dict[str, Any] = {}
    for method in (OURS, *others):
        lead = means.difference(OURS, method)
        table[method] = {
            "mAP": rounded(means.interval(method)),
            "fusion_minus": None if method == OURS else rounded(lead),
            "by_seed": np.round(seed_differences(each, named(OURS), named(method)), 4).tolist(),
            "mAP_by_seed": [round(each.estimate(name), 4) for name in named(method)],
        }
    for method in ARMS if "ceiling F" in others else ():
        closed = ratio_interval(means, (method, "best"), ("ceiling F", "best"))
        table[method]["gap_closed"] = None if closed is None else rounded(closed)
    return table


def classes(
    results: tuple[BootstrapResult, BootstrapResult], labels: np.ndarray, names: tuple[str, ...], run_dir: Path
) -> dict[str, Any]:
    """Per class: the views that show it, AP of the main methods, and fusion's lead over the best baseline."""
    _, means = results
    seen, table = read_visibility(run_dir / "phantom" / "truth", names), {}
    for c, name in enumerate(names):
        if labels[:, c].any():
            table[name] = {
                "seen in": sorted(seen[name] - {"other"}),
                "positives": int(np.nansum(labels[:, c])),
                **{method: round(float(means.class_values[method][c]), 4) for method in METHODS},
                "fusion - best": rounded(means.difference(OURS, "best", [c])),
                "fusion - published wiring": rounded(means.difference(OURS, PUBLISHED, [c])),
            }
    return table


def rounded(interval: Any) -> list[float]:
    """Estimate and both ends."""
    return [round(float(value), 4) for value in (interval.estimate, interval.low, interval.high)]


def lines(record: dict[str, Any]) -> list[str]:
    """The tables as people read them."""
    text = []
    for key, title in (("table", "image rows"), ("groups", "groups"), ("groups of one view", "groups of one view")):
        text += [title, f"{'method':<20}{'mAP':>24}   {'fusion minus it':<28}{'gap closed':<22}by seed"]
        for method, row in record[key].items():
            if method == "groups":
                continue
            lead = "" if row["fusion_minus"] is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*row["fusion_minus"])
            closed = "{:.2f} [{:.2f}, {:.2f}]".format(*row["gap_closed"]) if row.get("gap_closed") else ""
            mean = "{:.4f} [{:.4f}, {:.4f}]".format(*row["mAP"])
            seeds = " ".join(f"{value:+.3f}" for value in row["by_seed"])
            text.append(f"{method:<20}{mean:>24}   {lead:<28}{closed:<22}{seeds}")
        text.append("")
    shown = (OURS, "best", PUBLISHED, "ceiling F", "ceiling P")
    text.append(f"{'class, AP over groups':<28}{'seen in':<18}" + "".join(f"{name:>18}" for name in shown))
    for name, row in record["classes"].items():
        text.append(
            f"{name:<28}{' '.join(row['seen in']):<18}" + "".join(f"{row[method]:>18.3f}" for method in shown)
            + "   {:+.3f} [{:+.3f}, {:+.3f}]".format(*row["fusion - best"])
        )  # fmt: skip
    return text


if __name__ == "__main__":
    main()
