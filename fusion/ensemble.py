"""The command `scripts/ensemble.py`: several finished results of one manifest become one, compared with the best.

Axes: **M** models, **G** groups, **N** images, **C** classes.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from jsonargparse import ArgumentParser

from data.bootstrap import patient_bootstrap
from data.ensemble import HOWS, How, combine, cross_weighted, fit_weights
from data.errors import InputError
from data.files import atomic_write
from data.manifest import Manifest, read_manifest
from data.out_of_fold import refuse_trained
from data.runs import run_command
from data.spans import interval, span
from fusion.config import EvaluationConfig
from fusion.evaluation import gate_logits
from fusion.result_folder import HELD_OUT, group_by_of, held_out_kind
from fusion.saved import Saved, read_saved, write_saved
from fusion.test_time import predict_passes

Gate = Literal["off", "power", "linear"]
Parts = dict[str, list[Saved]]
"""Per split ("val" or "oof", and "test"), every member's predictions of the same images."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a fault of the input ends it with one line and status 1."""
    parser = ArgumentParser(
        prog="ensemble.py",
        description="Combine the held-out and test predictions of several results of one manifest; weights, choices and"
        " thresholds come from held-out predictions, test labels are only read for the report.",
    )
    parser.add_argument("members", type=Path, nargs="+", help="result folders, such as runs/a/fusion runs/b/fusion")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, such as runs/a/ensemble")
    parser.add_argument("--how", type=How, default="mean_logits", help="what is written; the table compares all")
    parser.add_argument(
        "--manifest", type=Path | None, default=None, help="default: manifest.csv beside the first member"
    )
    parser.add_argument("--slot_draws", type=int, default=1, help="predict each member again over that many slot draws")
    parser.add_argument("--augment", type=bool, default=False, help="and over the cached variants of each image")
    parser.add_argument(
        "--normal_gate", type=Gate, default="off", help="lower findings where the normal class is likely"
    )
    parser.add_argument("--normal_class", type=str, default="No Finding", help="only for --normal_gate")
    parser.add_argument("--replicates", type=int, default=1000, help="patient bootstrap replicates behind intervals")
    options = vars(parser.parse_args(argv))
    names = ("slot_draws", "augment", "normal_gate", "normal_class")
    run_command(lambda: ensemble(evaluation=EvaluationConfig(**{name: options.pop(name) for name in names}), **options))


def ensemble(
    members: list[Path],
    out: Path,
    how: How = "mean_logits",
    manifest: Path | None = None,
    evaluation: EvaluationConfig | None = None,
    replicates: int = 1000,
) -> None:
    """Write `out/logits_<split>.csv`, `predictions_<split>.csv`, `table.txt` and, last, `ensemble.json`.

    Args:
        evaluation: Passes over which members are predicted again, and the normal gate on the combined probabilities.

    Raises:
        InputError: Members of other images, classes or groups, a member trained on a patient to be predicted.
    """
    evaluation = evaluation or EvaluationConfig()
    if how == "rank_mean" and evaluation.normal_gate != "off":
        raise InputError("--normal_gate needs probabilities, and --how rank_mean gives ranks; choose another --how")
    if any((out / training).exists() for training in ("config.yaml", "last", "best")):
        raise InputError(f"{out}: holds a training run; choose another --out")
    names = [str(folder) for folder in members]
    parts = read_members(members, read_manifest(manifest or members[0].parent / "manifest.csv"))
    kind, by = next(iter(parts)), parts["test"][0].by
    passes: dict[str, Any] = {}
    if evaluation.slot_draws > 1 or evaluation.augment:
        parts, passes = average_passes(members, parts, evaluation, replicates)
    weights = fit_weights(stack(parts[kind]), parts[kind][0].groups.labels)
    written: dict[str, np.ndarray] = {}
    report: dict[str, Any] = {"by": by, "members": names, "how": how, "weights": weights.tolist(), "passes": passes}
    best = None
    for part, saved in parts.items():
        combined = combinations(saved, weights, cross=part == kind)
        if saved[0].labelled:
            own = {name: member.group_logits for name, member in zip(names, saved, strict=True)}
            report[part] = compare(saved[0], own, combined, best, replicates)
            best = best or report[part]["best_member"]
        written[part] = gate_logits(combined[how], saved[0].images.classes, evaluation)
        if evaluation.normal_gate != "off" and saved[0].labelled:
            report[part]["gate"] = difference(saved[0], written[part], combined[how], replicates)
    write(out, parts, written, report, evaluation)


