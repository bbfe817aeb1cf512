"""Class names of the CXR-LT challenges, in the order of their published files."""

from data.labels import CXR_LT_2023_CLASSES

# 2024 renamed "No Finding" to "Normal". Its task 2 keeps the column in the old place (Mass, Normal, Nodule), its task 1
# is alphabetical (Mass, Nodule, Normal): class columns are matched by name, never by place.
CXR_LT_2024_TASK1_CLASSES: tuple[str, ...] = (
    "Adenopathy", "Atelectasis", "Azygos Lobe", "Calcification of the Aorta", "Cardiomegaly", "Clavicle Fracture",
    "Consolidation", "Edema", "Emphysema", "Enlarged Cardiomediastinum", "Fibrosis", "Fissure", "Fracture",
    "Granuloma", "Hernia", "Hydropneumothorax", "Infarction", "Infiltration", "Kyphosis", "Lobar Atelectasis",
    "Lung Lesion", "Lung Opacity", "Mass", "Nodule", "Normal", "Pleural Effusion", "Pleural Other",
    "Pleural Thickening", "Pneumomediastinum", "Pneumonia", "Pneumoperitoneum", "Pneumothorax", "Pulmonary Embolism",
    "Pulmonary Hypertension", "Rib Fracture", "Round(ed) Atelectasis", "Subcutaneous Emphysema", "Support Devices",
    "Tortuous Aorta", "Tuberculosis",
)  # fmt: skip
CXR_LT_2024_TASK2_CLASSES = tuple({"No Finding": "Normal"}.get(name, name) for name in CXR_LT_2023_CLASSES)
CXR_LT_2024_TASK3_CLASSES = ("Bulla", "Cardiomyopathy", "Hilum", "Osteopenia", "Scoliosis")
CXR_LT_2026_TASK1_CLASSES: tuple[str, ...] = (
    "Normal", "aortic elongation", "cardiomegaly", "pleural effusion", "Nodule", "atelectasis", "pleural thickening",
    "aortic atheromatosis", "Support Devices", "alveolar pattern", "fracture", "Hernia", "Emphysema", "azygos lobe",
    "Hydropneumothorax", "Kyphosis", "Mass", "Pneumothorax", "Subcutaneous Emphysema", "pneumoperitoneo",
    "vascular hilar enlargement", "vertebral degenerative changes", "hyperinflated lung", "interstitial pattern",
    "central venous catheter", "hypoexpansion", "bronchiectasis", "hemidiaphragm elevation", "sternotomy",
    "calcified densities",
)  # fmt: skip
CXR_LT_2026_TASK2_CLASSES = ("Scoliosis", "Osteopenia", "Bulla", "Infarction", "Adenopathy", "goiter")
