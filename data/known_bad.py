"""Files that others found to be bad in public data sets, so that they are named rather than puzzled over.

Whether a file can be read is always seen by reading it: "does not decode" may be one team's own copy, and a good copy
is used. What decodes to an empty or blurred picture is not seen by reading; such images do not train or validate, but stay
in the test split, where a challenge wants a prediction for every row.
"""

from pathlib import PurePosixPath

from data.manifest import Manifest

# MIMIC-CXR-JPG 2.0.0 by dicom_id, as listed in the public code of MedVQA (github.com/PabloMessina/MedVQA)
UNREADABLE = (
    "03b2e67c-70631ff8-685825fb-6c989456-621ca64d",  # p11/p11285576/s54979966
    "56b8afd3-5f6d4419-8699d79e-6913a2bd-35a08557",  # p15/p15223781/s52459604
    "93020995-6b84ca33-2e41e00d-5d6e3bee-87cfe5c6",  # p15/p15223781/s52459604
)
EMPTY = (
    "0539ee33-9d402e49-a9cc6d36-7aabc539-3d80a62b",  # p10/p10291098/s57194260
    "0b6f08b2-72deda00-d7ccc375-8278269f-b4e11c36",  # p15/p15355458/s52423703
    "151abebe-2a750a5c-09c181bb-1a9016ef-92d8910e",  # p18/p18461911/s57183218
    "f674e474-817bb713-8f16c90c-608cf869-2829cae7",  # p19/p19839145/s54889255
)


def known_empty(manifest: Manifest) -> dict[str, str]:
    """Paths of the training and validation images that are known to show nothing, and the reason to leave them out."""
    images = manifest.images
    bad = images["image_id"].isin(EMPTY) & (images["split"] != "test")
    return dict.fromkeys(images["path"][bad], "decodes, but is known to be an empty or blurred picture")


def name_known(path: str, reason: str) -> str:
    """The reason for which a file was rejected, and whether others could not read it either."""
    if PurePosixPath(path).stem in UNREADABLE:
        return f"{reason} (known: others could not read it either)"
    return reason
