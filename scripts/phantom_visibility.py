"""Measure which view shows which finding: python scripts/phantom_visibility.py [--studies 300] [--seed 0]

Takes studies of the default cohort, deletes each finding in turn from each image, renders again, and prints minimum,
median and maximum of the contrast-to-noise ratio per class and view kind beside the committed table. Leaves with
status 1 if an instance is on the wrong side of VISIBLE_CNR.
"""

from argparse import ArgumentParser
from collections import defaultdict

if __name__ == "__main__":
    import _root  # noqa: F401
    import numpy as np

    from data.phantom.constants import FRONTAL, PHANTOM_VERSION, VISIBILITY, VISIBLE_CNR
    from data.phantom.listing import cohort_pictures
    from data.phantom.patient import sample_patient
    from data.phantom.radiograph import sample_taking
    from data.phantom.visibility import class_of, contrast_to_noise, is_visible

    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=300, help="how many of the default cohort's 1900 studies")
    parser.add_argument("--seed", type=int, default=0, help="which cohort")
    options = parser.parse_args()

    pictures = list(cohort_pictures((1200, 250, 450), options.seed))
    studies = list(dict.fromkeys(p.study_id for p in pictures))
    chosen = set(studies[:: max(len(studies) // options.studies, 1)])
    values, wrong = defaultdict(list), []
    for picture in (p for p in pictures if p.study_id in chosen):
        patient, taking = sample_patient(picture.patient_seed), sample_taking(picture.view, picture.seed)
        for name in picture.study.findings:
            ratio = contrast_to_noise(patient, picture.study.findings, name, picture.view, taking)
            values[class_of(name), picture.view in FRONTAL].append(ratio)
            if (ratio >= VISIBLE_CNR) != is_visible(name, picture.view):
                wrong.append(f"{name} in {picture.view} of study {picture.study_id}: {ratio:.2f}")

    print(f"Phantom {PHANTOM_VERSION}, {len(chosen)} studies, k = {VISIBLE_CNR}: minimum / median / maximum (images)\n")
    print("| class | frontal | | lateral | |\n|---|---|---|---|---|")
    for name, shown in VISIBILITY.items():
        cells = []
        for kind in ("frontal", "lateral"):
            found = values[name, kind == "frontal"] or [np.nan]
            cells.append("visible" if shown[kind] else "hidden")
            cells.append(f"{min(found):.1f} / {np.median(found):.1f} / {max(found):.1f} ({len(found)})")
        print(f"| {name} | {' | '.join(cells)} |")
    print(
        f"\n{len(wrong)} of {sum(map(len, values.values()))} findings in images on the wrong side",
        *wrong[:40],
        sep="\n",
    )
    raise SystemExit(bool(wrong))
