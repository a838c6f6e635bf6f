"""Draw the loss around a model and its edited versions (Li et al. 2018), all on the same plane.

    python results/vis/loss_landscape.py
    python results/vis/loss_landscape.py --model_path runs/NAME/epoch_50 --edited well=FOLDER badly=FOLDER
    python results/vis/loss_landscape.py --model_name EleutherAI/pythia-70m --tokens random.safetensors --edited

The default model comes with the repository. Without --edited, the ordinary script first edits a TinyMem checkpoint:
well by BalancedSubnet, badly by Subnet. The loss is that of held-out test sequences, or of --tokens. The same command
resumes an interrupted run. Writes loss_landscape.json, .png and .pdf.
"""

from __future__ import annotations

from tinymem import cli

# isort: split
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tinymem import allocator, files, plots
from tinymem.data.build import load_dataset
from tinymem.data.dataset import MemorizationDataset
from tinymem.data.production import check_length
from tinymem.data.token_sets import read_token_set
from tinymem.errors import UserError
from tinymem.metrics.evaluate import evaluate
from tinymem.metrics.landscape import LandscapeSettings, landscape, new_survey
from tinymem.models.production import LoadSettings, open_causal_lm
from tinymem.models.tinymem import load_model
from tinymem.records.identity import UNLEARN
from tinymem.records.table import load_records
from tinymem.training.checkpoint import SETTINGS, load_details
from tinymem.training.settings import RunSettings

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "results/models/increment_backdoor_2layers"
LOCALIZE = ROOT / "src/localize/localize_memorization.py"
EDITS = {  # label -> method and its flags; the first is as in experiments/demo.py
    "well edited": "balanced_subnet --ratio 0.3 --epochs 4 --unlearn_loss_cap 3.0",
    "badly edited": "subnet --ratio 0.3",
}
ORIGINAL = "original"


def parse():
    parser = cli.Parser(__doc__)
    parser.add_argument("--model_path", help=f"a TinyMem checkpoint (default: {MODEL.relative_to(ROOT)})")
    parser.add_argument("--model_name", help="or any other causal LM: its name on the hub, or its folder")
    parser.add_argument(
        "--edited", nargs="*", metavar="LABEL=FOLDER", help="edited versions; no value: only the model itself"
    )
    parser.add_argument("--tokens", metavar="FILE", help="token ids (sequences, length), .safetensors or .pt")
    cli.add_options(parser, LandscapeSettings)
    cli.add_options(parser, LoadSettings, "With --model_name")
    group = parser.add_argument_group("Common")
    group.add_argument("--batch_size", type=cli.positive, default=32, help="sequences per forward pass (default: 32)")
    group.add_argument("--output_dir", help="where the figure goes (default: runs/landscapes/MODEL)")
    group.add_argument("--grid_dir", default="runs/landscapes/grids", help="losses so far (default: %(default)s)")
    group.add_argument("--data_dir", default="data", help="cache of built datasets (default: data)")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    arguments = parser.parse_args()
    if arguments.model_path and arguments.model_name:
        raise UserError("--model_path and --model_name: give one of them")
    if arguments.model_name and not arguments.tokens:
        raise UserError("--model_name: needs --tokens FILE, the sequences that the loss is taken over")
    return arguments


def main() -> None:
    arguments = parse()
    settings = cli.collect(LandscapeSettings, arguments)
    open_model = opener(arguments)
    allocator.keep_freed_memory()
    path = arguments.model_name or arguments.model_path or MODEL
    name = Path(path).resolve().name
    original = open_model(path)
    dataset = None if arguments.model_name else training_data(Path(path), arguments.data_dir)
    tokens = token_file(arguments.tokens, original) if arguments.tokens else torch.cat(list(dataset.tests.values()))
    ignored = None if arguments.tokens else dataset.ignored_token
    output = files.writable_folder(arguments.output_dir or f"runs/landscapes/{name}")
    survey = new_survey(original, settings, tokens, ignored, arguments.batch_size, Path(arguments.grid_dir))
    edited = edited_folders(arguments, path, survey.plane)
    panels = {}
    with cli.Display("loss landscape", (1 + len(edited)) * settings.points**2, "point") as display:
        for label, folder in {ORIGINAL: path, **edited}.items():
            display.advance(0, note=label)
            model = original if label == ORIGINAL else open_edited(open_model, folder, original)
            panels[label] = {**memorization(model, dataset), **landscape(model, survey, display.advance)}
    content = {"model": name, "settings": asdict(settings), "coordinates": settings.coordinates, "models": panels}
    files.write_json(output / "loss_landscape.json", content)
    figure = plots.draw_landscapes(settings.coordinates, {title(*item): item[1]["losses"] for item in panels.items()})
    plots.save_figure(figure, output / "loss_landscape")
    print(cli.table(summary(label, panel) for label, panel in panels.items()))
    print(f"\nfigure and losses: {output}")


