"""Compare planned and measured peak memory of the unlearning methods, and plan large models.

    python benchmarks/memory_plan.py                 measure random models of Pythia's shapes on the CPU (minutes)
    python benchmarks/memory_plan.py --table         the plans of models up to 8B as a Markdown table (no measuring)

Every method runs on a few sequences of 80 tokens in its own process. Memory that the process held before making the
model is subtracted. Writes benchmarks/memory_plan.json; with --shape, only the rows measured now are replaced.
"""

from tinymem import cli

# isort: split
import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from tinymem import allocator, files
from tinymem.errors import UserError
from tinymem.localize.method import Method
from tinymem.localize.registry import METHODS
from tinymem.localize.registry import STUDY as STUDIED
from tinymem.models.known_configs import known_config, known_shapes
from tinymem.planning.memory import shape_of
from tinymem.planning.plan import GB, Plan, Sizes, plan, watched
from tinymem.records.cost import measured
from tinymem.records.record import environment

SIZES = Sizes(forget=16, retain=16, length=80, prompt=32, microbatch=8)
SMALL = "small"  # 21M parameters: for the test suite
# Models, methods, and whether freed memory is kept, as it is if there is plenty (see tinymem.allocator).
MEASURED = (
    ("pythia-70m", tuple(STUDIED), False),
    ("pythia-70m", ("activations", "slimming", "durable", "balanced_subnet"), True),
    ("pythia-160m", ("activations", "integrated_gradients", "slimming", "durable", "balanced_subnet"), False),
    ("pythia-410m", ("durable", "balanced_subnet"), False),
)
KEY = ("model", "dtype", "method", "freed_memory")  # of a row
PLANNED = ("durable", "balanced_subnet", "integrated_gradients")
# The study's Pythia data: 505 memorized sequences, half of them held out, and random text to retain.
STUDY = Sizes(forget=252, retain=1632, length=80, prompt=32, microbatch=8)
MEMORIES = (8, 16, 24, 40, 80, 141)  # GB, of common GPUs


def config_of(name: str):
    """Return transformers' config of a shape."""
    if name != SMALL:
        return known_config(name)
    from transformers import GPTNeoXConfig

    return GPTNeoXConfig(
        hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048, vocab_size=8192
    )


def case(name: str) -> tuple[Method, dict[str, int]]:
    """Return the method and special settings of a name such as npo, or npo:lora for changes of rank 8."""
    method, _, form = name.partition(":")
    return METHODS[method], {"lora_rank": 8} if form == "lora" else {}


def limited(method: Method, parameters: int, **special: Any) -> Any:
    """Return hyper-parameters that reach the peak soon: a step (objectives: two) on a batch of two microbatches."""
    quick = dict(epochs=1, batch_size=16, ig_steps=2, num_grads=8, ratio=(0.1,), dtype="float32", unlearn_share=0.5)
    quick |= dict(steps=(2,), **special)
    if method.name == "greedy":
        quick["ratio"] = (2 / parameters,)
    known = {field.name for field in fields(method.hyper_parameters)}
    return method.hyper_parameters(**{name: value for name, value in quick.items() if name in known})


def run_method(method: Method, model, hp: Any, sizes: Sizes) -> None:
    """Do what a user's run does between loading and measuring the model (Zero-Out: a part with the same peak)."""
    watched(method, model, sizes, hp, method.enough if method.name == "zero_out" else None)


def measure_here(name: str, methods: list[str], dtype: str, kept: bool) -> list[dict[str, float]]:
    """Return each method's seconds, and its peak in GB above what the process held before the model was made."""
    from transformers import AutoModelForCausalLM

    allocator.use_huge_pages()  # as prod_grad.py does
    (allocator.keep_freed_memory if kept else allocator.return_freed_memory)()
    config, cpu = config_of(name), torch.device("cpu")

    def model_of(config):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()

    def run(name: str, model, sizes: Sizes) -> None:
        (method, special), parameters = case(name), model.num_parameters()
        run_method(method, model, method.resolve(limited(method, parameters, **special), parameters), sizes)

    small = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    narrow = type(config)(**{**config.to_dict(), **small})
    for method in methods:
        run(method, model_of(narrow), replace(SIZES, forget=2, retain=2, microbatch=1))  # loads libraries
    with measured(cpu) as before:
        pass
    model, costs = model_of(config), []
    for method in methods:
        with measured(cpu) as cost:
            run(method, model, SIZES)
        costs.append({"peak_gb": cost.peak_memory_gb - before.peak_memory_gb, "seconds": cost.seconds})
    return costs


