"""The names of methods and columns on a page."""

from __future__ import annotations

from tinymem.records.identity import NEVER_PLANTED, UNEDITED

REFERENCES = {UNEDITED: "unedited", NEVER_PLANTED: "never-planted twin"}


def display_name(method: str) -> str:
    """Return a method's name for display."""
    return REFERENCES.get(method, method.replace("_", " "))


def plain(column: str) -> str:
    """Return a column's name for display, without its unit."""
    return column.removeprefix("percent_").removeprefix("cost.").removesuffix("_percent").replace("_", " ")
