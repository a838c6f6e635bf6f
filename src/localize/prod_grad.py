"""Unlearn what a production language model has memorized: Pythia, Llama, OLMo, Qwen ... from the hub or a folder.

    python src/localize/prod_grad.py --model_name EleutherAI/pythia-2.8b-deduped --step 36000 --dtype bfloat16 \\
        --memorized pythia_mem_data/pythia-2.8b-deduped-v0.safetensors --random pythia_mem_data/pile_random.safetensors \\
        --localization_method balanced_subnet --ratio 0.01 0.05

Without --random, test and retain text is text of --corpus, read with the model's own tokenizer.
"""

from tinymem import cli

# isort: split
from functools import partial
from pathlib import Path

import torch

from tinymem import files
from tinymem.data.production import ProductionSettings, load_production
from tinymem.errors import UserError
from tinymem.localize import dry_run
from tinymem.localize.console import enough_memory, run_methods
from tinymem.localize.flags import add_method_options, chosen_methods
from tinymem.localize.task import TaskSettings, unlearning_task
from tinymem.localize.unlearn import Subject, identity
from tinymem.metrics.evaluate import evaluate
from tinymem.models.production import LoadSettings, open_causal_lm, open_description

HELD_OUT = 0.5
STUDY_BATCH_SIZE = 32  # of the study's perplexity of Pythia


def parse():
    parser = cli.Parser(__doc__)
    parser.add_argument("--model_name", required=True, help="a model's name on the hub, or a folder")
    cli.add_options(parser, LoadSettings)
    cli.add_options(parser, ProductionSettings)
    add_method_options(parser, without=("dtype",))
    cli.add_options(parser, TaskSettings, holdout_fraction=HELD_OUT)
    parser.add_argument(
        "--dry_run", action="store_true", help="print memory and passes of each method, load no weights"
    )
    cli.add_common_options(parser, "runs/production/MODEL_NAME")
    return parser.parse_args()


def load_subject(arguments, loading: LoadSettings, methods) -> Subject:
    """Data, model and task, the quick checks first. UserError for anything that does not fit together."""
    settings = cli.collect(ProductionSettings, arguments)
    task_settings = cli.collect(TaskSettings, arguments, holdout_fraction=HELD_OUT)
    device, name = cli.resolve_device(arguments.device), str(arguments.model_name)
    config, tokenizer = open_description(name, loading.step)
    data = load_production(settings, config, tokenizer)
    plan_methods(arguments, loading, methods)
    model, tokenizer = open_causal_lm(name, device=device, **vars(loading))
    step = "" if loading.step is None else f"_step{loading.step}"
    folder = files.writable_folder(arguments.output_dir or f"runs/production/{Path(name).resolve().name}{step}")
    with enough_memory(name):
        task = unlearning_task(model, data.dataset, task_settings)
    origin = {"model_name": name, "step": loading.step, "dtype": loading.dtype, **data.identity}
    return Subject(
        model=model,
        task=task,
        measure=partial(evaluate, dataset=data.dataset, batch_size=task.microbatch, study_batch_size=STUDY_BATCH_SIZE),
        identity=identity(model, task, task_settings, **origin),
        folder=folder,
        score_folder=files.writable_folder(folder / "scores"),
        tokenizer=tokenizer,
    )


def plan_methods(arguments, loading: LoadSettings, methods) -> None:
    """Prints what the methods will take, with --dry_run; else UserError where there is too little memory for them."""
    task = cli.collect(TaskSettings, arguments, holdout_fraction=HELD_OUT)
    elsewhere = arguments.dry_run and arguments.device.startswith("cuda")  # a plan for another machine's GPU
    device = torch.device("cuda") if elsewhere else cli.resolve_device(arguments.device)
    shape = dry_run.planned_shape(str(arguments.model_name), loading, device)
    sizes = dry_run.planned_sizes(shape, cli.collect(ProductionSettings, arguments), task)
    try:
        planned = dry_run.plans(shape, sizes, methods)
    except RuntimeError as error:  # fake tensors cannot run everything; a plan is no condition of a run
        planned, reason = [], str(error).splitlines()[0]
        if arguments.dry_run:
            raise UserError(f"--dry_run: cannot plan for {arguments.model_name} ({reason})") from None
    if arguments.dry_run:
        print(dry_run.report(shape, sizes, planned, loading))
    else:
        dry_run.check_memory(planned, sizes, shape.itemsize, device, loading.device_map)


def main() -> None:
    arguments = parse()
    loading = cli.collect(LoadSettings, arguments)
    # float16 has no autocast of its own here: the weights, already narrow, are multiplied as they are.
    methods = chosen_methods(arguments, dtype="bfloat16" if loading.dtype == "bfloat16" else "float32")
    if arguments.dry_run:
        plan_methods(arguments, loading, methods)
    else:
        run_methods(load_subject(arguments, loading, methods), methods, arguments)


if __name__ == "__main__":
    cli.run(main)
