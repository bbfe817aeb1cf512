"""The command `scripts/publish.py`: the model of a run as one folder with its card; on request, private on the Hub."""

import re
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from data.errors import InputError
from data.files import atomic_write
from data.runs import run_command
from fusion.model_card import REPLICATES, RunFacts, may_be_shared, model_card, read_facts
from fusion.model_folder import assemble
from fusion.model_parts import read_result
from fusion.predict import HUB_ID, load_model
from fusion.predictor import Predictor

LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
APACHE = Path(__file__).parents[1] / "LICENSE"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a fault of the input ends it with one line and status 1."""
    parser = ArgumentParser(prog="publish.py", description="Write a trained model as one folder that can be passed on.")
    parser.add_argument("--run", type=Path, required=True, help="a result folder, such as runs/x/fusion")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; it must not exist, or be empty")
    parser.add_argument(
        "--license", type=str | None, default=None, help="of the weights, such as apache-2.0 (default: none is named)"
    )
    parser.add_argument("--about", type=Path | None, default=None, help="CSV with an id and sex or age, for the card")
    parser.add_argument(
        "--push", type=str | None, default=None, help="owner/name on the Hub; the repository is private"
    )
    parser.add_argument(
        "--i_may_share_these_weights",
        action="store_true",
        help="push although the training data is credentialed, or its terms are not known",
    )
    options = vars(parser.parse_args(argv))
    run_command(lambda: publish(**options))


def publish(
    run: Path,
    out: Path,
    license: str | None = None,
    about: Path | None = None,
    push: str | None = None,
    i_may_share_these_weights: bool = False,
    replicates: int = REPLICATES,
) -> None:
    """Write the model folder with its card, load it as a stranger would, say what it holds; upload it if asked to.

    Args:
        replicates: Patient bootstrap replicates behind the card's intervals.

    Raises:
        InputError: No finished model in `run`, something in `out`, a bad licence or repository name, weights that may
            not be shared, a Hub that refuses.
    """
    if license is not None and not LICENSE_ID.fullmatch(license):
        raise InputError(f"--license {license!r}: wanted an identifier in small letters, such as apache-2.0")
    facts = read_facts(run, read_result(run), about, replicates)
    if push is not None:
        check_push(push, facts, i_may_share_these_weights)
    assemble(run, out)
    atomic_write(out / "README.md", model_card(facts, license))
    if license is not None:
        atomic_write(out / "LICENSE", license_text(license))
    print("\n".join(contents(load_model(out, "cpu"), out)))
    if push is None:
        print(f"next: read {out / 'README.md'}, then python scripts/predict.py --model {out} --images FOLDER --out NEW")
    else:
        upload(out, push)
        print(f"uploaded, private: {push}; next: python scripts/predict.py --model {push} --images FOLDER --out NEW")


def check_push(name: str, facts: RunFacts, allowed: bool) -> None:
    """Refuse to upload what may not be shared.

    Raises:
        InputError: Not owner/name, or data whose terms forbid it or are not known.
    """
    if not HUB_ID.fullmatch(name):
        raise InputError(f"--push {name}: wanted owner/name")
    if allowed or may_be_shared(facts):
        return
    restricted = [one.title for one in facts.data_sets if not one.free] or ["weights or data that are not recorded"]
    raise InputError(
        f"--push: trained on {', '.join(restricted)}, whose terms may forbid to share weights, even in a private"
        " repository; ask, then add --i_may_share_these_weights"
    )


def upload(folder: Path, name: str) -> None:
    """Put a model folder into a private repository of the Hub, which is made if need be.

    Raises:
        InputError: A repository of that name is public, or the Hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(name, private=True, exist_ok=True)
        private = api.model_info(name).private
        if private:
            api.upload_folder(repo_id=name, folder_path=folder, commit_message="Model folder")
    except (OSError, ValueError) as error:  # what the Hub's library raises is one or the other
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"--push {name}: not uploaded ({reason}); {folder} is complete, upload it with hf upload --private"
        ) from None
    if not private:
        raise InputError(
            f"--push {name}: there is a public repository of that name; choose another, or make it private"
        )


def license_text(license: str) -> str:
    """The file LICENSE: the Apache licence in full, of any other one what it is called."""
    if license == "apache-2.0" and APACHE.is_file():
        return APACHE.read_text(encoding="utf-8")
    return f"The weights in this folder are licensed by those who publish them under {license} (SPDX identifier).\n"


def contents(model: Predictor, folder: Path) -> list[str]:
    """What a published folder holds, for the terminal."""
    parts = model.parts
    counts = {name: sum(p.numel() for p in getattr(parts, name).parameters()) for name in ("backbone", "fusion")}
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return [
        f"{folder}: {size / 1e6:.1f} MB, all digests right, its example predicted as where it was made",
        f"  backbone {parts.stage_one.backbone.name}, {counts['backbone']:,} weights; fusion, {counts['fusion']:,}",
        f"  {len(parts.classes)} classes per {parts.config.grouping.by}; images {parts.preprocessing.size} px;"
        f" {'calibrated' if parts.fitted else 'not calibrated'}; weights {parts.weights_sha256[:12]}",
        f"  {', '.join(sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()))}",
    ]
