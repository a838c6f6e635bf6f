"""Flags that all localize scripts share: the methods and their hyper-parameters."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from typing import Any

from tinymem import cli
from tinymem.attacks.registry import ATTACKS, BUDGETS, FULL, SMALL, budget, find_attacks
from tinymem.errors import UserError, renamed
from tinymem.localize.method import Method, recorded
from tinymem.localize.registry import GROUPS, METHODS, find_localizer, find_methods
from tinymem.metrics.metric import Metric
from tinymem.metrics.registry import GROUPS as METRIC_GROUPS
from tinymem.metrics.registry import METRICS, PATTERNS, check_spelling, chosen, expanded, plugin_metrics
from tinymem.options import field_types
from tinymem.plugins import is_plugin

FLAG = "--localization_method"
USUAL = "forward"  # default metrics of an unlearning run: those that forward passes on whole rows give
ATTACKED = "attacked"  # default group of metrics of attacked models


def add_method_options(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Add --localization_method, and one flag per hyper-parameter: --lr for every chosen method that has it,
    --METHOD.lr for one of them.

    Methods in users' files on the command line get flags too. without: hyper-parameters that the script sets itself
    (see `chosen_methods`).
    """
    methods = [*METHODS.values(), *_plugins(sys.argv[1:])]
    aliases = ", ".join(method.title for method in METHODS.values())
    parser.add_argument(
        FLAG, required=True, nargs="+", metavar="METHOD",
        help=f"one or more of {aliases}; a group ({', '.join(GROUPS)}); all; or your own file, such as my_method.py",
    )  # fmt: skip
    parser.add_argument("--no_save_model", action="store_true", help="do not write edited models")
    parser.add_argument("--keep_adapter", action="store_true",
                        help="also write the low-rank change of --lora_rank, as a folder that peft opens")  # fmt: skip
    add_measuring_options(parser)
    parser.set_defaults(method_options=methods)
    known: set[str] = set()
    hidden = parser.add_argument_group()
    for method in methods:
        types, shown = field_types(method.hyper_parameters), []
        for field in fields(method.hyper_parameters):
            if field.name in without:
                continue
            shown.append(cli.flag_help(field, types[field.name], field.default))
            if field.name not in known:
                cli.add_flag(hidden, field, types[field.name], None, hide=True)
                known.add(field.name)
            cli.add_flag(hidden, field, types[field.name], None, hide=True, prefix=f"{method.name}.")
        alias = f", {method.alias} in the study" if method.alias != method.name else ""
        parser.add_argument_group(f"--localization_method {method.name}{alias}", "\n".join(shown))


def add_measuring_options(parser: argparse.ArgumentParser) -> None:
    """Add --metrics, --attack, --attack_budget, --attack_metrics, the flags of each attack, --columns and --page."""
    group = parser.add_argument_group("Measuring")
    group.add_argument("--metrics", nargs="+", metavar="NAME", help=f"groups ({', '.join(METRIC_GROUPS)}), some of "
                       f"{', '.join([*METRICS, *PATTERNS])}; or a file of your own (default: forward)")  # fmt: skip
    group.add_argument("--attack", nargs="+", default=[], metavar="NAME", help=f"attack every edited model, and the "
                       f"unedited one, and measure again: some of {', '.join(ATTACKS)}; all; or your file")  # fmt: skip
    group.add_argument("--attack_budget", choices=BUDGETS, help=f"{SMALL}: one strength and fewer steps of every "
                       f"attack, for large models (default: {FULL}); single settings are flags below")  # fmt: skip
    group.add_argument("--attack_metrics", nargs="+", metavar="NAME", help="what attacked models are measured by "
                       "(default: --metrics if given, else attacked)")  # fmt: skip
    group.add_argument("--columns", nargs="+", default=[], metavar="NAME",
                       help="columns of the table: all, or these (default: those that fit the terminal)")  # fmt: skip
    group.add_argument("--page", action="store_true",
                       help="one page per run (HTML and PNG): what the model said before and after, and its "
                       "twin")  # fmt: skip
    attacks = [*ATTACKS.values(), *_plugins(sys.argv[1:], "--attack", find_attacks)]
    parser.set_defaults(attack_options=attacks)
    for method in attacks:
        types = field_types(method.hyper_parameters)
        own = parser.add_argument_group(f"--attack {method.name}")
        for field in fields(method.hyper_parameters):
            cli.add_flag(own, field, types[field.name], field.default, prefix=f"{method.name}.")


def chosen_attacks(arguments: argparse.Namespace) -> list[tuple[Method, Any]]:
    """Return the requested attacks with their settings. Raise UserError for a flag of another attack."""
    for name in ("attack_budget", "attack_metrics"):
        if getattr(arguments, name) and not arguments.attack:
            raise UserError(f"--{name}: only with --attack")
    attacks = find_attacks(arguments.attack) if arguments.attack else []
    names = {method.name for method in attacks}
    for method in arguments.attack_options:
        for field in fields(method.hyper_parameters):
            if hasattr(arguments, f"{method.name}.{field.name}") and method.name not in names:
                raise UserError(f"--{method.name}.{field.name}: only with --attack {method.name}")
    return [(method, _attack_settings(method, arguments)) for method in attacks]


