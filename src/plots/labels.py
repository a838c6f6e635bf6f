"""The names of runs in figures and files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinymem.records.identity import FINGERPRINTS, identity_of, record_digest
from tinymem.records.strength import strength_in
from tinymem.records.table import flat_row, method_of, spelled_attack


def strength_of(record: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return the name and value of the setting by which a method's runs differ, or None."""
    settings = record.get("method", {})
    return strength_in(settings)


def label_of(record: Mapping[str, Any]) -> str:
    """Return a run's label in a figure, such as "slimming, ratio 0.1, quantize bits 8"."""
    strength = strength_of(record)
    parts = [method_of(flat_row(record)).replace("_", " "), *([f"{strength[0]} {strength[1]:g}"] if strength else [])]
    return ", ".join([*parts, *([spelled_attack(record)] if record.get("attack") else [])])


def file_name(record: Mapping[str, Any]) -> str:
    """Return METHOD_STRENGTH_DIGEST, with any attack before the digest, in letters, digits and -_. only."""
    strength = strength_of(record)
    parts = [method_of(flat_row(record)), *([f"{strength[1]:g}"] if strength else [])]
    parts += [spelled_attack(record)] if record.get("attack") else []
    name = "_".join([*parts, record_digest(record)[:8]])
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)


def settings_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Return a run's settings for display: one line per section, without fingerprints."""
    sections = {name: part for name, part in identity_of(record).items() if isinstance(part, dict)}
    return {
        name: ", ".join(f"{key} {value}" for key, value in section.items() if value is not None and value is not False)
        for name, section in sections.items()
        if name != FINGERPRINTS
    }


def families() -> dict[str, str]:
    """Return method -> its family, in the registry's order."""
    from tinymem.localize.registry import METHODS  # late: training scripts import this module and must start fast

    return {name: method.family for name, method in METHODS.items()}
