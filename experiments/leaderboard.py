"""The leaderboard: mitigations on the same models, tuned alike, attacked, judged against never-planted twins.

    python experiments/leaderboard.py --small                                  a night on two cores; resumes
    python experiments/leaderboard.py --small --models noise --methods npo balanced_subnet --dry_run
    python experiments/leaderboard.py --small --models noise --method_file my_method.py     one more row: your method
    python experiments/leaderboard.py --small --models noise --name theirs --submission 0=FOLDER 1=FOLDER 2=FOLDER
    python experiments/leaderboard.py --report                                 only the pages, from committed records

Trains each model with planted sequences, and its never-planted twin, on three seeds. On the first seed, every
mitigation tries an equal number of settings. The setting that forgets most of the validation sequences, with a utility
within the limit, runs on all seeds and is attacked there. Writes results/leaderboard/: LEADERBOARD.md, ATTACKS.md,
index.html, leaderboard.csv, and for each model the records and values from which everything is computed.
docs/leaderboard.md describes the protocol.
"""

from tinymem import cli

# isort: split
import argparse
import filecmp
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from tinymem import scripts
from tinymem.attacks.registry import find_attacks
from tinymem.cli.sweeping import add_sweep_options, in_hours, leave, run_missing
from tinymem.errors import UserError
from tinymem.folders import check_writable
from tinymem.leaderboard import evidence, report
from tinymem.leaderboard.bench import Bench, bench_of
from tinymem.leaderboard.board import TWIN, choose, rows_left_out, unregistered_entrants
from tinymem.leaderboard.cases import SEEDS, Case, find_cases, read_case, with_evidence
from tinymem.leaderboard.entrants import OWN, SUBMISSION, TRIALS, Entrant, SubmittedTrial, entrants, submission
from tinymem.leaderboard.export import export
from tinymem.leaderboard.names import spelled_alike
from tinymem.leaderboard.protocol import check_submission, jobs_of, join_strengths, reference_jobs, trial_jobs
from tinymem.localize.registry import METHODS, find_methods
from tinymem.records.bundle import NAME
from tinymem.records.identity import NEVER_PLANTED, UNEDITED
from tinymem.sweeps.engine import JobState
from tinymem.sweeps.job import Job
from tinymem.sweeps.jobs import Common
from tinymem.sweeps.sites import find_site, open_pool
from tinymem.sweeps.timings import Timings

MOST_TRIALS = 1000  # drawing more takes forever
MOST_LINES = 10  # printed about missing work
REFERENCES = (TWIN, UNEDITED, NEVER_PLANTED)  # rows that are not mitigations
OUTPUT, RUNS = "results/leaderboard", "runs/leaderboard"
OF_RUNS = ("methods", "method_file", "submission", "from_scratch", "dry_run")  # useless if nothing runs
USELESS = {"report": ("models", "seeds", "attacks", "trials", "export", *OF_RUNS), "export": OF_RUNS}


