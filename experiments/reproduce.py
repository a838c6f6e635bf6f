"""Reproduce the study's numbers: train at full size, measure at the published epochs, unlearn with every method.

    python experiments/reproduce.py --list                               the cases, and how much of each is done
    python experiments/reproduce.py --case backdoor_increment_2layers    one of them
    python experiments/reproduce.py --limit 1                            the next command only; all of them in time
    python experiments/reproduce.py --report                             run nothing, write the report anew
    python experiments/reproduce.py --everything                         every published model, seed and epoch: on a GPU

Runs the ordinary scripts; interrupted, or started again, it does only what is missing. At its end, however it ends, the
finished records are copied to results/reproduction/records and results/REPRODUCTION.md is written from them, with a
figure: published and ours side by side.
"""

from tinymem import cli

# isort: split
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from reproduction import (
    LAPTOP,
    SMALL_CASES,
    SMALL_UNLEARNING,
    UNLEARNING,
    Case,
    everything,
    recount_identity,
    trained_epochs,
)
from reproduction_report import write_report
from sites import find_site, open_pool

from tinymem import files
from tinymem.errors import UserError
from tinymem.localize.hp_grid import find_methods, hyper_parameters
from tinymem.localize.task import TaskSettings
from tinymem.records.record import find_record
from tinymem.sweeps.console import add_sweep_options, sweep
from tinymem.sweeps.job import Job, missing
from tinymem.sweeps.jobs import Checkpoint, Common, checkpoints, localize_jobs, train_job

ROOT = Path(__file__).resolve().parents[1]
OUTPUT_DIR = "runs/reproduction"


def parse():
    parser = cli.Parser(__doc__)
    parser.add_argument("--case", nargs="+", metavar="NAME", help="default: all; --list shows them")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="only these of the cases that have them")
    parser.add_argument("--list", action="store_true", help="show the cases and end")
    parser.add_argument(
        "--report", action="store_true", help="run nothing, write the report from the records there are"
    )
    parser.add_argument("--everything", action="store_true", help="not only what two cores can do in some nights")
    parser.add_argument("--methods", nargs="+", default=["all"], metavar="METHOD", help="unlearn with these (all)")
    parser.add_argument("--results_dir", help="where the report is written (default: results; small: OUTPUT_DIR)")
    add_sweep_options(parser, f"{OUTPUT_DIR}; small: {OUTPUT_DIR}_small")
    return parser.parse_args()


def chosen(arguments) -> list[Case]:
    """The cases that the flags name, with the seeds that they name. UserError for an unknown one."""
    cases = SMALL_CASES if arguments.small else everything() if arguments.everything else LAPTOP
    known = {case.name: case for case in cases}
    for name in arguments.case or ():
        if name not in known:
            raise UserError(f"--case {name}: must be one of {', '.join(known)}; --everything has more")
    named = [known[name] for name in dict.fromkeys(arguments.case or known)]
    if not arguments.seeds:
        return named
    there = {seed for case in named for seed in case.seeds}
    for seed in arguments.seeds:
        if seed not in there:
            raise UserError(f"--seeds {seed}: must be one of {', '.join(map(str, sorted(there)))}")
    return [case for case in (case.only(arguments.seeds) for case in named) if case.seeds]


def jobs_of(case: Case, grid: list, models: Path, common: Common) -> list[Job]:
    """Everything of a case, seed after seed: a finished seed is worth more than all of them begun."""
    return [job for seed in case.seeds for job in seed_jobs(case, seed, grid, models, common)]


def seed_jobs(case: Case, seed: int, grid: list, models: Path, common: Common) -> list[Job]:
    """Of one model: the training from one published epoch to the next, and what is done with the checkpoints."""
    trainings, others = [], []
    for epoch in case.epochs:
        settings = case.settings(seed, epoch)
        job = train_job(settings, models, common)
        after = tuple(before.name for before in trainings[-1:])
        trainings.append(replace(job, name=f"{job.name} to epoch {epoch}", group=f"{case.name}: train", after=after))
        (checkpoint,) = checkpoints(settings, models, [trained_epochs(epoch)])
        checkpoint = replace(checkpoint, trained_by=trainings[-1].name)
        if case.artifact == "backdoor":
            others.append(recount_job(case, checkpoint, common))
        if epoch == case.unlearned:
            found = localize_jobs(checkpoint, grid, TaskSettings(), common)
            others += [replace(job, group=f"{case.name}: {job.group}") for job in found]
    return trainings + others


def recount_job(case: Case, checkpoint: Checkpoint, common: Common) -> Job:
    """The test triggers of a checkpoint, counted as the study's code does it."""
    return Job(
        name=f"recount {checkpoint.name}",
        group=f"{case.name}: recount",
        words=("experiments/as_published.py", "--model_path", str(checkpoint.path), *common.words),
        folder=str(checkpoint.path.parent),
        settings=recount_identity(checkpoint.settings, checkpoint.epoch),
        after=(checkpoint.trained_by,),
    )


def listed(case: Case, jobs: list[Job]) -> dict[str, Any]:
    """A line of --list."""
    return {
        "case": case.name,
        "seeds": " ".join(map(str, case.seeds)),
        "epochs": " ".join(map(str, case.epochs)),
        "unlearned": "-" if case.unlearned is None else f"epoch {case.unlearned}",
        "commands": len(jobs),
        "done": sum(not missing(job) for job in jobs),
    }


def collect_records(cases: list[Case], models: Path, target: Path) -> None:
    """Copies the finished records of the cases beside the report, where they outlive the models.

    Those of a model take the place of another's that was trained with the same settings, elsewhere or before.
    """
    there = {_settings_of(files.read_json(path)): path for path in target.glob("*.json")}
    for case in cases:
        for seed in case.seeds:
            run = models / case.settings(seed, 0).name
            for path in run.rglob("records/*.json"):
                content = files.read_json(path)
                if find_record(target.parent, content["settings"]) != content:
                    files.write_file(target / path.name, partial(shutil.copy, path))
                before = there.get(_settings_of(content))
                if before and before.name != path.name:
                    before.unlink(missing_ok=True)


def _settings_of(record: dict[str, Any]) -> str:
    """The settings without what follows from the model's weights."""
    return files.digest({name: value for name, value in record["settings"].items() if name not in ("weights", "task")})


def main() -> None:
    arguments = parse()
    cases, site = chosen(arguments), find_site(arguments.site)
    folder = Path(arguments.output_dir or OUTPUT_DIR + ("_small" if arguments.small else "")).absolute()
    results = Path(arguments.results_dir or (folder if arguments.small else ROOT / "results")).absolute()
    grids = SMALL_UNLEARNING if arguments.small else UNLEARNING
    methods = [name for name in find_methods(arguments.methods) if name in grids]
    grid = hyper_parameters(grids, methods)
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
            collect_records(cases, models, files.writable_folder(results / "reproduction" / "records"))
            write_report(SMALL_CASES if arguments.small else everything(), results)


if __name__ == "__main__":
    cli.run(main)
