"""The leak certificate: what was compared and what was found, in numbers and digests alone, fit to be passed on.

No id, path or picture is in it. Whoever holds the manifests can recompute their digests and `digest`.
"""

import hashlib
import json
from typing import Any

import pandas as pd

from data.audit.result import Audit
from data.audit.thumbnails import SIDE
from data.manifest import SPLITS

FORMAT = 1


def certificate(audit: Audit) -> dict[str, Any]:
    """The certificate's content; its last entry, `digest`, is the SHA-256 of `digested_text` of the others."""
    places = audit.table.groupby("place", sort=False)
    content = {
        "format": FORMAT,
        "verdict": "leaks" if audit.num_leaks else "no leak found",
        "manifests": [
            {
                "name": collection.name,
                "role": collection.role,
                "sha256": collection.manifest.digest,
                "images": len(collection.manifest),
                "sources": sorted(collection.manifest.images["source"].unique().tolist()),
            }
            for collection in audit.collections
        ],
        "sides": {
            place: {"images": len(rows), "patients": int(rows.groupby(["archive", "patient_id"]).ngroups)}
            for place, rows in sorted(places, key=lambda part: _order(audit, part[1]))
        },
        "patients_on_two_sides": audit.leaking_patients,
        "image_ids_on_two_sides": audit.leaking_images,
        "pictures_on_two_sides": audit.leaking_pictures,
        "near_duplicate_pairs": len(audit.copies),
        "ids_shared_by_unrelated_archives": sum(shared.count for shared in audit.shared),
        "images_compared": audit.num_compared,
        "images_not_compared": len(audit.table) - audit.num_compared,
        "method": {
            "thumbnail": SIDE,
            "least_score": audit.least_score,
            "sides": "train and pretraining count as one side; val and test are two more",
        },
    }
    return content | {"digest": hashlib.sha256(digested_text(content)).hexdigest()}


def _order(audit: Audit, rows: pd.DataFrame) -> tuple[int, int]:
    """Of a place: sets as they were named, in each train, val, test."""
    names = [collection.name for collection in audit.collections]
    return names.index(rows["set"].iat[0]), SPLITS.index(rows["side"].iat[0])


def digested_text(content: dict[str, Any]) -> bytes:
    """Canonical JSON: sorted keys, no spaces, without `digest`."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