def parse() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME", help="noise, backdoor, text (natural "
                        "passages), text_noise; smollm2, a language model with planted passages; or FILE.toml with a "
                        "table of settings for each model of your own (default: the first four)")  # fmt: skip
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME",
                        help="mitigations or groups of them (default: all)")  # fmt: skip
    parser.add_argument("--method_file", nargs="+", default=[], metavar="FILE.py", help="methods of your own")
    parser.add_argument("--submission", nargs="+", default=[], metavar="SEED=FOLDER",
                        help="weights edited elsewhere, a folder per seed; only with one of --models")  # fmt: skip
    parser.add_argument("--name", help="with --submission: its name in the table")
    parser.add_argument("--seconds", type=cli.seconds, help="with --submission: its cost, as stated by hand")
    parser.add_argument(
        "--needs", default="", help="with --method_file or --submission: the data that it needs, as stated by hand"
    )
    parser.add_argument("--attacks", nargs="+", default=["all"], metavar="NAME", help="what robustness is judged by: "
                        "some of the attacks (default: all)")  # fmt: skip
    parser.add_argument(
        "--trials", type=cli.positive, default=TRIALS, help=f"settings that each mitigation tries (default: {TRIALS})"
    )
    parser.add_argument("--seeds", nargs="+", type=cli.not_negative, default=list(SEEDS), metavar="S",
                        help="seeds; settings are chosen on the lowest (default: 0 1 2)")  # fmt: skip
    parser.add_argument("--export", metavar="FOLDER", help="what a submission may use: for each seed, the sequences "
                        "to forget and to retain; run nothing")  # fmt: skip
    parser.add_argument("--report", action="store_true", help="run nothing: write tables and pages from the records")
    parser.add_argument("--from_scratch", action="store_true", help="train and run everything; default: add to the "
                        f"results in --output_dir, or to a copy of those in {OUTPUT}")  # fmt: skip
    add_sweep_options(parser, OUTPUT)
    parser.add_argument("--run_dir", default=RUNS, help=f"models and records of single runs (default: {RUNS})")
    arguments = parser.parse_args()
    if len(set(arguments.seeds)) < len(arguments.seeds):
        raise UserError("--seeds: one is given twice; each counts as a model of its own")
    arguments.seeds.sort()  # evidence is in this order
    for flag, useless in USELESS.items():
        given = next((name for name in useless if getattr(arguments, name) != parser.get_default(name)), None)
        if getattr(arguments, flag) and given:
            raise UserError(f"--{flag}: runs nothing, and has no use for --{given}; leave one of them out")
    if arguments.trials > MOST_TRIALS:
        raise UserError(f"--trials {arguments.trials}: must be <= {MOST_TRIALS}")
    if arguments.needs and not (arguments.method_file or arguments.submission):
        raise UserError("--needs: only with --method_file or --submission")
    if not arguments.needs.isprintable():
        raise UserError(f"--needs {arguments.needs!r}: must be one line of text")
    if bool(arguments.submission) != bool(arguments.name):
        raise UserError("--submission, --name: give both or none")
    if arguments.seconds is not None and not arguments.submission:
        raise UserError("--seconds: only with --submission")
    return arguments


def submitted(arguments: argparse.Namespace, cases: list[Case]) -> list[Entrant]:
    """Return the submission to the only case as an entrant. Raise UserError unless there is a folder for every seed."""
    if not arguments.submission:
        return []
    if len(cases) != 1:
        raise UserError("--submission: give the one model that it is an edit of, such as --models noise")
    folders: dict[int, str] = {}
    for text in arguments.submission:
        seed, _, place = text.partition("=")
        if not seed.isdecimal() or not place:
            raise UserError(f"--submission {text}: must be SEED=FOLDER, such as 0=my_folder")
        if int(seed) not in arguments.seeds:
            raise UserError(f"--submission {text}: {seed} is none of --seeds {' '.join(map(str, arguments.seeds))}")
        if not Path(place).is_dir():
            raise UserError(f"--submission {text}: no such folder")
        folders[int(seed)] = str(Path(place).resolve())
    if len(set(folders.values())) < len(arguments.submission):
        raise UserError("--submission: one seed or one folder is named twice; each seed has a model of its own to edit")
    for (one, first), (other, second) in combinations(folders.items(), 2):
        if same_weights(first, second):
            raise UserError(f"--submission: the folders of seeds {one} and {other} hold the same weights")
    lacking = [seed for seed in arguments.seeds if seed not in folders]
    if lacking:
        raise UserError(f"--submission: no folder for seed {lacking[0]}; each seed has a model of its own to edit")
    if not any(map(str.isalnum, arguments.name)) or not arguments.name.isprintable():
        raise UserError(f"--name {arguments.name!r}: must have letters or digits")
    return [submission(arguments.name, folders, arguments.seconds, arguments.needs)]


