"""Production models on the command line: their flags, data, forget set and plans."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tinymem import cli
from tinymem.cards import planted_card, write_card
from tinymem.cli.methods import chosen_attack_metrics, chosen_metrics
from tinymem.cli.sources import given_sources
from tinymem.cli.training import plant_visibly
from tinymem.cli.unlearning import enough_memory, plan_report
from tinymem.cli.watching import looking
from tinymem.data.passages import PassageSettings, load_passages
from tinymem.data.production import ProductionData, ProductionSettings, load_production
from tinymem.data.text_reader import TextReader
from tinymem.errors import UserError, first_line, renamed
from tinymem.folders import check_writable
from tinymem.localize.subject import Subject, shared_sections
from tinymem.localize.task import (
    ALL,
    OTHERS,
    PRODUCTION_HELD_OUT,
    TEST,
    TRAIN,
    TaskSettings,
    default_microbatch,
    unlearning_task,
)
from tinymem.metrics.evaluate import measure
from tinymem.metrics.reference import References
from tinymem.models.difference import check_twin_model
from tinymem.models.gguf import is_packaged, packaged_model
from tinymem.models.production import (
    LoadSettings,
    model_folder,
    model_identity,
    open_causal_lm,
    open_description,
    run_label,
)
from tinymem.planning import dry_run
from tinymem.planning.plan import FAILURES, check_fits
from tinymem.records.identity import PLANTED_MODEL, TWIN_MODEL
from tinymem.training.checkpoint import load_details
from tinymem.training.plant import PlantSettings, planted_model
from tinymem.training.processes import ALONE, Processes

PYTHIA_BATCH_SIZE = 32  # batch size with which the study measures Pythia's perplexity


def add_subject_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the model, data, planting and task."""
    cli.add_options(parser, LoadSettings)
    cli.add_options(parser, ProductionSettings)
    cli.add_options(parser, PassageSettings)
    cli.add_options(parser, PlantSettings)
    cli.add_options(parser, TaskSettings, holdout_fraction=PRODUCTION_HELD_OUT)
    parser.add_argument(
        "--twin_model",
        metavar="NAME",
        help="the never-planted twin (the same model trained without what it memorized): a folder or a name on the hub "
        "(with --plant, the twin is the model before planting)",
    )
    cli.add_common_options(parser, "runs/production/MODEL_NAME")


def load_subject(arguments, loading: LoadSettings, methods, processes: Processes = ALONE) -> Subject:
    """Return the data, model and task, after quick checks. Raise UserError for settings or files that do not match.

    processes: those that train objectives together; this is the first of them.
    """
    settings = cli.collect(ProductionSettings, arguments)
    passages, planting = cli.collect(PassageSettings, arguments), cli.collect(PlantSettings, arguments)
    task_settings = cli.collect(TaskSettings, arguments, holdout_fraction=PRODUCTION_HELD_OUT)
    settings.check_files()
    device, name, place = cli.resolve_device(arguments.device), str(arguments.model_name), source(arguments)
    reads_text = passages.plant is not None or settings.random is None or settings.memorizes_text
    config, tokenizer = open_description(place, loading.step, reads_text)
    if passages.plant is None:
        data = load_production(settings, config, tokenizer)
    else:
        data = load_passages(passages, settings, config, tokenizer)
    plan_methods(arguments, loading, methods, processes)
    output = Path(arguments.output_dir or f"runs/production/{run_label(name, loading.step)}")
    check_writable(output)
    if loading.dtype == "float16" and device.type == "cpu":  # a matrix product was measured to take 500 times as long
        print("--dtype float16: few CPUs support it, others are very slow; use bfloat16", file=sys.stderr)
    training: dict[str, Any] = {}
    open_twin = None
    opened: tuple[str, int | None] = (place, loading.step)
    if passages.plant is None:
        model, tokenizer = open_causal_lm(place, device=device, **vars(loading))
        if arguments.twin_model is not None:
            open_twin = partial(_opened_twin, model, arguments.twin_model, loading, device)
    else:
        open_twin = partial(_opened, place, loading, device)
        folder = planted(arguments, loading, data, planting)
        model, tokenizer = open_causal_lm(folder, None, device, loading.dtype, loading.device_map)
        opened, training = (str(folder), None), {PLANTED_MODEL: folder.name, **asdict(planting)}
    sections = {"data": data.identity, "model": loading.section(name), "training": training}
    if arguments.twin_model is not None:  # results depend on the twin
        sections["model"][TWIN_MODEL] = model_identity(arguments.twin_model)
    with enough_memory(name), looking() as on_rows:
        task = unlearning_task(model, data.dataset, task_settings, on_rows)
    task = replace(task, processes=replace(processes, model=opened), reader=TextReader(tokenizer, data.begin))
    open_original = partial(_opened, opened[0], replace(loading, step=opened[1]), device)
    return Subject(
        model=model,
        task=task,
        measure=partial(measure, dataset=data.dataset, batch_size=task.microbatch, study_batch_size=PYTHIA_BATCH_SIZE),
        identity=shared_sections(model, task, task_settings, sections),
        folder=output,
        score_folder=output / "scores",
        tokenizer=tokenizer,
        metrics=chosen_metrics(arguments),
        attack_metrics=chosen_attack_metrics(arguments),
        examples=arguments.page,
        sources=given_sources(arguments),
        source=_source_of_adapters(*opened),
        notes=data.notes,
        references=References(data.dataset, task.retain, open_twin, open_original),
    )


