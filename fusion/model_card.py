"""The model card of a published model: README.md with the Hub's front matter, made from the files of its run.

Numbers are those of `scripts/evaluate.py`, from the run's test predictions. What no file tells is said to be not
recorded. No path, no id of a patient or image and no free text of a user's table gets into it; class names do.
"""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data.audit.page import cell
from data.config import read_yaml
from data.manifest import read_manifest
from data.runs import read_metrics
from data.spans import span
from data.strict_json import read_json
from fusion.evaluate.report import HEADLINES, evaluate, thresholds_line
from fusion.evaluate.source import find_source
from fusion.evaluate.strata import NUM_VIEWS, VIEW, read_about
from fusion.model_parts import ModelParts
from fusion.training_data import DataSet, data_sets_of

TEMPLATE = "model_card.md"
NOT_RECORDED = "not recorded"
METRICS = {"mAP": "mean average precision", "mAUROC": "mean area under the ROC curve"}
FACTORS = (NUM_VIEWS, VIEW, "sex", "age")  # of `fusion.evaluate.strata`; a user's own names of sources are not told
REPLICATES = 1000


@dataclass(frozen=True)
class RunFacts:
    """What the files of a run tell."""

    parts: ModelParts
    manifest: dict[str, Any] | None
    """`manifest.json`."""
    data_sets: list[DataSet]
    evaluation: dict[str, Any] | None
    """As `scripts/evaluate.py` writes it; None without test predictions."""
    fitted_on: dict[str, Any] | None
    """Of `calibration.json`."""
    environment: dict[str, Any] | None
    training: dict[str, tuple[int, float]]
    """Epochs and seconds of each phase that is recorded."""
    start: str
    """What the backbone was before it was trained."""
    others: bool
    """Whether weights that this run did not make may be in the model, other than timm's own."""


def read_facts(
    result_dir: Path, parts: ModelParts, about: Path | None = None, replicates: int = REPLICATES
) -> RunFacts:
    """Gather what there is; the test predictions are evaluated anew.

    Args:
        about: A table with sex or age (`fusion.evaluate.strata.read_about`).

    Raises:
        InputError: A file that is there and damaged.
    """
    stage_two = result_dir.parent if parts.joint else result_dir
    run_dir = stage_two.parent
    phases = {"backbone": run_dir / "stage_one", "fusion model": stage_two}
    phases |= {"joint phase": result_dir} if parts.joint else {}
    path, record = run_dir / "manifest.csv", _record(run_dir / "manifest.json")
    manifest = read_manifest(path) if path.is_file() and record else None
    evaluation = None
    if manifest is not None and (result_dir / "predictions_test.csv").is_file():
        source = find_source(result_dir, "test", path, None, parts.config.grouping.by)
        evaluation = evaluate(source, manifest, read_about(about) if about else None, None, 0.9, replicates)
    calibration = _record(result_dir / "best" / "calibration.json")
    start, others = start_of(run_dir / "stage_one" / "best" / "config.yaml")
    return RunFacts(
        parts=parts,
        manifest=record if manifest is not None else None,
        data_sets=[] if manifest is None else data_sets_of(manifest.images["source"]),
        evaluation=evaluation,
        fitted_on=calibration["fitted_on"] if calibration and parts.fitted else None,
        environment=_record(run_dir / "environment.json"),
        training={name: _trained(rows) for name, folder in phases.items() if (rows := read_metrics(folder))},
        start=start,
        others=others,
    )


def may_be_shared(facts: RunFacts) -> bool:
    """Whether nothing that the model learned from is known to be restricted, or not known at all."""
    return not facts.others and bool(facts.data_sets) and all(one.free for one in facts.data_sets)