def read_members(members: list[Path], manifest: Manifest) -> Parts:
    """Read every member's held-out and test predictions, aligned by name, and refuse what does not belong together.

    Raises:
        InputError: Fewer than two members or one twice; another kind of held-out predictions, other groups or other
            images than the first member's; a member trained on a patient that it predicts.
    """
    repeated = {folder for folder in members if [f.resolve() for f in members].count(folder.resolve()) > 1}
    if len(members) < 2 or repeated:
        raise InputError(f"an ensemble needs at least 2 different results, found {', '.join(map(str, members))}")
    kind, by = held_out_kind(members[0]), group_by_of(members[0])
    parts: Parts = {kind: [], "test": []}
    for folder in members:
        if (found := held_out_kind(folder)) != kind:
            raise InputError(f"{folder}: has {found} predictions, {members[0]} has {kind}; combine results of one kind")
        if (own := group_by_of(folder)) != by:
            raise InputError(f"{folder}: fuses by {own}, {members[0]} by {by}; combine results of the same groups")
        for part, splits in ((kind, HELD_OUT[kind]), ("test", ("test",))):
            saved = read_saved(folder / f"logits_{part}.csv", manifest, splits, by)
            first = parts[part][0] if parts[part] else saved
            odd = set(saved.images.images["image_id"]) ^ set(first.images.images["image_id"])
            if odd:
                raise InputError(
                    f"{saved.path}: holds other images than {first.path}, {sorted(odd)[0]!r} is in one only"
                    f" ({len(odd)} such); predict the same manifest, or join folds with scripts/folds.py first"
                )
            for note in saved.notes:
                print(note)
            parts[part].append(saved)
        refuse_leak(folder, kind, parts)
    return parts


def refuse_leak(folder: Path, kind: str, parts: Parts) -> None:
    """Check that a member's models were not trained on patients that it predicts, where it says on whom they were.

    Out-of-fold predictions were checked when their folds were joined.
    """
    held_out = {patient for part in (kind, "test") for patient in parts[part][-1].images.images["patient_id"]}
    for stage in (folder, folder.parent / "stage_one"):
        if kind == "val" and (stage / "data.json").is_file():
            refuse_trained(stage.parent, stage.name, held_out)


def average_passes(
    members: list[Path], parts: Parts, evaluation: EvaluationConfig, replicates: int
) -> tuple[Parts, dict[str, Any]]:
    """Predict every member again, averaged over passes; and what that did to each."""
    averaged: Parts = {part: [] for part in parts}
    effect: dict[str, Any] = {}
    for number, folder in enumerate(members):
        found = predict_passes(folder, evaluation, [part for part in parts])
        for part, saved in parts.items():
            place = {group_id: row for row, group_id in enumerate(found[part][0])}
            rows = [place[group_id] for group_id in saved[number].groups.ids]
            logits = found[part][1][rows]
            if saved[number].labelled:
                change = difference(saved[number], logits, saved[number].group_logits, replicates)
                effect.setdefault(str(folder), {})[part] = change
            averaged[part].append(replace(saved[number], logits=logits[saved[number].owner]))
    return averaged, effect


def stack(saved: list[Saved]) -> Float[np.ndarray, "M G C"]:
    """The groups' logits of all members."""
    return np.stack([member.group_logits for member in saved])


def combinations(saved: list[Saved], weights: Float[np.ndarray, "M"], cross: bool) -> dict[str, np.ndarray]:
    """Every way to combine, (G, C) logits each.

    Args:
        cross: These are the rows that the weights come from: weigh each without its own fifth of the patients.
    """
    logits, groups = stack(saved), saved[0].groups
    found: dict[str, np.ndarray] = {how: combine(logits, how, weights) for how in HOWS}
    if cross:
        found["weighted"] = cross_weighted(logits, groups.labels, groups.patient_ids)
    return found


