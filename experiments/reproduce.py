"""Reproduce the study's numbers: train at full size, measure at the published epochs, unlearn with every method.

    python experiments/reproduce.py --list                               the cases, and how much of each is done
    python experiments/reproduce.py --case backdoor_increment_2layers    one of them
    python experiments/reproduce.py --limit 1                            the next command only; all of them in time
    python experiments/reproduce.py --report                             run nothing, rewrite the report
    python experiments/reproduce.py --everything                         all published number models: on a GPU

Runs the ordinary scripts. When started again, also after an interrupt, it does only what is missing. However it ends,
it copies the finished records to results/reproduction/records and writes results/REPRODUCTION.md from them, with
figures: published and ours side by side.
"""

from tinymem import cli

# isort: split
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from reproduction import (
    LAPTOP,
    SLIP_RATIOS,
    SLIP_SEQUENCES,
    SMALL_CASES,
    SMALL_UNLEARNING,
    UNLEARNING,
    Case,
    everything,
    slip_identity,
    trained_epochs,
)
from reproduction_report import write_report

from tinymem import files
from tinymem.cli.sweeping import add_sweep_options, sweep
from tinymem.errors import UserError
from tinymem.localize.method import Method
from tinymem.localize.registry import find_methods
from tinymem.localize.task import TaskSettings
from tinymem.records.identity import run_key
from tinymem.records.record import read_record
from tinymem.sweeps.grid import Grid
from tinymem.sweeps.hp_grid import hyper_parameters
from tinymem.sweeps.job import Job, missing
from tinymem.sweeps.jobs import Checkpoint, Common, checkpoints, localize_jobs, train_job
from tinymem.sweeps.sites import find_site, open_pool

ROOT = Path(__file__).resolve().parents[1]
OUTPUT_DIR = "runs/reproduction"


def parse():
    parser = cli.Parser(__doc__)
    parser.add_argument("--case", nargs="+", metavar="NAME", help="default: all; --list shows them")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="only these seeds, where cases have them")
    parser.add_argument("--list", action="store_true", help="show the cases and exit")
    parser.add_argument(
        "--report", action="store_true", help="run nothing, write the report from the records there are"
    )
    parser.add_argument("--everything", action="store_true", help="all number models with published numbers: on a GPU")
    parser.add_argument("--methods", nargs="+", default=["all"], metavar="METHOD", help="unlearn with these (all)")
    parser.add_argument("--results_dir", help="where the report is written (default: results; small: OUTPUT_DIR)")
    add_sweep_options(parser, f"{OUTPUT_DIR}; small: {OUTPUT_DIR}_small")
    return parser.parse_args()


def chosen(arguments) -> list[Case]:
    """Return the cases and seeds that the flags name. Raise UserError for an unknown one."""
    if arguments.small and arguments.everything:
        raise UserError("--small: not together with --everything")
    cases = SMALL_CASES if arguments.small else everything() if arguments.everything else LAPTOP
    known = {case.name: case for case in cases}
    for name in arguments.case or ():
        if name not in known:
            more = "" if arguments.everything else "; --everything has more"
            raise UserError(f"--case {name}: must be one of {', '.join(known)}{more}")
    named = [known[name] for name in dict.fromkeys(arguments.case or known)]
    if not arguments.seeds:
        return named
    there = {seed for case in named for seed in case.seeds}
    for seed in arguments.seeds:
        if seed not in there:
            raise UserError(f"--seeds {seed}: must be one of {', '.join(map(str, sorted(there)))}")
    return [case for case in (case.only(arguments.seeds) for case in named) if case.seeds]


def chosen_methods(names: list[str], grids: Mapping[str, Grid]) -> list[Method]:
    """Return the named methods of the grids, or all for `all`. Raise UserError for an unknown one."""
    methods = find_methods(list(grids) if names == ["all"] else names)
    for method in methods:
        if method.name not in grids:
            raise UserError(f"--methods {method.name}: with --small one of {', '.join(grids)}")
    return methods


def jobs_of(case: Case, grid: list, models: Path, common: Common) -> list[Job]:
    """Return the jobs of a case, seed by seed: one finished seed is worth more than many unfinished ones."""
    return [job for seed in case.seeds for job in seed_jobs(case, seed, grid, models, common)]


def seed_jobs(case: Case, seed: int, grid: list, models: Path, common: Common) -> list[Job]:
    """Return the jobs of one model: trainings from one published epoch to the next, and the jobs on checkpoints."""
    trainings, others = [], []
    for epoch in case.epochs_of(seed):
        settings = case.settings(seed, epoch)
        job = train_job(settings, models, common)
        after = tuple(before.name for before in trainings[-1:])
        trainings.append(replace(job, name=f"{job.name} to epoch {epoch}", group=f"{case.name}: train", after=after))
        (checkpoint,) = checkpoints(settings, models, [trained_epochs(epoch)])
        checkpoint = replace(checkpoint, trained_by=trainings[-1].name)
        if case.artifact == "backdoor":
            others.append(slip_job(case, checkpoint, "triggers", common))
        if epoch == case.unlearned:
            if "zero_out" in {method.name for method, _ in grid}:
                others.append(slip_job(case, checkpoint, "zero_out", common))
            found = localize_jobs(checkpoint, grid, TaskSettings(), common)
            others += [replace(one, group=f"{case.name}: {one.group}") for one in found]
    return trainings + others


