"""Draw the phantom's contact sheet: python scripts/contact_sheet.py [--out docs/phantom_contact_sheet.png]

Normal PA, AP and lateral, then each finding without and with (boxed where it changes the noise-free image by more than
half of its maximum) on PA and lateral, with its contrast-to-noise ratio.
"""

from argparse import ArgumentParser
from pathlib import Path

if __name__ == "__main__":
    import _root  # noqa: F401
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    from PIL import Image

    from data.phantom.constants import PHANTOM_VERSION, VISIBLE_CNR
    from data.phantom.patient import sample_patient
    from data.phantom.radiograph import Taking, radiograph
    from data.phantom.visibility import contrast, contrast_to_noise

    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/phantom_contact_sheet.png"), help="PNG to write")
    parser.add_argument("--patient", type=int, default=7, help="seed of the patient shown")
    parser.add_argument("--finding", type=int, default=4, help="seed of each finding's place and size")
    options = parser.parse_args()

    patient = sample_patient(options.patient)
    rows = [  # pairs to compare side by side, then the others
        ("Nodule", "electrode"),
        ("Enlarged Cardiomediastinum", "Tortuous Aorta"),
        ("Consolidation", "Lung Lesion"),
        ("Pneumothorax", "Pleural Thickening"),
        ("Pleural Effusion", "Atelectasis"),
        ("Cardiomegaly", "Edema"),
        ("Emphysema", "Hernia"),
        ("Fracture", "pacemaker"),
    ]
    width = 16.0
    figure = plt.figure(figsize=(width, width / 3 + len(rows) * width / 8 * 1.13), dpi=90, facecolor="black")
    top, *strips = figure.subfigures(1 + len(rows), 1, height_ratios=[2.5] + [1.06] * len(rows))
    style = {"color": "white", "fontsize": 9}

    def show(axes: plt.Axes, picture: np.ndarray, title: str) -> None:
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="lanczos")
        axes.set_title(title, **style, pad=3)
        axes.set_axis_off()

    for axes, view in zip(top.subplots(1, 3), ("PA", "AP", "LATERAL"), strict=True):
        taking = Taking(letter=(16.0, -17.5), breath=1.2 if view == "AP" else 0.0)
        show(axes, radiograph(patient, {}, view, taking, 512), f"normal, {view}")
    for strip, pair in zip(strips, rows, strict=True):
        panels = iter(strip.subplots(1, 8))
        for name in pair:
            findings = {name: options.finding}
            for view in ("PA", "LATERAL"):
                taking = Taking()
                show(next(panels), radiograph(patient, {}, view, taking, 256), f"without, {view}")
                axes = next(panels)
                ratio = contrast_to_noise(patient, findings, name, view)
                show(axes, radiograph(patient, findings, view, taking, 256), f"{name}\nCNR {ratio:.1f}")
                if ratio >= VISIBLE_CNR:
                    change = np.abs(contrast(patient, findings, name, view, taking, 256)[1])
                    y, x = np.nonzero(change > 0.5 * change.max())
                    corner, width, height = (float(x.min()) - 6, float(y.min()) - 6), np.ptp(x) + 12.0, np.ptp(y) + 12.0
                    axes.add_patch(
                        plt.Rectangle(
                            corner, float(width), float(height), fill=False, edgecolor="#ffb000", linewidth=0.9
                        )
                    )
    for part in (top, *strips):
        part.set_facecolor("black")
        part.subplots_adjust(left=0.003, right=0.997, top=0.9 if part is top else 0.83, bottom=0.0, wspace=0.02)
    top.suptitle(f"Chest phantom {PHANTOM_VERSION}", color="white", fontsize=12, y=0.985)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, facecolor="black")
    with Image.open(options.out) as sheet:  # 64 colours: half the bytes
        sheet.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(options.out, optimize=True)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB")