def check_names(arguments: argparse.Namespace, cases: list[Case]) -> None:
    """Raise UserError if a user's method or a submission has another entrant's name, since names identify rows."""
    names = {*REFERENCES, *METHODS, *(each.name for case in cases for each in entrants([], case))}
    known = set(map(spelled_alike, names))
    places = dict.fromkeys([*(name for name in arguments.methods if name.endswith(".py")), *arguments.method_file])
    given = [(f"--method_file {place}", find_methods([place], "--method_file")[0].name) for place in places]
    given += [(f"--name {arguments.name}", arguments.name)] if arguments.name else []
    for flag, name in given:
        if spelled_alike(name) in known:
            raise UserError(f"{flag}: another entrant has this name; give it one of its own")
        known.add(spelled_alike(name))


def same_weights(first: str, second: str) -> bool:
    """Return whether two folders hold the same weights, byte for byte."""
    names = [path.name for path in Path(first).glob("*.safetensors")]
    return bool(names) and len(filecmp.cmpfiles(first, second, names, shallow=False)[0]) == len(names)


def benches_of(case: Case, arguments: argparse.Namespace) -> list[Bench]:
    """Return the models of a case, one per seed. Raise UserError if --run_dir has runs with other settings."""
    folder = Path(arguments.run_dir).absolute() / case.name
    benches = [bench_of(case, seed, folder, arguments.attacks) for seed in arguments.seeds]
    for bench in benches:
        bench.measured()
    return benches


def run_case(case: Case, taking_part: list[Entrant], arguments: argparse.Namespace, pool: Any) -> list[str]:
    """Run what is missing in a case and write its evidence. Return a line on each command that is still missing."""
    common, output = Common.of(arguments), Path(arguments.output_dir) / case.name
    benches = benches_of(case, arguments)
    folder = benches[0].folder
    if arguments.from_scratch and (output / NAME).exists() and not any(bench.measured() for bench in benches):
        raise UserError(
            f"--from_scratch: {output} has results of other runs, which would be lost; give another --output_dir"
        )
    earlier = None if arguments.from_scratch else earlier_evidence(case, benches, output)
    if earlier is not None:
        check_groups(case, taking_part, earlier)
        attacks = [attack.name for attack in find_attacks(arguments.attacks, "--attacks")]
        for line in rows_left_out(earlier, arguments.seeds, attacks):
            print(f"{case.name}: {line}", file=sys.stderr)
    tried = earlier.by_key if earlier else {}
    references = [job for bench in benches for job in reference_jobs(bench, common)]
    trials = [job for entrant in taking_part if entrant.tuned for job in trial_jobs(entrant, benches[0], common, tried)]
    states = run_stage(
        f"{case.name}: training, and trials on seed {benches[0].seed}", [*references, *trials], arguments, folder, pool
    )
    if arguments.dry_run:
        print_finals(taking_part, benches, common)
        return []
    missing = what_is_left(states)
    not_begun = {each.job.group for each in states.values() if each.left and not each.message}  # as with --limit
    if not not_begun <= {each.name for each in taking_part}:  # the models themselves do not exist yet
        return missing
    given = {each.name: each.needs for each in taking_part if each.group in (OWN, SUBMISSION) and each.needs}
    evidence.write_needs(folder, {**evidence.read_needs(folder), **given})
    found = gathered(benches, arguments, earlier)
    if not found.unedited(benches[0].seed)["results"].get("percent_memorized_held_out"):
        raise UserError(f"{case.name}: the model of seed {benches[0].seed} has memorized none of its "
                        "held-out sequences, so that nothing can be mitigated; give it more --epochs or more "
                        "repeats")  # fmt: skip
    for trial in (trial for entrant in taking_part for trial in entrant.trials if isinstance(trial, SubmittedTrial)):
        for bench in benches:
            check_submission(trial, bench, found.records, arguments.data_dir)
    finals: list[Job] = []
    for entrant in (each for each in taking_part if each.name not in not_begun):  # others choose when all is tried
        chosen = dict.fromkeys(choose(entrant, case, found, limit) for limit in case.utility.limits)
        for trial in join_strengths(trial for trial in chosen if trial is not None):
            finals += [job for bench in benches for job in jobs_of(trial, entrant, bench, common, attacked=True)]
    title = f"{case.name}: what was chosen, on every seed, and attacks"
    missing += what_is_left(run_stage(title, finals, arguments, folder, pool))
    case.write(output)
    found = gathered(benches, arguments, earlier)
    evidence.write(found, output)
    for seed in found.seeds:
        replace(benches[0], seed=seed).publish(output)
    return missing


