"""The templates that docs/evaluation_protocols.md writes hold the papers' classes, spelled as in the manifests."""

import re
from pathlib import Path

import pandas as pd
import pytest

from data.label_spaces import CHEXPERT_CLASSES, NIH_CHEST_XRAY14_CLASSES, RSNA_CLASSES, VINDR_CLASSES

PAGE = Path(__file__).resolve().parents[1] / "docs/evaluation_protocols.md"
BLOCK = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
CHOSEN = 'run = "cxformer_chexpert"'


@pytest.mark.parametrize(
    ("run", "of_manifest", "scored"),
    [
        ("cxformer_nih", NIH_CHEST_XRAY14_CLASSES, 8),
        ("cxformer_chexpert", CHEXPERT_CLASSES, 5),
        ("cxformer_vindr", VINDR_CLASSES, 7),
        ("cxformer_rsna", RSNA_CLASSES, 1),
        ("lka_vgg16", NIH_CHEST_XRAY14_CLASSES, 14),
    ],
)
def test_a_template_has_the_papers_classes_and_test_images(run, of_manifest, scored, tmp_path, monkeypatch):
    names = ["p1_study1_view1_frontal", "p2_study1_view1_frontal", "p2_study1_view2_lateral"]  # views: UNKNOWN in test
    images = pd.DataFrame({"image_id": names, "split": ["train", "test", "test"], **dict.fromkeys(of_manifest, "0")})
    (tmp_path / "runs" / run).mkdir(parents=True)
    images.to_csv(tmp_path / "runs" / run / "manifest.csv", index=False)
    monkeypatch.chdir(tmp_path)
    assert BLOCK
    assert CHOSEN in BLOCK[1]
    exec(BLOCK[1].replace(CHOSEN, f"run = {run!r}"), {})
    template = pd.read_csv(tmp_path / "runs" / run / "template.csv")
    assert template.columns[0] == "image_id"
    assert len(set(template.columns[1:]) & set(of_manifest)) == len(template.columns) - 1 == scored
    assert template["image_id"].tolist() == names[1 : 2 if run == "cxformer_chexpert" else 3]
    assert not {"No Finding", "No finding", "Normal"} & set(template.columns)
