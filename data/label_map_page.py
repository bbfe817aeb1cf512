"""docs/label_maps.md, made from `data.label_maps`: no row of it is written by hand."""

from data.label_maps import APART, FINDINGS, KINDS, LISTS_ALL, NOTES, SPACES
from data.relabel import Counterpart, counterparts

TARGETS = {
    "cxr-lt-2023": "CXR-LT 2023",
    "cxr-lt-2024": "CXR-LT 2024, task 1",
    "cxr-lt-2024-task-3": "CXR-LT 2024, task 3",
    "cxr-lt-2026": "CXR-LT 2026",
    "cxr-lt-2026-task-2": "CXR-LT 2026, task 2",
}
"""The challenges that get a table; task 2 of 2024 has the classes of 2023, with Normal for No Finding."""
SOURCES = (
    "cxr-lt-2023",
    "cxr-lt-2024",
    "cxr-lt-2026",
    "mimic-cxr",
    "nih",
    "nih-cxr-lt",
    "rsna",
    "vindr",
    "vinbigdata",
    "padchest",
)
"""Their columns; CheXpert and BRAX have the classes of mimic-cxr."""
SHOWN = 8  # names in a cell

HEAD = """# Label maps

Made by `python scripts/label_maps.py` from [`data/label_maps.py`](../data/label_maps.py), which says what every class
stands for and why; [`data/relabel.py`](../data/relabel.py) applies it. `scripts/prepare.py join` uses it to put sets
into one label space ([joining](joining.md)).

In the tables, a name is the class of the source that is meant; several names: any of them makes it 1, all of them 0
make it 0. *0 if not X*: X is wider, so that its 0 is a 0 here and its 1 says nothing. An empty cell: unknown. A source
that could only ever say 1 of a class says nothing of it here: the class would be learned as the look of that source.

chexpert and brax have the classes of mimic-cxr, cxr-lt-2024-task-2 those of cxr-lt-2023 (Normal for No Finding); NIH's
list of boxes says Infiltrate for Infiltration, VinDr's test table Other disease for Other diseases.
"""


def page() -> str:
    """The page as Markdown."""
    parts = [HEAD, *(_table(target) for target in TARGETS), _notes(), _kinds(), _unmatched(), _counts()]
    return "\n".join(parts)


def _table(target: str) -> str:
    columns = [source for source in SOURCES if source != target]
    found = {source: counterparts(source, target) for source in columns}
    lines = [f"## {TARGETS[target]}", "", _row(["", *columns]), _row(["---"] * (len(columns) + 1))]
    for name in SPACES[target]:
        lines.append(_row([name, *(_cell(found[source].get(name)) for source in columns)]))
    return "\n".join(lines) + "\n"


def _cell(counterpart: Counterpart | None) -> str:
    if counterpart is None:
        return ""
    names = counterpart.makes_1 or counterpart.makes_0
    text = ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")
    return text if counterpart.makes_1 else f"*0 if not {' or '.join(names)}*"


def _notes() -> str:
    """Where names that are taken for one class differ, or near ones are not taken for one."""
    lines = ["## Taken for the same, although", "", _row(["finding", "called", "note"]), _row(["---"] * 3)]
    lines += [_row([finding, ", ".join(_names(finding)), note]) for finding, note in NOTES.items()]
    lines += ["", "## Not taken for the same, because", "", _row(["class", "of", "reason"]), _row(["---"] * 3)]
    for finding, reason in APART.items():
        spaces = [space for space, names in FINDINGS.items() if finding in names.values()]
        lines.append(_row([", ".join(_names(finding)), ", ".join(spaces), reason]))
    return "\n".join(lines) + "\n"


def _kinds() -> str:
    lines = [
        "## Kinds",
        "",
        f"In {', '.join(LISTS_ALL)}, which lists all that a report sees, a kind makes its finding 1.",
        "",
    ]
    lines += [f"- **{finding}**: {', '.join(kinds)}" for finding, kinds in KINDS.items()]
    return "\n".join(lines) + "\n"


def _unmatched() -> str:
    lines = ["## Classes that no other set knows", ""]
    for space, classes in SPACES.items():
        others = [counterparts(space, target) for target in SPACES if target != space]
        used = {name for found in others for both in found.values() for name in (*both.makes_1, *both.makes_0)}
        alone = [name for name in classes if name not in used]
        lines.append(f"- **{space}**: {', '.join(alone) or 'none'}")
    return "\n".join(lines) + "\n"


def _counts() -> str:
    """How many classes of each space are known to each other one: in both ways, and 0 alone."""
    lines = [
        "## How many classes are known",
        "",
        "Rows: the source. Columns: the target; *+n* more whose 0 alone is known.",
        "",
    ]
    lines += [_row(["", *SPACES]), _row(["---"] * (len(SPACES) + 1))]
    for source in SPACES:
        cells = []
        for target in SPACES:
            found = counterparts(source, target).values()
            full = sum(1 for both in found if both.makes_1)
            cells.append(f"{full}" + (f" +{len(found) - full}" if len(found) > full else ""))
        lines.append(_row([source, *cells]))
    return "\n".join(lines) + "\n"


def _names(finding: str) -> list[str]:
    """What the sets call a finding."""
    found = [name for names in FINDINGS.values() for name, own in names.items() if own == finding]
    return list(dict.fromkeys(found))


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