def measure(name: str, methods: list[str], dtype: str, kept: bool, together: bool) -> list[dict[str, Any]]:
    """Return a row per method: planned and measured peak, and their ratio. together: measure in one process."""
    shape = shape_of(config_of(name), getattr(torch, dtype))
    cases = map(case, methods)
    hps = [(method, limited(method, shape.parameters, **special)) for method, special in cases]
    planned = [plan(method, shape, SIZES, hp).peak / GB for method, hp in hps]
    costs = []
    for group in [methods] if together else [[method] for method in methods]:
        arguments = ["--here", "--shape", name, "--dtype", dtype, *["--keep"] * kept, "--methods", *group]
        child = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
        if child.returncode:
            reason = child.stderr.strip().splitlines() or [
                f"ended by signal {-child.returncode}, as for want of memory"
            ]
            raise UserError(f"{name}, {', '.join(group)}: {reason[-1]}")
        costs += json.loads(child.stdout.splitlines()[-1])
        print(name, *group, f"{costs[-1]['peak_gb']:.3f} GB", file=sys.stderr)
    return [
        {
            "model": name,
            "dtype": dtype,
            "method": method,
            "freed_memory": "kept" if kept else "returned",
            "planned_gb": round(gb, 3),
            "measured_gb": round(cost["peak_gb"], 3),
            "ratio": round(gb / cost["peak_gb"], 3),
            "seconds": round(cost["seconds"], 1),
        }
        for method, gb, cost in zip(methods, planned, costs)
    ]


def table(dtype: str) -> str:
    """Return a Markdown table of weights and peaks of the known models, and the memory that fits all."""
    titles = ("Model", "parameters", "weights", *PLANNED, "fits in")
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    for name in known_shapes():
        shape = shape_of(known_config(name), getattr(torch, dtype), "cuda")
        plans = [
            plan(METHODS[method], shape, STUDY, METHODS[method].hyper_parameters(ratio=(0.05,))) for method in PLANNED
        ]
        cells = [name, f"{shape.parameters / 1e9:.2f}B", f"{shape.weight_bytes / GB:.1f} GB"]
        cells += [f"{planned.peak / GB:.1f} GB" for planned in plans] + [fits(plans)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fits(plans: list[Plan]) -> str:
    """Return the smallest memory that fits every plan with a tenth to spare."""
    needed = 1.1 * max(planned.peak for planned in plans) / GB
    return next((f"{size} GB" for size in MEMORIES if needed <= size), "several GPUs (--device_map auto)")


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "--shape", nargs="+", metavar="NAME", help="only these models (default: Pythia 70M, 160M, 410M)"
    )
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="with --shape: only these methods (default: all)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32; with --table bfloat16")
    parser.add_argument("--table", action="store_true", help="print the plans of large models as Markdown and exit")
    parser.add_argument("--output", default=Path(__file__).with_suffix(".json"), help="where the figures are written")
    parser.add_argument("--keep", action="store_true", help="with --shape: keep freed memory instead of returning it")
    parser.add_argument("--together", action="store_true", help="all methods in one process: quicker, less exact")
    parser.add_argument("--here", action="store_true", help="measure in this process and print JSON (used by itself)")
    arguments = parser.parse_args()
    if arguments.table:
        return print(table(arguments.dtype or "bfloat16"))
    if (arguments.methods or arguments.keep) and not arguments.shape:
        raise UserError("--methods, --keep: only with --shape")
    dtype = arguments.dtype or "float32"
    for name in arguments.shape or ():
        if name != SMALL and known_config(name) is None:
            raise UserError(f"--shape {name}: must be one of {', '.join((SMALL, *known_shapes()))}")
    for name in arguments.methods or ():
        if name.removesuffix(":lora") not in METHODS:
            raise UserError(f"--methods {name}: must be one of {', '.join(METHODS)}, of objectives also with :lora")
    if arguments.here:
        return print(json.dumps(measure_here(arguments.shape[0], arguments.methods, dtype, arguments.keep)))
    output, rows = Path(arguments.output), []
    before = files.read_json(output, required=("rows",))["rows"] if arguments.shape and output.exists() else []
    asked = [(name, arguments.methods or tuple(STUDIED), arguments.keep) for name in arguments.shape or ()]
    for name, methods, kept in asked or MEASURED:
        rows += measure(name, list(methods), dtype, kept, arguments.together)
        new = {tuple(row[key] for key in KEY) for row in rows}
        old = [row for row in before if tuple(row[key] for key in KEY) not in new]
        files.write_json(output, {"environment": environment("cpu"), "rows": old + rows})
    print(cli.table(rows))


if __name__ == "__main__":
    cli.run(main)