def earlier_evidence(case: Case, benches: list[Bench], output: Path) -> evidence.Evidence | None:
    """Return the evidence that a run adds to, or None. Put its models and records where runs find them.

    Published results do not count without their models. Before writing anything, raise UserError if the results in the
    case's output folder have other settings, were chosen on a lower seed, or are on other models.
    """
    source = earlier_results(case, output)
    if source is None or (source != output and not all(bench.has_models(source) for bench in benches)):
        return None
    found = evidence.read(source)
    if found.seeds[0] < benches[0].seed:
        raise UserError(f"--seeds: settings of {case.name} have been chosen on seed {found.seeds[0]}, the lowest; add "
                        "it, or start anew (--from_scratch)")  # fmt: skip
    here = [record for bench in benches if (record := bench.measured()) is not None]
    evidence.check_models([*found.records, *here])
    for seed in found.seeds:  # even seeds not requested: their models go with their records
        replace(benches[0], seed=seed).restore_published(source)
    evidence.restore(found, {bench.seed: bench.records for bench in benches})
    return found


def earlier_results(case: Case, output: Path) -> Path | None:
    """Return a case's output folder if it has results, else that of published results with the same settings, if any.

    Print a note if published results have other settings. Raise UserError for such results in the output folder.
    """
    published = Path(OUTPUT) / case.name
    source = next((place for place in (output, published) if (place / NAME).exists()), None)
    other = "" if source is None else read_case(source).differences(case)
    if other and source == output:
        raise UserError(f"{output}: its results are of other settings than these ({other}); give another --output_dir "
                        "and --run_dir")  # fmt: skip
    if other:
        print(f"{case.name}: takes nothing from {published}, whose results are of other settings ({other}); trains and "
              "runs its own", file=sys.stderr)  # fmt: skip
        return None
    return source


def check_groups(case: Case, taking_part: list[Entrant], earlier: evidence.Evidence) -> None:
    """Raise UserError if a user's entrant is spelled like another kind of entrant in earlier results."""
    known = {spelled_alike(each.name): each for each in unregistered_entrants(case, entrants([], case), earlier)}
    for each in taking_part:
        other = known.get(spelled_alike(each.name), each)
        if each.group in (OWN, SUBMISSION) and (other.name, other.group) != (each.name, each.group):
            kind = "submission" if other.group == SUBMISSION else "method"
            raise UserError(
                f"{each.name}: the {kind} {other.name} has results on {case.name}; give this one another name"
            )


def print_finals(taking_part: list[Entrant], benches: list[Bench], common: Common) -> None:
    """Print the most commands that may follow the trials, and how long they will take."""
    finals = [jobs_of(e.trials[0], e, bench, common, attacked=True)[-1] for e in taking_part for bench in benches]
    timings, limits = Timings(benches[0].folder), len(benches[0].case.utility.limits)
    seconds = timings.total(finals)
    hours = in_hours(None if seconds is None else limits * seconds, timings.count)
    print(f"then up to {limits * len(finals)} commands that run and attack what is chosen, on every seed; {hours}")


def run_stage(
    title: str, jobs: list[Job], arguments: argparse.Namespace, folder: Path, pool: Any
) -> dict[str, JobState]:
    """Run the missing jobs of a stage. Return the state of all by name; exit if the user stopped it."""
    print(title, file=sys.stderr)
    unique = list({job.name: job for job in jobs}.values())
    assert len({job.words for job in jobs}) == len(unique), "two commands of one name"
    states, result = run_missing(arguments, unique, folder, scripts.home(), pool)
    leave(result)
    return states


