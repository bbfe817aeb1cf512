"""Files that others found to be bad in public data sets, so that they are named rather than puzzled over.

Whether a file can be read is always seen by reading it: "does not decode" may be one team's own copy, and a good copy
is used. What decodes to an empty or blurred picture is not seen by reading; such images do not train or validate, but
stay in the test split, where a challenge wants a prediction for every row.
"""

from pathlib import PurePosixPath

from data.manifest import Manifest

# MIMIC-CXR-JPG 2.0.0 by dicom_id, as listed in the public code of MedVQA (github.com/PabloMessina/MedVQA)
UNREADABLE = (
    "03b2e67c-70631ff8-685825fb-6c989456-621ca64d",  # p11/p11285576/s54979966
    "56b8afd3-5f6d4419-8699d79e-6913a2bd-35a08557",  # p15/p15223781/s52459604
    "93020995-6b84ca33-2e41e00d-5d6e3bee-87cfe5c6",  # p15/p15223781/s52459604
)
# PadChest by ImageID, 30 of the about 33 that do not decode or are cut: those in the public code of torchxrayvision
# (github.com/mlmed/torchxrayvision), MaCheX and MedVQA
PADCHEST_UNREADABLE = (
    "216840111366964012819207061112010307142602253_04-014-084",
    "216840111366964012989926673512011074122523403_00-163-058",
    "216840111366964012959786098432011033083840143_00-176-115",
    "216840111366964012558082906712009327122220177_00-102-064",
    "216840111366964012339356563862009072111404053_00-043-192",
    "216840111366964013076187734852011291090445391_00-196-188",
    "216840111366964012373310883942009117084022290_00-064-025",
    "216840111366964012283393834152009033102258826_00-059-087",
    "216840111366964012373310883942009170084120009_00-097-074",
    "216840111366964012819207061112010315104455352_04-024-184",
    "216840111366964012819207061112010306085429121_04-020-102",
    "216840111366964012989926673512011083134050913_00-168-009",
    "216840111366964012373310883942009152114636712_00-102-045",
    "216840111366964012819207061112010281134410801_00-129-131",
    "216840111366964012487858717522009280135853083_00-075-001",
    "216840111366964012989926673512011151082430686_00-157-045",
    "216840111366964013686042548532013208193054515_02-026-007",
    "216840111366964013590140476722013058110301622_02-056-111",
    "216840111366964013590140476722013043111952381_02-065-198",
    "216840111366964013829543166512013353113303615_02-092-190",
    "216840111366964013962490064942014134093945580_01-178-104",
    "232387753838738339711526121280969069202_3kz4uc",
    "16318114638720496804398478863603181862_hsqx37",
    "216840111366964012373310883942009183085424538_00-030-080",
    "216840111366964012373310883942009118085640636_00-070-094",
    "216840111366964012487858717522009209140601076_00-032-109",
    "216840111366964012373310883942009180082307973_00-097-011",
    "216840111366964012558082906712009301143450268_00-075-157",
    "216840111366964012989926673512011101154138555_00-191-086",
    "216840111366964012283393834152009033140208626_00-059-118",
)
# CheXpert Plus, a picture's patient and study: a corrupt PNG, says public code that exports the data set
CHEXPERT_PLUS_UNREADABLE = (("patient32368", "study1"),)
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
    place = PurePosixPath(path)
    known = place.stem in (*UNREADABLE, *PADCHEST_UNREADABLE)
    if known or (place.suffix == ".png" and place.parts[-3:-1] in CHEXPERT_PLUS_UNREADABLE):
        return f"{reason} (known: others could not read it either)"
    return reason
