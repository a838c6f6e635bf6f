"""Parts that the sweeps over the study's TinyMem models share: flags and the choice of models."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tinymem import cli, scripts
from tinymem.cli.sweeping import add_sweep_options, sweep
from tinymem.errors import UserError
from tinymem.sweeps.job import Job
from tinymem.sweeps.jobs import Common
from tinymem.sweeps.sites import find_site, open_pool
from tinymem.sweeps.study import FULL, SMALL, Study
from tinymem.training.settings import RunSettings

OUTPUT_DIR = "runs/study"  # shared by all, so that each sweep finds the models that another has trained


def main(
    description: str,
    make_jobs: Callable[[argparse.Namespace, Path, Common], list[Job]],
    add_flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> None:
    """Run a sweep script. description: its docstring; make_jobs(arguments, folder of the models, common flags)."""
    parser = cli.Parser(description)
    add_flags(parser)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME=VALUE",
                        help="only models with these settings, e.g. n_layers=2 data_name=increment")  # fmt: skip
    add_sweep_options(parser, f"{OUTPUT_DIR}; small: {OUTPUT_DIR}_small")
    arguments = parser.parse_args()
    site = find_site(arguments.site)
    folder = Path(arguments.output_dir or OUTPUT_DIR + ("_small" if arguments.small else "")).absolute()
    jobs = make_jobs(arguments, folder / "models", Common.of(arguments))
    sweep(arguments, jobs, folder, scripts.home(), partial(open_pool, site, max_workers=arguments.max_workers))


def chosen(
    arguments: argparse.Namespace, models: Callable[[Study], list[RunSettings]]
) -> list[tuple[RunSettings, tuple[int, ...]]]:
    """Return the models of the small or full study that --only selects, each with the epochs to study further."""
    found = [(settings, study.epochs) for study in (SMALL if arguments.small else FULL) for settings in models(study)]
    for text in arguments.only:
        name, _, value = text.partition("=")
        rows = [settings.flat() for settings, _ in found]
        known = {setting for row in rows for setting in row}
        if name not in known:
            raise UserError(
                f"--only {text}: must be NAME=VALUE with a setting of the models: {', '.join(sorted(known))}"
            )
        values = list(dict.fromkeys(str(row[name]) for row in rows if name in row))
        if value not in values:
            raise UserError(f"--only {text}: no such model; among those left, {name} is {', '.join(values)}")
        found = [pair for pair, row in zip(found, rows) if str(row.get(name)) == value]
    return found