def _source_of_adapters(place: str, step: int | None) -> tuple[str, str | None]:
    """Return how a saved adapter names its base model: a folder, or a name on the hub and its revision."""
    if Path(place).is_dir():
        return str(model_folder(place, step).resolve()), None
    return place, None if step is None else f"step{step}"


def _opened(place: str, loading: LoadSettings, device) -> Any:
    with enough_memory(place):
        return open_causal_lm(place, device=device, **vars(loading))[0]


def _opened_twin(model, place: str, loading: LoadSettings, device) -> Any:
    """Return the twin given by name. Raise UserError unless only the values of its weights differ from the model's."""
    with renamed("--model_name", "--twin_model"):
        twin = _opened(place, replace(loading, step=None), device)
    check_twin_model(model, twin, f"--twin_model {place}")
    return twin


def source(arguments) -> str:
    """Return the model's name or folder: --model_name, or the folder of the unpacked packaged model."""
    name = str(arguments.model_name)
    return str(packaged_model(name, arguments.data_dir)) if is_packaged(name) else name


def _check_planting(arguments, passages: PassageSettings) -> None:
    """Raise UserError for planting settings when nothing is planted, since they would have no effect."""
    others = [*cli.given(PassageSettings, arguments), *cli.given(PlantSettings, arguments)]
    if passages.plant is None and others:
        raise UserError(f"--{others[0]}: only with --plant, which names the text to plant passages of")


def _check_task(task: TaskSettings) -> None:
    """Raise UserError for forget or retain sets that a production model does not have."""
    for flag, given, usual in (("forget", TEST, TRAIN), ("retain", ALL, OTHERS)):
        if getattr(task, flag) == given:
            raise UserError(f"--{flag} {given}: a production model's training rows are not known; use --{flag} {usual}")
    if task.unlearn_set_name not in ("mem", "noise"):
        raise UserError(f"--unlearn_set_name {task.unlearn_set_name}: a production model has only mem, noise")


def _check_twin_model(name: str | None, passages: PassageSettings) -> None:
    """Raise UserError for a named twin that does not exist or that a planted model cannot use."""
    if name is None:
        return
    if passages.plant is not None:
        raise UserError("--twin_model: with --plant the twin is the model before planting; leave it out")
    with renamed("--model_name", "--twin_model"):
        open_description(name, None, False)


def plan_methods(arguments, loading: LoadSettings, methods, processes: Processes = ALONE) -> None:
    """With --dry_run, print the methods' plans. Otherwise raise OutOfMemory if there is too little memory for them."""
    task = cli.collect(TaskSettings, arguments, holdout_fraction=PRODUCTION_HELD_OUT)
    if loading.device_map is not None and arguments.device == "cpu":
        raise UserError("--device_map: spreads the model over GPUs; leave it out with --device cpu")
    elsewhere = arguments.dry_run and arguments.device.startswith("cuda")  # a plan for another machine's GPU
    device = torch.device("cuda") if elsewhere else cli.resolve_device(arguments.device)
    data, passages = cli.collect(ProductionSettings, arguments), cli.collect(PassageSettings, arguments)
    _check_task(task)
    _check_planting(arguments, passages)
    _check_twin_model(arguments.twin_model, passages)
    shape = dry_run.planned_shape(source(arguments), loading, device, well_known=arguments.dry_run)
    sizes = dry_run.planned_sizes(shape, data, passages, task)
    try:
        planned = dry_run.plans(shape, sizes, methods, processes)
    except FAILURES as error:
        planned, reason = [], first_line(error)
        if arguments.dry_run:
            raise UserError(f"--dry_run: cannot plan for {arguments.model_name} ({reason})") from None
    twin = 0 if arguments.twin_model is None and passages.plant is None else shape.weight_bytes
    if arguments.dry_run:
        print(plan_report(shape, sizes, planned, loading, passages.plant is not None, processes, twin))
    else:
        before = 0 if passages.plant is None else dry_run.planting_bytes(shape, loading)
        for (method, hp), (_, plan) in zip(methods, planned):
            check_fits(method, hp, shape, sizes, plan, device, loading.device_map, processes.size, twin)
        dry_run.choose_allocator(planned, device, before)


def planted(arguments, loading: LoadSettings, data: ProductionData, settings: PlantSettings) -> Path:
    """Return the folder of the model with the passages planted. Train it unless it exists."""
    device = cli.resolve_device(arguments.device)
    with enough_memory(arguments.model_name):
        model, tokenizer = open_causal_lm(
            source(arguments), loading.step, device, "float32", loading.device_map, dtype_is_free=False
        )
        microbatch = arguments.microbatch if hasattr(arguments, "microbatch") else None
        plant = partial(
            planted_model, model, tokenizer, data.dataset, settings, arguments.data_dir,
            seed=data.identity["plant_seed"], dtype=getattr(torch, loading.dtype),
            microbatch=microbatch or default_microbatch(model, data.dataset.sequences.shape[1]),
        )  # fmt: skip
        folder = plant_visibly(plant, arguments.data_dir)
    name = str(arguments.model_name)
    name = Path(name).resolve().name if Path(name).is_dir() else name
    write_card(folder, planted_card(name, load_details(folder), len(data.dataset.artifacts)))
    return folder
