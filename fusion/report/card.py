"""Sections about data and circumstances: header, data card, leak certificate, configuration, environment, limits."""

import hashlib
import json
from typing import Any

from data.audit.certificate import digested_text
from data.audit.counts import FRONTAL, count
from data.errors import InputError
from data.manifest import SPLITS
from data.metrics import hard_labels
from data.spans import span
from data.strict_json import read_json
from data.views import VIEWS
from fusion.report.source import Run, yaml_tree


def header(run: Run) -> dict[str, Any]:
    """What the model is and how good it is, in two sentences, and the figures beside them."""
    fusion = run.units["groups"]["methods"]["fusion"]
    stage_one = yaml_tree(run.run_dir / "stage_one" / "config.yaml")
    backbone = (stage_one.get("backbone") or {}).get("name")
    size = (stage_one.get("image") or {}).get("size")
    reads = f"A {backbone} backbone turns each image" if backbone else "A backbone turns each image"
    reads += f" ({size} x {size} pixels)" if size else ""
    classes = len(run.manifest.classes)
    one = "a study" if run.by == "study" else "a patient"
    first = f"{reads} into a feature map; a transformer reads the maps of all views of {one} together and gives"
    first += f" {classes} findings a probability each."
    if "folds" in run.record:
        first += f" Results of {run.record['folds']} folds are joined."
    judged = len(fusion["per_class"]) - len(fusion.get("absent", []))
    second = f"On {run.units['groups']['rows']:,} {run.split} {run.group_name} it reaches a mean average precision of"
    second += f" {span(fusion['interval'])} over {judged} findings"
    gain = run.units["groups"]["differences"].get(f"fusion - {run.best_baseline}")
    if gain and gain["estimate"] is not None:
        sure = "" if gain["low"] is not None and not gain["low"] <= 0 <= gain["high"] else ", which includes 0"
        second += f"; that is {span(gain, '+')} against {run.best_baseline}, the best baseline on validation{sure}"
    sources = sorted(run.manifest.images["source"].unique().tolist())
    return {"sentences": [first, f"{second}."], "sources": sources, "figures": figures(run), "gain": gain}


def figures(run: Run) -> list[tuple[str, str]]:
    """A few numbers for the top of the page."""
    fusion = {unit: run.units[unit]["methods"]["fusion"] for unit in ("groups", "images")}
    bands = [(f"mAP_{band}", f"mAP, {band} classes") for band in ("head", "medium", "tail")]
    found = [("mAUROC", "mean AUROC"), *bands]
    return [(f"{fusion['groups'][key]:.3f}", words) for key, words in found if fusion["groups"].get(key) is not None]


def data_card(run: Run) -> dict[str, Any]:
    """Counts of the manifest per split and class; what is missing; views per study."""
    counts = count(run.manifest)
    splits = [name for name in SPLITS if counts.splits[name]["images"]]
    rows: list[dict[str, Any]] = []
    for name in counts.classes:
        cells = []
        for split in splits:
            numbers = counts.splits[split]
            images = numbers["images"]
            cells.append(
                {
                    "positives": numbers["positives"][name],
                    "share": numbers["positives"][name] / images,
                    "unknown": numbers["unknown"][name] / images,
                }
            )
        rows.append({"name": name, "band": run.bands[name], "cells": cells})
    known, _ = hard_labels(run.manifest.labels)
    most = max(counts.study_sizes.values(), default=1)
    sizes = [(size, number, 100 * number / most) for size, number in sorted(counts.study_sizes.items())]
    return {
        "splits": splits,
        "counts": counts.splits,
        "views": [view for view in VIEWS if any(counts.splits[split]["views"][view] for split in splits)],
        "rows": sorted(rows, key=lambda row: -row["cells"][0]["positives"]),
        "sizes": sizes[:12],
        "missing": {what: len(ids) for what, ids in counts.missing.items() if ids},
        "unknown": float(1 - known.mean()) if known.size else 0.0,
        "rejected": len(run.manifest.rejected),
        "digest": run.manifest.digest,
        "frontal": " and ".join(FRONTAL),
    }


def certificate(run: Run) -> dict[str, Any]:
    """The leak certificate of this manifest; or the sentence how to make one, or why the one found does not count."""
    path = run.run_dir / "audit" / "certificate.json"
    command = f"python scripts/audit.py {run.run_dir / 'manifest.csv'}"
    if not path.is_file():
        return {"missing": "No audit has been made, so leaks between the splits are not excluded.", "command": command}
    try:
        found = read_json(path, "run scripts/audit.py again")
        digest = hashlib.sha256(digested_text(found)).hexdigest()
        of_this = any(entry["sha256"] == run.manifest.digest for entry in found["manifests"])
        verdict = str(found["verdict"])
    except (InputError, KeyError, TypeError):
        return {"missing": f"{path} is damaged and proves nothing.", "command": command}
    if digest != found.get("digest"):
        return {"missing": f"{path} does not match its own digest and proves nothing.", "command": command}
    if not of_this:
        return {"missing": f"{path} is of another manifest than this run's.", "command": command}
    return {"missing": None, "found": found, "verdict": verdict}


def circumstances(run: Run) -> dict[str, Any]:
    """Configuration files as they are, and the environment as pairs."""
    texts = {}
    for title, path in (("Stage one", run.run_dir / "stage_one"), ("Stage two", run.folder)):
        file = path / "config.yaml"
        texts[title] = (file, file.read_text(encoding="utf-8") if file.is_file() else None)
    environment = run.run_dir / "environment.json"
    record = read_json(environment, "run extract.py again") if environment.is_file() else {}
    flat = {key: value for key, value in record.items() if not isinstance(value, dict)}
    flat |= record.get("packages", {}) if isinstance(record.get("packages"), dict) else {}
    pairs = [(str(key), value if isinstance(value, str) else json.dumps(value)) for key, value in flat.items()]
    return {"texts": texts, "environment": pairs, "weights": weights(run)}


def weights(run: Run) -> list[tuple[str, str]]:
    """SHA-256 of the model files, as their folders say."""
    found = []
    for title, folder in (("stage one", run.run_dir / "stage_one"), ("stage two", run.folder)):
        path = folder / "best" / "digests.json"
        if path.is_file():
            digest = read_json(path, "train again").get("model.safetensors")
            if isinstance(digest, str):
                found.append((title, digest))
    return found


def limits(run: Run) -> list[str]:
    """What these numbers do not say, as far as the run's own files tell."""
    said = [
        "For research. Not a medical device, not for diagnosis, validated on no others than those counted here.",
        "Intended use: comparing methods of multi-view classification on data like these. Out of scope: single findings"
        " of a single patient, children, images that are no chest radiographs, other scanners and other populations"
        " without a test of their own.",
        "Intervals say how much the choice of test patients matters. They do not speak of another training run, another"
        " seed or another hospital.",
    ]
    few = [
        name
        for name, values in run.units["groups"]["methods"]["fusion"]["per_class"].items()
        if 0 < values["positives"] < 20
    ]
    if few:
        said.append(
            f"Fewer than 20 positive {run.group_name}: {', '.join(few)}. Their scores are hardly more than hints."
        )
    if set(run.manifest.images["source"]) == {"phantom"}:
        said.append(
            "All images are simulated (docs/phantom.md): these scores say how methods compare on a known truth, and"
            " nothing about patients."
        )
    else:
        said.append(
            "Labels that were read from reports by a program are noisy, and what a report does not mention is not"
            " absent; scores inherit that."
        )
    said.append(
        "The best epoch, and with it the model, was chosen on validation; test was read once, for these numbers."
    )
    return said
