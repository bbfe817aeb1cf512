"""Calibration, thresholds, ensembles, slot draws, the normal gate: from finished models' logits, paired intervals.

    python scripts/compare_calibration.py            # after the demo: about 12 minutes of training, then one; resumes
    python scripts/compare_calibration.py --check    # fusion's rows again, compared with the kept table

Phantom, groups (studies). Models are cells of compare_fusion.py, trained if they are not there, and one more: a short
fusion (6 epochs, a quarter of the tokens, seed 3) with asymmetric loss. Calibrations, thresholds, weights and choices
come from validation alone. Calibration is shown for seed 0 of the others; ensembles are of seeds 0 to 2, and of seed
0's unlike models. Intervals are of the test patients, 1000 replicates; changes are paired. NLL is the log loss.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import _root
import numpy as np
from _experiment import command, keep, link_run
from accelerate import Accelerator
from compare_fusion import ALONE, OURS, PARTS, PUBLISHED, SEEDS, cell, stage_two, train

from data.bootstrap import patient_bootstrap
from data.ensemble import bounded_logit, fit_weights
from data.manifest import read_manifest
from data.seeds import mean_over_seeds
from extract.engine import sigmoid
from fusion.baselines import baseline_groups
from fusion.calibrate import applied, crossed, fit, least_brier
from fusion.calibration_report import PROPER, compare
from fusion.config import EvaluationConfig
from fusion.ensemble import combinations, stack
from fusion.ensemble import compare as compare_ensemble
from fusion.evaluation import gate_logits
from fusion.grouping import single_images
from fusion.inference import predict_groups
from fusion.missing_views import load_model
from fusion.pooled_mlp import FOLDER as MLP_FOLDER
from fusion.pooled_mlp import load_mlp, predict_mlp
from fusion.results import in_row_order
from fusion.saved import Saved, read_saved
from fusion.test_time import predict_passes
from fusion.trained import TrainedFusion, load_trained

REPLICATES = 1000
MIN_POSITIVES = 20
NUM_SEEDS = 3
SLOT_DRAWS = 4
ASYMMETRIC, MEAN, MLP = "fusion, asymmetric loss", "mean of single images", "MLP on pooled maps"
SHORT_ASYMMETRIC = ["--loss.kind", "asl", "--model.token_stride", 2, "--epochs", 6]
ASYMMETRIC_SEED = 3
SPLITS = ("val", "test")
Parts = dict[str, Saved]
"""Per split, one model's predictions."""