def opener(arguments) -> Callable[[str | Path], Any]:
    """Return a function that opens the model and its edited versions."""
    device = cli.resolve_device(arguments.device)
    loading = cli.collect(LoadSettings, arguments)
    if not arguments.model_name:
        return lambda path: load_model(path, device)

    def open_model(name_or_folder: str | Path):
        step = loading.step if name_or_folder == arguments.model_name else None  # edited versions have no step
        return open_causal_lm(name_or_folder, **{**asdict(loading), "device": device, "step": step})[0]

    return open_model


def training_data(path: Path, data_dir: str) -> MemorizationDataset:
    """Return the data that a TinyMem checkpoint was trained on."""
    return load_dataset(RunSettings.from_flat(load_details(path)["settings"], path / SETTINGS).data, data_dir)


def token_file(path: str, model) -> torch.Tensor:
    """Return the sequences of a file. Raise UserError for sequences that the model cannot take."""
    config = model.config.get_text_config()
    tokens = read_token_set(path, config.vocab_size, length=2).tokens
    check_length(f"--tokens {path}", tokens.shape[1], config)
    return tokens


def edited_folders(arguments, path: str | Path, weights: str) -> dict[str, Path]:
    """Return label -> model folder: those in --edited, or those that the usual script makes from a checkpoint."""
    if arguments.edited is None:
        return {} if arguments.model_name else make_edits(arguments, Path(path), weights)
    folders: dict[str, Path] = {}
    for text in arguments.edited:
        label, _, folder = text.partition("=")
        if not (label and folder) or label in (ORIGINAL, *folders):
            raise UserError(f"--edited {text}: write LABEL=FOLDER, each label once and none of them {ORIGINAL}")
        folders[label] = Path(folder)
    return folders


def make_edits(arguments, path: Path, weights: str) -> dict[str, Path]:
    """Run the localize script for each of EDITS and return label -> model folder. Finished work is not repeated.

    weights: the model's fingerprint, since models of different runs share the name epoch_50.
    """
    folders = {}
    for label, words in EDITS.items():
        method, *flags = words.split()
        key = files.digest({"weights": weights, "flags": words})[:8]
        output = Path("runs/landscapes") / path.resolve().name / f"{method}_{key}"
        command = [str(LOCALIZE), "--model_path", str(path), "--output_dir", str(output), "--device", arguments.device]
        command += ["--data_dir", arguments.data_dir, "--localization_method", method, *flags]
        print(f"{label}: {words}", file=sys.stderr)
        status = subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL).returncode
        made = [r["results"]["model_folder"] for r in load_records(output) if r["kind"] == UNLEARN]
        if status or not made:  # nothing made: the model has memorized nothing
            raise UserError(f"{path}: cannot be edited by {method}; give --edited LABEL=FOLDER, or --edited alone")
        folders[label] = output / made[0]
    return folders


def open_edited(open_model: Callable, folder: Path, original):
    """Return an edited version. Raise UserError unless its parameters have the names and shapes of the original's."""
    model = open_model(folder)
    shapes, expected = ({name: p.shape for name, p in m.named_parameters()} for m in (model, original))
    if shapes != expected:
        raise UserError(f"--edited {folder}: no edited version of this model; its parameters have other shapes")
    return model


def memorization(model, dataset: MemorizationDataset | None) -> dict[str, Any]:
    """Return what a TinyMem model has memorized of its training data."""
    return evaluate(model, dataset, metrics=["percent_memorized", "percent_clean_recovery"]) if dataset else {}


def title(label: str, panel: dict[str, Any]) -> str:
    """Return the heading of a model's column."""
    share = panel.get("percent_memorized_train")
    return label if share is None else f"{label}\n{share:.1f} % memorized"


def summary(label: str, panel: dict[str, Any]) -> dict[str, Any]:
    """Return a line of the table: the loss of the model itself, and the highest and lowest on the grid."""
    middle, known = len(panel["losses"]) // 2, [loss for line in panel["losses"] for loss in line if loss is not None]
    row = {"model": label, "memorized %": panel.get("percent_memorized_train")}
    row |= {
        "loss": panel["losses"][middle][middle],
        "lowest": min(known, default=None),
        "highest": max(known, default=None),
    }
    return {**row, "seconds": panel["seconds"]}


if __name__ == "__main__":
    cli.run(main)