def model_card(facts: RunFacts, license_id: str | None = None) -> str:
    """The text of README.md.

    Args:
        license_id: As SPDX and the Hub spell it, such as apache-2.0; None: nobody named one.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": cell, "span": span, "digits": digits}
    report = facts.evaluation
    return environment.get_template(TEMPLATE).render(
        front_matter=front_matter(facts, license_id),
        facts=facts,
        parts=facts.parts,
        manifest=facts.manifest,
        report=report,
        headlines={} if report is None else headlines(report),
        factors=[] if report is None else [name for name in FACTORS if name in report["groups"]["parts"]],
        license_id=license_id,
        shareable=may_be_shared(facts),
        groups="studies" if facts.parts.config.grouping.by == "study" else "patients",
        thresholds=[] if facts.parts.fitted is None else thresholds_of(facts.parts),
        thresholds_from="" if report is None else thresholds_line(report),
        untrained=[] if facts.manifest is None else untrained(facts.manifest["splits"]["train"]),
        version=importlib.metadata.version("cxr-fusion"),
        not_recorded=NOT_RECORDED,
    )


def front_matter(facts: RunFacts, license_id: str | None) -> str:
    """The YAML at the top, by which the Hub sorts models."""
    card = ModelCardData(
        library_name="cxr-fusion",
        pipeline_tag="image-classification",
        tags=["chest-x-ray", "radiology", "multi-label", "long-tailed", "multi-view", facts.parts.config.model.kind],
        metrics=["mAP", "roc_auc"],
        model_name=f"chest X-ray fusion on {facts.parts.stage_one.backbone.name}",
        eval_results=results_for_hub(facts) or None,
    )
    for key, value in licence_fields(facts, license_id).items():
        setattr(card, key, value)
    return card.to_yaml()


def licence_fields(facts: RunFacts, license_id: str | None) -> dict[str, str]:
    """What the front matter says of the licence."""
    if license_id is not None:
        return {"license": license_id}
    return {"license": "unknown"} if may_be_shared(facts) else {"license": "other", "license_name": "not-to-be-shared"}


def results_for_hub(facts: RunFacts) -> list[EvalResult]:
    """Test scores as the Hub's model index has them; none where they are undefined."""
    if facts.evaluation is None:
        return []
    values = {name: facts.evaluation["groups"][name] for name in METRICS}
    return [
        EvalResult(
            task_type="image-classification",
            task_name="multi-label classification of chest X-ray studies",
            dataset_type="chest-x-ray",
            dataset_name=" and ".join(one.title for one in facts.data_sets),
            dataset_split="test",
            metric_type={"mAP": "mAP", "mAUROC": "roc_auc"}[name],
            metric_name=METRICS[name],
            metric_value=round(value, 4),
        )
        for name, value in values.items()
        if value is not None
    ]


def headlines(report: dict[str, Any]) -> dict[str, str]:
    """Measures that the report has, and their words; a part of the measure before it is named after that."""
    named, whole = {}, ""
    for key, words in HEADLINES.items():
        whole = whole if words.startswith(" ") else words.format(**report)
        named[key] = whole if not words.startswith(" ") else f"{whole}: {words.strip()}"
    return {key: words for key, words in named.items() if key in report["groups"]["intervals"]}


def untrained(train: dict[str, Any]) -> list[str]:
    """Classes of which training has never seen a case, not even a likely one."""
    return [name for name, count in train["positives"].items() if not count and not train["soft"][name]]


def thresholds_of(parts: ModelParts) -> Sequence[tuple[str, float, bool]]:
    """Each class with its threshold, and whether that is its own."""
    assert parts.fitted is not None, "asked for where there are some"
    chosen = parts.fitted[1]
    return [(name, value, name in chosen.own) for name, value in zip(chosen.classes, chosen.values, strict=True)]


def start_of(path: Path) -> tuple[str, bool]:
    """What the backbone was before it was trained, from stage one's `config.yaml`, and whether others made it."""
    if not path.is_file():
        return NOT_RECORDED, True
    tree = read_yaml(path)
    pretrained = (tree.get("backbone") or {}).get("pretrained", False)
    taught = (tree.get("distillation") or {}).get("teacher") is not None
    first = {False: "random numbers", True: "timm's published weights of that name"}
    begun = first.get(pretrained, "weights of a file or another run, whose training data is not recorded here")
    return begun + (", and learned from a teacher model too" if taught else ""), taught or pretrained not in first


def digits(value: float | None) -> str:
    """Three digits, or a word for an undefined number."""
    return "undefined" if value is None else f"{value:.3f}"


def _record(path: Path) -> dict[str, Any] | None:
    return read_json(path, "copy it from the run again") if path.is_file() else None


def _trained(rows: list[dict[str, Any]]) -> tuple[int, float]:
    return len(rows), sum(row.get("seconds", 0.0) for row in rows)
