"""Ids as text, and what spreadsheets and other programs do to them.

A program that takes an id for a number or a date rewrites it when it saves the table. Some of that can be undone by
nobody (a rounded id), and all of it makes rows that fit nothing. Nothing is repaired here: the fault is named, so that
the original file is taken.
"""

import re
from collections.abc import Callable, Collection

import pandas as pd

from data.errors import InputError
from data.predictions import line_of

SPREADSHEET_ID = re.compile(r"\d+([.,]\d+)?[eE]\+\d+")
"""A long id after a spreadsheet stored it as a number (1.23E+15): its last digits are gone."""
MONTH = "(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
RUINED: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("a number rounded by a spreadsheet", SPREADSHEET_ID),
    ("a whole number written as a decimal", re.compile(r"\d+[.,]0+")),
    ("a date made by a spreadsheet", re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}( \d{1,2}:\d\d(:\d\d)?)?")),
    ("a date made by a spreadsheet", re.compile(rf"\d{{1,4}}[-. ]{MONTH}([-. ]\d{{1,4}})?|{MONTH}[-. ]\d{{1,4}}")),
    ("a spreadsheet's sign for an error", re.compile(r"#+|#[A-Z0/]+[!?]?")),
)
ORIGINAL = "take the original file and do not save it from a spreadsheet"

UNDONE: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("after a program took it for a number", lambda text: re.sub(r"[.,]0+$", "", text).lstrip("0")),
    ("with blanks or quotes around it", lambda text: text.strip(" \t'\"\xa0")),
    ("in other letters", str.lower),
    ("with another ending", lambda text: re.sub(r"\.(png|jpe?g|dcm)$", "", text, flags=re.IGNORECASE)),
)
"""A name for a change, and what to do to an id before and after it to get the same text."""


def how_ruined(text: str) -> str | None:
    """What an id that a spreadsheet has ruined looks like; None where nothing is seen."""
    return next((what for what, pattern in RUINED if pattern.fullmatch(text)), None)


def how_changed(lost: str, found: Collection[str]) -> str | None:
    """The id that is `lost` in another spelling, and how they differ; None where there is no such one."""
    for what, undo in UNDONE:
        spellings = {undo(text): text for text in found}
        if undo(lost) in spellings:
            return f"{spellings[undo(lost)]!r}, the same id {what}"
    return None


def check_ids(ids: pd.Series, where: str) -> None:
    """Refuse a column of ids, read as text, with an empty, repeated or rounded one.

    Args:
        ids: Its name is the column's.
        where: The file, for the message.

    Raises:
        InputError: Names the first such row and how many there are.
    """
    check_not_rounded(ids, where)
    for problem, wrong in (("is empty", ids == ""), ("occurs twice", ids.duplicated())):
        if wrong.any():
            found = f"{ids.name} {ids[wrong].iloc[0]!r} {problem} ({wrong.sum()} such rows)"
            raise InputError(f"{where}, row {line_of(wrong)}: {found}")


def check_not_rounded(ids: pd.Series, where: str) -> None:
    """Refuse ids that have lost digits in a spreadsheet; other columns of the file do not matter."""
    ruined = ids.map(lambda text: SPREADSHEET_ID.fullmatch(text) is not None).astype(bool)
    if ruined.any():
        raise InputError(
            f"{where}, row {line_of(ruined)}: id {ids[ruined].iloc[0]!r} looks like a number rounded by a spreadsheet "
            f"({ruined.sum()} such ids); {ORIGINAL}"
        )


def check_form(ids: pd.Series, form: re.Pattern[str], example: str, where: str) -> None:
    """Refuse ids that are not written like those of their data set.

    Args:
        form: What every id must match.
        example: A made-up id of that form, for the message.

    Raises:
        InputError: Names the first such row, what a spreadsheet seems to have done, and how many there are.
    """
    wrong = ~ids.map(lambda text: form.fullmatch(text) is not None).astype(bool)
    if wrong.any():
        found = ids[wrong].iloc[0]
        what = how_ruined(found)
        remedy = f"looks like {what}; {ORIGINAL}" if what else f"an id looks like {example}"
        raise InputError(
            f"{where}, row {line_of(wrong)}: {ids.name} {found!r} is no id of this data set ({wrong.sum()} such ids); "
            f"{remedy}"
        )
