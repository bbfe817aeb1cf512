"""A data card: what one manifest holds, in numbers only, to lie beside a published model or result."""

from collections import Counter

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data.audit.page import TEMPLATES, cell, shown_counts
from data.audit.result import Audit, counted
from data.audit.sides import Collection
from data.groups import group_images
from data.manifest import SPLITS
from data.views import VIEWS


def data_card(audit: Audit, collection: Collection) -> str:
    """The card of one of the audited manifests, in Markdown."""
    own = (audit.table["set"] == collection.name).tolist()
    faults = Counter(flag.fault for flag in audit.flags if own[flag.row])
    conflicts = group_images(collection.manifest, "study", "any").conflicts
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = cell
    return environment.get_template("card.md").render(
        set=shown_counts(collection.name, audit.counts[collection.name]),
        sha256=collection.manifest.digest,
        sources=sorted(collection.manifest.images["source"].unique().tolist()),
        policy=f"{counted(conflicts, 'label')} differ between images of one study" if conflicts else "",
        copies=sum(own[copy.first] and own[copy.second] for copy in audit.copies),
        faults=[f"{counted(number, 'image')} flagged {fault}" for fault, number in sorted(faults.items())],
        verdict=audit.verdict,
        splits=SPLITS,
        views=VIEWS,
    )