def compare(
    saved: Saved,
    members: dict[str, Float[np.ndarray, "G C"]],
    combined: dict[str, Float[np.ndarray, "G C"]],
    best: str | None,
    replicates: int,
) -> dict[str, Any]:
    """mAP of members and combinations in both units, and each combination minus the best single member.

    Args:
        best: That member, chosen on held-out predictions; None: choose it here.
    """
    scores = members | combined
    report: dict[str, Any] = {"rows": {}}
    for unit, rows in (("groups", np.arange(len(saved.groups.ids))), ("images", saved.owner)):
        patients = [saved.groups.patient_ids[row] for row in rows]
        values = {name: logits[rows] for name, logits in scores.items()}
        result = patient_bootstrap(values, saved.groups.labels[rows], patients, replicates=replicates)
        best = best or max(members, key=result.estimate)
        report["rows"][unit] = len(rows)
        report[unit] = {name: {"mAP": interval(result.interval(name))} for name in scores}
        for name in combined:
            report[unit][name]["minus_best_member"] = interval(result.difference(name, best))
    return report | {"best_member": best}


def difference(
    saved: Saved, first: Float[np.ndarray, "G C"], second: Float[np.ndarray, "G C"], replicates: int
) -> dict[str, float | None]:
    """mAP of groups, first minus second."""
    scores = {"first": first, "second": second}
    result = patient_bootstrap(scores, saved.groups.labels, saved.groups.patient_ids, replicates=replicates)
    return interval(result.difference("first", "second"))


def write(
    out: Path,
    parts: Parts,
    logits: dict[str, Float[np.ndarray, "G C"]],
    report: dict[str, Any],
    evaluation: EvaluationConfig,
) -> None:
    """Write all files, `ensemble.json` last, and print the table."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "ensemble.json").unlink(missing_ok=True)  # of a former one: it would vouch for half a new one
    for part, saved in parts.items():
        write_saved(out, part, saved[0], logits[part])
    lines = table_lines(report, next(iter(parts)), evaluation)
    atomic_write(out / "table.txt", "\n".join(lines) + "\n")
    settings = {name: getattr(evaluation, name) for name in ("slot_draws", "augment", "normal_gate", "normal_class")}
    atomic_write(out / "ensemble.json", json.dumps(report | settings, indent=1, allow_nan=False) + "\n")
    print("\n".join([*lines, f"wrote {out}"]))
    print(f"next: python scripts/calibrate.py {out.parent} --name {out.name}")


def table_lines(report: dict[str, Any], kind: str, evaluation: EvaluationConfig) -> list[str]:
    """The comparison as text."""
    groups = "studies" if report["by"] == "study" else "patients"
    said = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(report["members"], report["weights"], strict=True))
    lines = [f"mAP [95 % interval by patient bootstrap]; written: {report['how']}", f"weights from {kind}: {said}"]
    for folder, effect in report["passes"].items():
        passes = f"{evaluation.slot_draws} slot draws" + (", cached variants" if evaluation.augment else "")
        told = ", ".join(f"{part} {span(change, '+', 4)}" for part, change in effect.items())
        lines.append(f"{folder}, mean over {passes} minus plain: {told}")
    for part in (kind, "test"):
        if part not in report:
            lines += ["", f"{part}: labels are unknown, predicted but not scored"]
            continue
        own, width = report[part], max(map(len, [*report["members"], *HOWS])) + 2
        cross = "; weighted without each row's own fifth of the patients" if part == kind else ""
        lines += ["", f"{part}: {own['rows']['groups']} {groups}, {own['rows']['images']} images{cross}"]
        lines.append(f"{'':<{width}}{groups:<24}{'minus best member':<28}{'image rows':<24}minus best member")
        for name in own["groups"]:
            cells = ""
            for unit in ("groups", "images"):
                gain = own[unit][name].get("minus_best_member")
                cells += f"{span(own[unit][name]['mAP']):<24}{span(gain, '+') if gain else '':<28}"
            mark = "  (best member on held-out predictions)" if name == own["best_member"] else ""
            lines.append(f"{name:<{width}}{cells.rstrip()}{mark}".rstrip())
        if "gate" in own:
            lines.append(
                f"{evaluation.normal_gate} gate by {evaluation.normal_class!r}, {groups}: {span(own['gate'], '+', 4)}"
            )
    return lines