def what_is_left(states: Mapping[str, JobState]) -> list[str]:
    """Return a line on each job whose records are missing."""
    return [f"{p.state}: {p.job.name}  {p.message}".rstrip() for p in states.values() if p.left]


def gathered(
    benches: list[Bench], arguments: argparse.Namespace, earlier: evidence.Evidence | None
) -> evidence.Evidence:
    """Return the evidence of the runs on some models. Raise UserError if no model and its twin have been measured."""
    decode = benches[0].decode(arguments.data_dir)
    folders = [folder for bench in benches for folder in (bench.records, bench.models)]
    found = evidence.gather(folders, decode, evidence.read_needs(benches[0].folder), earlier)
    if not found.seeds or found.seeds[0] != benches[0].seed:
        raise UserError(
            f"{benches[0].folder}: the model of seed {benches[0].seed} or its twin has no record; see the failures"
        )
    return found


def export_all(cases: list[Case], arguments: argparse.Namespace) -> None:
    """Write what submissions may use, and print where the models are."""
    device = cli.resolve_device(arguments.device)
    for case in cases:
        benches = benches_of(case, arguments)
        if (source := earlier_results(case, Path(arguments.output_dir) / case.name)) is not None:
            for bench in benches:
                bench.restore_published(source)
        written = export(benches, Path(arguments.export) / case.name, arguments.data_dir, device)
        for bench, (model, sequences) in zip(benches, written):
            print(f"{case.name}, seed {bench.seed}: model {model}, sequences {sequences}")


def run_cases(cases: list[Case], arguments: argparse.Namespace) -> tuple[list[str], list[UserError]]:
    """Run all cases, even after one fails. Return lines on missing commands, and errors; raise them if all failed."""
    site, own = find_site(arguments.site), submitted(arguments, cases)
    check_names(arguments, cases)
    asked = [*arguments.methods, *arguments.method_file]
    everyone = [entrants(asked, case, arguments.needs) for case in cases]
    missing: list[str] = []
    ended: list[UserError] = []
    for case, taking_part in zip(cases, everyone):
        only = own if own and not asked else [*taking_part, *own]
        try:
            missing += run_case(case, only, arguments, partial(open_pool, site, max_workers=arguments.max_workers))
        except UserError as error:
            ended.append(error)
    if len(ended) == len(cases):
        raise joined(ended)
    return missing, ended


def joined(errors: list[UserError]) -> UserError:
    """Join errors into one with a one-line message."""
    return errors[0] if len(errors) == 1 else UserError("; ".join(map(str, errors)))


def write_report(output: Path) -> None:
    """Write tables and pages from the evidence in OUTPUT/NAME, print the tables. Raise UserError if there is none."""
    names = with_evidence(output)
    if not names:
        raise UserError(f"{output}: no {NAME} of any model; run without --report first")
    for table in report.write(output, names):
        print(f"\n{table.title}\n{cli.fitted_table(table.shown, list(table.shown[0]), {}, more='the files have them')}")
    print(f"\ntables and pages: {output}")


def main() -> None:
    arguments = parse()
    arguments.output_dir = arguments.output_dir or OUTPUT
    check_writable(output := Path(arguments.output_dir))
    missing: list[str] = []
    ended: list[UserError] = []
    if not arguments.report:
        find_attacks(arguments.attacks, "--attacks")
        cases = find_cases(arguments.models, arguments.small, arguments.trials, arguments.data_dir)
        if arguments.export:
            return export_all(cases, arguments)
        missing, ended = run_cases(cases, arguments)
    if arguments.report or not arguments.dry_run and with_evidence(output):
        write_report(output)
    if missing:  # the tables have scrolled the first mention out of sight
        print(
            "\nnot complete:",
            *missing[:MOST_LINES],
            *["..."] * (len(missing) > MOST_LINES),
            sep="\n  ",
            file=sys.stderr,
        )
    if ended:
        raise joined(ended)
    if missing:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