def main() -> None:
    """Train what is missing, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, default=Path("runs/demo"), help="the demo's run folder")
    parser.add_argument("--check", action="store_true", help="compute fusion's rows again and compare them")
    options = parser.parse_args()
    run_dir = options.run_dir.resolve()
    if options.check:
        return check(run_dir)
    models = {f"{arm}/{seed}": trained(run_dir, arm, seed) for arm in (OURS, PUBLISHED) for seed in SEEDS[:NUM_SEEDS]}
    models |= {f"{name}/0": parts for name, parts in unlike(run_dir).items()}
    seeds = [f"{OURS}/{seed}" for seed in SEEDS[:NUM_SEEDS]]
    mixed = [f"{name}/0" for name in (OURS, PUBLISHED, MLP, MEAN)]
    record: dict[str, Any] = {"seeds": list(SEEDS[:NUM_SEEDS]), "replicates": REPLICATES}
    record["calibration"] = {name: calibration(models[f"{name}/0"]) for name in (OURS, ASYMMETRIC, MEAN, MLP)}
    sets = {"three seeds": seeds, "unlike models": mixed}
    record["ensembles"] = {name: ensemble([models[n] for n in members], members) for name, members in sets.items()}
    record["slot_draws"] = slot_draws(run_dir, [models[name] for name in seeds])
    record["normal_gate"] = {name: gates(models[name]) for name in (seeds[0], f"{MEAN}/0")}
    print("\n".join(lines(record)))
    keep("compare_calibration", record)


def trained(run_dir: Path, arm: str, seed: int) -> Parts:
    """A cell of compare_fusion.py, trained unless it is finished."""
    train(run_dir, arm, seed)
    return read(run_dir, stage_two(run_dir, arm, seed))


def read(run_dir: Path, folder: Path) -> Parts:
    """What a stage two has predicted."""
    manifest = read_manifest(run_dir / "manifest.csv")
    return {split: read_saved(folder / f"logits_{split}.csv", manifest, (split,), "study") for split in SPLITS}


def unlike(run_dir: Path) -> dict[str, Parts]:
    """Models that are not fusion as the demo trains it: another loss, and two baselines of fusion's seed 0."""
    asymmetric = run_dir.with_name(f"{run_dir.name}_calibration") / "asymmetric_3"
    if not (asymmetric / "fusion" / "submission.zip").exists():
        link_run(run_dir, asymmetric, PARTS)
        words = [*SHORT_ASYMMETRIC, *ALONE, "--run_dir", asymmetric, "--seed", ASYMMETRIC_SEED, "--num_workers", 1]
        command("train_fusion.py", "--config", "fusion/configs/demo.yaml", *words, threads=1)
    run = load_trained(cell(run_dir, OURS, 0))
    folder, accelerator = stage_two(run_dir, OURS, 0), Accelerator()
    single = load_model(folder / "single_image" / "best", run.config, run.cache, run.manifest, accelerator)
    mlp = load_mlp(folder / MLP_FOLDER, run.cache, len(run.manifest.classes))
    means, pooled = {}, {}
    for split in SPLITS:
        _, groups = run.groups_of_split(split)
        alone = predict_groups(run.config, single_images(groups), run.cache, single, accelerator)
        mean = baseline_groups("mean", sigmoid(in_row_order(alone, groups)), groups)
        means[split] = as_saved(run, folder, split, bounded_logit(mean.astype(np.float64)).astype(np.float32))
        pooled[split] = as_saved(run, folder, split, predict_mlp(run.config, mlp, groups, run.cache))
    return {ASYMMETRIC: read(run_dir, asymmetric / "fusion"), MEAN: means, MLP: pooled}


def as_saved(run: TrainedFusion, folder: Path, split: str, logits: np.ndarray) -> Saved:
    """Logits of groups, as if they had been saved."""
    part, groups = run.groups_of_split(split)
    saved = Saved(folder / f"logits_{split}.csv", part, np.empty((len(part), 0), np.float32), "study", ())
    assert saved.groups.ids == groups.ids, "the same groups in the same order"
    return Saved(saved.path, part, logits[saved.owner], "study", ())


def calibration(parts: Parts) -> dict[str, Any]:
    """Every calibration, fitted on validation, on test; and thresholds with the one that validation chose."""
    held_out, test = parts["val"], parts["test"]
    method = least_brier(crossed(held_out, MIN_POSITIVES), held_out)
    _, chosen = fit(held_out, method, MIN_POSITIVES)
    report = compare(test, applied(held_out, test, MIN_POSITIVES), chosen, method, REPLICATES)
    return {"chosen on validation": method} | report


def ensemble(members: list[Parts], names: list[str]) -> dict[str, Any]:
    """Every combination minus the member that is best on validation; on validation weights are cross-fitted."""
    weights = fit_weights(stack([one["val"] for one in members]), members[0]["val"].groups.labels)
    record: dict[str, Any] = {"weights": dict(zip(names, np.round(weights, 3).tolist(), strict=True))}
    best = None
    for split in SPLITS:
        saved = [one[split] for one in members]
        own = {name: one.group_logits for name, one in zip(names, saved, strict=True)}
        found = compare_ensemble(saved[0], own, combinations(saved, weights, cross=split == "val"), best, REPLICATES)
        best = found["best_member"]
        record |= {"best member on validation": best, split: found["groups"]}
    return record


