"""Fusion on a folder of public X-rays: by study and by patient, 5 splits of its patients, each with its own backbone.

    python scripts/compare_real.py --images FOLDER            # metadata.csv inside; about 30 minutes; it resumes
    python scripts/compare_real.py --images FOLDER --check    # one cell again, compared with the kept table

Classes with at least 20 positives; a group is positive if any of its images is labelled so. Patients of one test set
are in another's training, so no interval is given for the mean over splits: each split has its own, paired by patient.
Sources differ in disease, view and camera at once, so average precision is also given within each source.
"""

import argparse
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _root  # noqa: F401
import numpy as np
from _experiment import check_cell, command, keep

from data.manifest import Manifest, read_manifest
from data.metrics import mean_defined, per_class
from extract.checkpoint import load_json
from fusion.scoring import load_scores

SPLITS = (0, 1, 2, 3, 4)
UNITS = {"study": "fusion", "patient": "fusion_patient"}
PREPARE = ["--classes", "auto", "--min_positives", 20, "--study_labels", "any"]
METHODS = ("single", "mean", "max", "weighted", "mlp", "fusion")


def main() -> None:
    """Train all splits, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of metadata.csv and its images")
    parser.add_argument("--folder", type=Path, default=Path("runs/real_splits"), help="for all parts")
    parser.add_argument("--check", action="store_true", help="train one cell anew and compare it with the kept table")
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.check:
        shutil.rmtree(folder / f"{SPLITS[-1]}_check", ignore_errors=True)
        run_dir = train(options.images, folder, SPLITS[-1], "_check")
        check_cell(
            "compare_real",
            "by study",
            SPLITS[-1],
            run_dir / "fusion",
            read_manifest(run_dir / "manifest.csv").of_split("test"),
        )
    with ThreadPoolExecutor(2) as pool:  # one core each
        runs = list(pool.map(lambda seed: train(options.images, folder, seed), SPLITS))
    table = {f"by {by}": compared([run / name for run in runs]) for by, name in UNITS.items()}
    sources = {f"by {by}": within_sources(runs, name) for by, name in UNITS.items()}
    print("\n".join(lines(table, sources)))
    keep("compare_real", {"seeds": list(SPLITS), "table": table, "sources": sources})


def train(images: Path, folder: Path, seed: int, again: str = "") -> Path:
    """One split of the patients through both stages, by study and by patient; its run folder."""
    run_dir = folder / f"{seed}{again}"
    if not (run_dir / "manifest.csv").exists():
        words = ["--table", images / "metadata.csv", "--images", images, *PREPARE, "--seed", seed]
        command("scripts/prepare.py", "table", *words, "--out", run_dir / "manifest.csv")
    if (run_dir / "fusion_patient" / "submission.zip").exists():
        return run_dir
    words = ["--run_dir", run_dir, "--seed", seed, "--num_workers", 1]
    command("extract.py", "--config", "extract/configs/real_cxr.yaml", *words, threads=1)
    for by, name in UNITS.items():
        more = ["--grouping.by", by, "--name", name, "--bootstrap_replicates", 1000]
        command("train_fusion.py", "--config", "fusion/configs/real_cxr.yaml", *words, *more, threads=1)
    return run_dir


def compared(results: list[Path]) -> dict[str, Any]:
    """mAP of all methods over groups and image rows, split by split, and fusion's lead with each split's interval."""
    reports = [load_json(result / "metrics.json") for result in results]
    table: dict[str, Any] = {"mAP_by_seed": [round(r["images"]["methods"]["fusion"]["mAP"], 4) for r in reports]}
    for unit in ("images", "groups"):
        parts = [report[unit] for report in reports]
        table[unit] = {"rows": [part["rows"] for part in parts]}
        for method in METHODS:
            values = [part["methods"][method]["mAP"] for part in parts]
            table[unit][method] = {"mAP": round(float(np.mean(values)), 4), "by_split": np.round(values, 4).tolist()}
            if method != "fusion":
                leads = [part["differences"][f"fusion - {method}"] for part in parts]
                table[unit][method]["fusion_minus"] = [
                    [round(lead[key], 4) for key in ("estimate", "low", "high")] for lead in leads
                ]
    return table


def within_sources(runs: list[Path], name: str) -> dict[str, Any]:
    """Per class: AP over groups of fusion and of the mean, pooled and within each source, mean over the splits."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        manifest = read_manifest(run / "manifest.csv")
        scores = load_scores(run / name / "scores_test.npz")
        source = sources_of(manifest.of_split("test"), scores["group_id"])
        for part in ("pooled", *np.unique(source)):
            rows = np.ones(len(source), dtype=bool) if part == "pooled" else source == part
            for method in ("fusion", "mean"):
                quality = per_class(scores[f"groups/{method}"][rows], scores["labels"][rows])
                for c, label in enumerate(manifest.classes):
                    if 0 < quality.positives[c] < quality.known[c]:
                        found.setdefault(label, {}).setdefault(f"{part}, {method}", []).append(float(quality.ap[c]))
    return {
        label: {key: [round(mean_defined(np.array(values)), 4), len(values)] for key, values in row.items()}
        for label, row in found.items()
    }


def sources_of(test: Manifest, group_ids: np.ndarray) -> np.ndarray:
    """The source of each group's images; a group lies in one source."""
    source: dict[str, str] = {}
    for column in ("study_id", "patient_id"):
        source |= dict(zip(test.images[column], test.images["source"], strict=True))
    return np.array([source[group] for group in group_ids], dtype=str)


def lines(table: dict[str, Any], sources: dict[str, Any]) -> list[str]:
    """The tables as people read them."""
    text = []
    for by, part in table.items():
        for unit in ("images", "groups"):
            text.append(
                f"{by}, {unit}: {part[unit]['rows']} rows; mean mAP over splits; fusion minus it, split by split"
            )
            for method in METHODS:
                row = part[unit][method]
                leads = "  ".join("{:+.3f} [{:+.3f}, {:+.3f}]".format(*lead) for lead in row.get("fusion_minus", []))
                text.append(f"  {method:<10}{row['mAP']:.3f}   {leads}".rstrip())
        text.append(f"{by}: AP of groups, mean over the splits (in brackets: in how many it could be computed)")
        for label, row in sources[by].items():
            cells = "  ".join(f"{key} {value:.2f} ({count})" for key, (value, count) in row.items())
            text.append(f"  {label:<22}{cells}")
        text.append("")
    return text


if __name__ == "__main__":
    main()
