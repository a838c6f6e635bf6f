"""The flags that all localize scripts share: which methods, and each method's own hyper-parameters."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import fields
from typing import Any

from tinymem import cli
from tinymem.errors import UserError
from tinymem.localize.registry import METHODS, Method, find_methods
from tinymem.options import field_types


def add_method_options(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """--localization_method, and one flag for every hyper-parameter that some method has.

    without: hyper-parameters that the script decides itself, see `chosen_methods`.
    """
    aliases = ", ".join(f"{method.name} ({method.alias})" for method in METHODS.values())
    parser.add_argument(
        "--localization_method", required=True, nargs="+", metavar="METHOD", help=f"one or more of {aliases}; or all"
    )
    parser.add_argument("--no_save_model", action="store_true", help="do not write edited models")
    group = parser.add_argument_group("Hyper-parameters (a flag that the chosen methods do not have is an error)")
    for name, owners in _owners(without).items():
        defaults = {}
        for method, field in owners:
            shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            defaults.setdefault(str(shown), []).append(method.name)
        note = "default: " + "; ".join(f"{shown} for {', '.join(names)}" for shown, names in defaults.items())
        method, field = owners[0]
        texts = "; or ".join(dict.fromkeys(field.metadata["help"] for _, field in owners))
        cli.add_flag(group, field, field_types(method.hyper_parameters)[name], None, note, texts)


def chosen_methods(arguments: argparse.Namespace, **decided: Any) -> list[tuple[Method, Any]]:
    """The methods asked for, each with its hyper-parameters from the command line.

    decided: hyper-parameters that do not come from there, for the methods that have them.
    Raises UserError for an unknown method, a flag that no chosen method has, and a value that is not allowed.
    """
    names = find_methods(arguments.localization_method, "--localization_method")
    methods = [METHODS[name] for name in names]
    for flag, owners in _owners(decided).items():
        if hasattr(arguments, flag) and not any(method in methods for method, _ in owners):
            have = ", ".join(method.name for method, _ in owners)
            raise UserError(f"--{flag}: {', '.join(names)} has no such hyper-parameter; {have} has")
    own = argparse.Namespace(**{name: value for name, value in vars(arguments).items() if name not in decided})
    return [(method, _hyper_parameters(method, own, decided)) for method in methods]


def _hyper_parameters(method: Method, arguments: argparse.Namespace, decided: dict[str, Any]) -> Any:
    names = {field.name for field in fields(method.hyper_parameters)}
    return cli.collect(
        method.hyper_parameters, arguments, **{name: value for name, value in decided.items() if name in names}
    )


def _owners(without: Collection[str] = ()) -> dict[str, list]:
    """Flag -> the methods that have it, with their dataclass field."""
    owners: dict[str, list] = {}
    for method in METHODS.values():
        for field in (field for field in fields(method.hyper_parameters) if field.name not in without):
            owners.setdefault(field.name, []).append((method, field))
    return owners
