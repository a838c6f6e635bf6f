"""Compare the library with the study's recipe, the best stock alternative and the machine's limit, in one run.

    python benchmarks/run.py            under 15 minutes on two CPU cores; writes results.json and README.md here, or
                                        results_float32.json on a machine without instructions for bfloat16
    python benchmarks/run.py --quick    under 2 minutes: small sizes, noisy; writes only to --output

With --output, the results go there and README.md stays as it is.

Everything that is compared takes turns, round by round; medians are shown. The recipe is measured twice: as it comes,
in its own process, and with the library's allocator settings.
"""

from __future__ import annotations

from tinymem import cli

# isort: split
import contextlib
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import others
import report
import timing
import torch
from as_it_comes import Elsewhere
from case import QUICK, Case, Sizes
from cases import all_cases

from tinymem import allocator, files
from tinymem.errors import UserError
from tinymem.models.precision import auto_precision
from tinymem.records.record import environment

AS_IT_COMES = " as it comes"


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="these rows only; implies no README.md")
    parser.add_argument("--output", help="results file (default: as above; with --quick or --only none)")
    arguments = parser.parse_args()
    device = cli.resolve_device(arguments.device)
    sizes = sizes_on(device, arguments.quick)
    whole = not (arguments.quick or arguments.only)
    output = Path(arguments.output or report.committed(auto_precision(device)))
    if whole or arguments.output:
        files.writable_folder(output.parent, " with --output")
    allocator.keep_freed_memory()
    results = measure(device, sizes, arguments.quick, arguments.only)
    print(report.terminal_table(results["rows"]))
    if whole or arguments.output:
        print(f"\nwritten: {files.write_json(output, results)}")
    # README.md shows rows that FLOAT32 lacks. Beside --output, it would replace another README.md.
    if whole and not arguments.output and output != report.FLOAT32:
        print(f"written: {report.write(results, output.with_name('README.md'))}")


def sizes_on(device: torch.device, quick: bool) -> Sizes:
    """Return the sizes to measure on a device. A GPU gets deeper models, too."""
    if quick:
        return QUICK
    return Sizes(layers=(2, 4, 8, 16)) if device.type == "cuda" else Sizes()


def settings_of(sizes: Sizes, quick: bool) -> dict[str, Any]:
    """Return the settings as stored in results.json."""
    return {"quick": quick, **dataclasses.asdict(sizes)}


def measure(device: torch.device, sizes: Sizes, quick: bool, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the content of results.json. only: names of rows, without those that have no recipe; empty: all.

    Raise UserError for a name without a row.
    """
    builders = all_cases(sizes, device)
    for name in only:
        if name not in builders:
            raise UserError(f"--only {name}: must be one of {', '.join(builders)}")
    chosen = {name: builders[name] for name in only or builders}
    bandwidth = timing.seconds(copy := timing.copying(device)[0], device)
    bandwidth = timing.copying(device)[1] / min(bandwidth, *(timing.seconds(copy, device) for _ in range(3)))
    about = {**environment(str(device)), "auto_dtype": auto_precision(device)}
    rows = []
    results = {"settings": settings_of(sizes, quick), "environment": about, "rows": rows}
    # A GPU's memory comes from CUDA's caching allocator, which we do not set.
    elsewhere = Elsewhere(quick) if device.type == "cpu" else contextlib.nullcontext()
    with elsewhere as other, cli.Display("benchmark", len(chosen), "case") as display:
        for name, build in chosen.items():
            display.advance(0, note=name)
            row = measure_case(name, build(), other, sizes, device, bandwidth)
            rows.append(row)
            display.write(report.terminal_table([row]).splitlines()[-1])
            display.advance()
    if not only:
        rows += others.startup(sizes.repeats)
        results["outside_the_steps_percent"] = others.outside_the_steps(device, quick)
        types = sorted({"float32", about["auto_dtype"]}, reverse=True)
        results["profile_percent"] = {dtype: others.profile(device, dtype, sizes.batch) for dtype in types}
    results["bandwidth_gb_per_second"] = round(bandwidth / 1e9, 2)
    return results


def measure_case(
    name: str, case: Case, elsewhere: Elsewhere | None, sizes: Sizes, device: torch.device, bandwidth: float
) -> dict[str, Any]:
    """Return a row of the results: median seconds of a whole unit of work, their ratios, and the share of the limit."""
    timers = {variant: partial(timing.seconds, run, device) for variant, run in case.variants.items()}
    if elsewhere is not None:
        timers |= {f"{v}{AS_IT_COMES}": partial(elsewhere.seconds, name, v) for v in case.elsewhere}
    product, operations = timing.matrix_product(device, case.dtype)
    timers["product"] = partial(timing.seconds, product, device)
    took = timing.medians(timing.rounds(timers, sizes.repeats, warm_up=1, budget=sizes.budget))
    rate = operations / took.pop("product")
    took = {timer: value / case.shares.get(timer.removesuffix(AS_IT_COMES), 1.0) for timer, value in took.items()}
    recipe, ours = took.get(f"recipe{AS_IT_COMES}", took["recipe"]), took["ours"]
    limit = max(case.flops / rate, case.bytes / bandwidth)
    row = {
        "name": name,
        "work": case.work,
        "dtype": case.dtype,
        "recipe_seconds": recipe,
        "recipe_same_allocator_seconds": took["recipe"],
        "stock_seconds": took.get("stock"),
        "ours_seconds": ours,
        "ratio": recipe / ours,
        "ratio_same_allocator": took["recipe"] / ours,
        "share_of_limit": limit / ours if limit else None,
        "gflops_per_second_limit": rate / 1e9,
        "shares_measured": dict(case.shares),
        "goal": case.goal,
        "goal_same_allocator": case.goal_same_allocator,
        "goal_share": case.goal_share,
        "all_seconds": took,
    }
    if case.tokens:
        row["tokens_per_second"] = {timer: round(case.tokens / value) for timer, value in took.items()}
    return {name: _rounded(value) for name, value in row.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    cli.run(main)