def slip_job(case: Case, checkpoint: Checkpoint, slip: str, common: Common) -> Job:
    """Return the job that repeats a slip of the study's code on a checkpoint."""
    folder = str(checkpoint.path.parent)
    words = ("experiments/as_published.py", "--model_path", str(checkpoint.path), "--slip", slip)
    own, ratios = {}, {}
    if slip == "zero_out":
        own, ratios = {"sequences": SLIP_SEQUENCES}, {"varies": "ratio", "values": SLIP_RATIOS}
    return Job(
        name=f"as published, {slip} {checkpoint.name}",
        group=f"{case.name}: as published",
        words=(*words, "--output_dir", folder, *common.words),
        folder=folder,
        identity=slip_identity(checkpoint.settings, checkpoint.epoch, slip, **own),
        after=(checkpoint.trained_by,),
        **ratios,
    )


def listed(case: Case, jobs: list[Job]) -> dict[str, Any]:
    """Return a line of --list."""
    return {
        "case": case.name,
        "seeds": " ".join(map(str, case.seeds)),
        "epochs": " ".join(map(str, case.epochs)),
        "unlearned": "-" if case.unlearned is None else f"epoch {case.unlearned}",
        "commands": len(jobs),
        "done": sum(not missing(job) for job in jobs),
    }


def collect_records(cases: list[Case], models: Path, target: Path) -> None:
    """Copy the finished records of the cases next to the report, so that they outlive the models.

    If the records there are of another model, trained elsewhere or earlier, they stay until the new model has the same
    records. Otherwise the report would compare runs with the wrong unedited model.
    """
    there = _by_run(target)
    for case in cases:
        for seed in case.seeds:
            own = model_of(case.settings(seed, 0).sections())
            before = {key: found for key, found in there.items() if model_of(found[1]) == own}
            new = _by_run(*(models / case.settings(seed, 0).name).rglob("records"))
            replaced = [key for key in before if key in new and _weights(before[key][1]) != _weights(new[key][1])]
            if replaced and not before.keys() <= new.keys():
                left = len(before.keys() - new.keys())
                print(f"{case.name}, seed {seed}: the records of another model stay in {target}; "
                      f"this one still lacks {left} of {len(before)}", file=sys.stderr)  # fmt: skip
                continue
            for key in replaced:
                before[key][0].unlink()
            for key, (path, content) in new.items():
                if key not in before or before[key][1] != content:
                    files.write_json(target / path.name, content)


def model_of(record: Mapping[str, Any]) -> tuple:
    """Return a key of the models of a case and seed, however long they are trained."""
    return record.get("data"), record.get("model")


def _by_run(*folders: Path) -> dict[tuple, tuple[Path, dict[str, Any]]]:
    """Return the records in these folders by run, whatever the weights; of several, the newest."""
    found = {}
    for path in sorted((path for folder in folders for path in folder.glob("*.json")), key=lambda p: p.stat().st_mtime):
        record = read_record(path)
        found[run_key(record)] = path, record
    return found


def _weights(record: dict[str, Any]) -> Any:
    """Return a key of a record's model: its weights or, for a training run, its measurements."""
    return record.get("fingerprints", record["results"])


def main() -> None:
    arguments = parse()
    if arguments.report and arguments.dry_run:
        raise UserError("--report: runs nothing, so not together with --dry_run")
    cases, site = chosen(arguments), find_site(arguments.site)
    folder = Path(arguments.output_dir or OUTPUT_DIR + ("_small" if arguments.small else "")).absolute()
    results = Path(arguments.results_dir or (folder if arguments.small else ROOT / "results")).absolute()
    grids = SMALL_UNLEARNING if arguments.small else UNLEARNING
    grid = hyper_parameters(grids, chosen_methods(arguments.methods, grids))
    models, common = folder / "models", Common.of(arguments)
    jobs = {case.name: jobs_of(case, grid, models, common) for case in cases}
    if arguments.list:
        print(cli.table(listed(case, jobs[case.name]) for case in cases))
        return
    try:
        if not arguments.report:
            every = [job for own in jobs.values() for job in own]
            sweep(arguments, every, folder, ROOT, partial(open_pool, site, max_workers=arguments.max_workers))
    finally:
        if not arguments.dry_run:
            collect_records(
                cases, models, files.writable_folder(results / "reproduction" / "records", " with --results_dir")
            )
            write_report(SMALL_CASES if arguments.small else everything(), grids, results)


if __name__ == "__main__":
    cli.run(main)