def slot_draws(run_dir: Path, seeds: list[Parts]) -> dict[str, list[float]]:
    """mAP of probabilities averaged over several assignments of views to slots, minus the plain one; mean of seeds."""
    config, record = EvaluationConfig(slot_draws=SLOT_DRAWS), {}
    found = [predict_passes(stage_two(run_dir, OURS, seed), config, SPLITS) for seed in SEEDS[:NUM_SEEDS]]
    for split in SPLITS:
        plain = {f"plain/{n}": parts[split].group_logits for n, parts in enumerate(seeds)}
        groups = seeds[0][split].groups
        drawn = {}
        for n, one in enumerate(found):
            place = {group_id: row for row, group_id in enumerate(one[split][0])}
            drawn[f"drawn/{n}"] = one[split][1][[place[group_id] for group_id in groups.ids]]
        result = patient_bootstrap(plain | drawn, groups.labels, groups.patient_ids, replicates=REPLICATES)
        record[split] = rounded(mean_over_seeds(result, {"plain": list(plain), "drawn": list(drawn)}), "drawn", "plain")
    return record


def gates(parts: Parts) -> dict[str, dict[str, list[float]]]:
    """mAP with the gate minus without, of both gates."""
    record: dict[str, dict[str, list[float]]] = {}
    for split, saved in parts.items():
        scores = {"off": saved.group_logits}
        for gate in ("power", "linear"):
            config = EvaluationConfig(normal_gate=gate)
            scores[gate] = gate_logits(saved.group_logits, saved.images.classes, config)
        result = patient_bootstrap(scores, saved.groups.labels, saved.groups.patient_ids, replicates=REPLICATES)
        record[split] = {gate: rounded(result, gate, "off") for gate in ("power", "linear")}
    return record


def rounded(result: Any, first: str, second: str) -> list[float]:
    """Estimate and both ends of a difference."""
    found = result.difference(first, second)
    return [round(float(value), 4) for value in (found.estimate, found.low, found.high)]


def told(value: dict[str, Any], sign: str = "") -> str:
    """An interval in four digits."""
    return "{:{s}.4f} [{:{s}.4f}, {:{s}.4f}]".format(*(value[key] for key in ("estimate", "low", "high")), s=sign)


def lines(record: dict[str, Any]) -> list[str]:
    """The tables as people read them: rows of Markdown."""
    text = []
    text.append("| model, calibration, test | " + " | ".join(f"{key} (change)" for key in PROPER) + " | mAP change |")
    for name, own in record["calibration"].items():
        for method, row in own["methods"].items():
            mark = " *" if method == own["chosen on validation"] else ""
            cells = [told(row[key]) for key in PROPER]
            if method != "none":
                cells = [f"{cell} ({told(row[f'{key} change'], '+')})" for cell, key in zip(cells, PROPER, strict=True)]
                cells.append(told(row["mAP change"], "+"))
            text.append(f"| {name}, {method}{mark} | {' | '.join(cells)} |")
        text.append(f"  F1 {told(own['F1']['above 0.5, not calibrated'])}, change {told(own['F1']['change'], '+')}")
    for name, own in record["ensembles"].items():
        text.append(f"{name}: {own['weights']}, best on validation {own['best member on validation']}")
        text.append("| test | mAP | minus the best member | the same on validation |")
        for method in own["test"]:
            gains = [own[split][method].get("minus_best_member") for split in reversed(SPLITS)]
            shown = " | ".join(told(gain, "+") if gain else "" for gain in gains)
            text.append(f"| {method} | {told(own['test'][method]['mAP'])} | {shown} |")
    return [*text, f"slot draws: {record['slot_draws']}", f"normal gate: {record['normal_gate']}"]


def check(run_dir: Path) -> None:
    """Compute fusion's rows again; leaves with status 1 where one differs from the kept table."""
    found = calibration(trained(run_dir, OURS, 0))["methods"]
    path = _root.ROOT / "scripts" / "results" / "compare_calibration.json"
    kept = json.loads(path.read_text())["calibration"][OURS]["methods"]
    apart = max(abs(found[m][k]["estimate"] - kept[m][k]["estimate"]) for m in kept for k in (*PROPER, "mAP"))
    agrees = apart < 5e-4
    print(f"{OURS}, seed 0: largest difference {apart:.5f}: {'agrees' if agrees else 'DIFFERS'}")
    raise SystemExit(not agrees)


if __name__ == "__main__":
    main()