def _attack_settings(method: Method, arguments: argparse.Namespace) -> Any:
    try:
        given = {**budget(method, arguments.attack_budget or FULL), **_own(method, arguments)}
        return _hyper_parameters(method, argparse.Namespace(**given), {})
    except UserError as error:  # it names settings; an attack's flags are prefixed with its name
        raise UserError(re.sub(r"(?<!\S)--(?=\w)", f"--{method.name}.", str(error))) from None


def chosen_metrics(arguments: argparse.Namespace) -> tuple[str | Metric, ...]:
    """Return the requested metrics: names, or metrics from users' files. Raise UserError for an unknown one."""
    return _metrics(arguments.metrics or (USUAL,))


def named_metrics(arguments: argparse.Namespace) -> list[Metric]:
    """Return the metrics that are requested by their own name or file, not as part of a group: tables show them."""
    return chosen(_metrics([name for name in arguments.metrics or () if name not in METRIC_GROUPS]))


def chosen_attack_metrics(arguments: argparse.Namespace) -> tuple[str | Metric, ...]:
    """Return the requested metrics of attacked models. Raise UserError if none can be measured on attacked models."""
    if not (asked := arguments.attack_metrics):
        return _metrics(arguments.metrics or (ATTACKED,))
    with renamed("--metrics", "--attack_metrics"):
        found = _metrics(asked)
    if not any(metric.measured_under_attack for metric in chosen(found)):
        raise UserError(
            f"--attack_metrics {' '.join(asked)}: nothing of it is measured on attacked models; use {ATTACKED}, or "
            "leave it out"
        )
    return found


def _metrics(names: Sequence[str]) -> tuple[str | Metric, ...]:
    found: list[str | Metric] = []
    for name in names:
        check_spelling(name)
        found += plugin_metrics(name) if is_plugin(name) else [name]
    found = list(dict.fromkeys(expanded(found)))
    chosen(found)
    return tuple(found)


def _own(method: Method, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the values of one method's --NAME.FLAG flags, by flag."""
    prefix = f"{method.name}."
    return {name.removeprefix(prefix): v for name, v in vars(arguments).items() if name.startswith(prefix)}


def _plugins(words: Sequence[str], wanted: str = FLAG, find: Callable = find_methods) -> list[Method]:
    """Return the methods in files that an unparsed command line names, since the parser needs their flags."""
    named, places = False, []
    for word in words:
        if word.startswith("--"):
            flag, _, value = word.partition("=")
            named, word = flag == wanted, value
        if named and is_plugin(word):
            places.append(word)
    return find(places, wanted)


def chosen_methods(arguments: argparse.Namespace, **decided: Any) -> list[tuple[Method, Any]]:
    """Return the requested methods, each with its hyper-parameters from the command line.

    decided: hyper-parameters that the script sets, for the methods that have them.
    Raise UserError for an unknown method, a flag that no chosen method has, or a value that is not allowed.
    """
    methods = find_methods(arguments.localization_method, FLAG)
    _check_flags(arguments, methods, decided)
    found = [(method, _hyper_parameters(method, arguments, decided)) for method in methods]
    for _, hp in found:
        recorded(hp)  # checks that its files exist
        if getattr(hp, "update_mask", None):
            find_localizer(*hp.update_mask)
    if arguments.keep_adapter and not any(getattr(hp, "lora_rank", 0) for _, hp in found):
        raise UserError("--keep_adapter: only with --lora_rank, of an objective such as npo")
    return found


def _check_flags(arguments: argparse.Namespace, methods: Sequence[Method], decided: Collection[str]) -> None:
    """Raise UserError for a hyper-parameter on the command line that no chosen method has."""
    chosen = ", ".join(method.name for method in methods)
    owners: dict[str, list[Method]] = {}
    for method in arguments.method_options:
        for field in fields(method.hyper_parameters):
            if field.name not in decided:
                owners.setdefault(field.name, []).append(method)
                owners[f"{method.name}.{field.name}"] = [method]
    names = {method.name for method in methods}
    for flag, having in owners.items():
        if hasattr(arguments, flag) and not any(method.name in names for method in having):
            have = ", ".join(method.name for method in having)
            raise UserError(f"--{flag}: {chosen} has no such hyper-parameter; {have} has")


def _hyper_parameters(method: Method, arguments: argparse.Namespace, decided: dict[str, Any]) -> Any:
    names = [field.name for field in fields(method.hyper_parameters)]
    values = {name: value for name, value in vars(arguments).items() if name in names and name not in decided}
    values |= _own(method, arguments)
    own = argparse.Namespace(**values)
    return cli.collect(
        method.hyper_parameters, own, **{name: value for name, value in decided.items() if name in names}
    )
