"""Build, cache and show the training data of a TinyMem model.

    python old_data.py --data_name increment --backdoor --seed 0
    python old_data.py --data_name wiki --corpus builtin --duplicate

It prints the sizes of the data, an artifact below its clean twin with the differences marked, and how many artifacts
differ from their clean twin in the measured window.
"""

from tinymem import cli

# isort: split
import torch

from tinymem.cli.training import data_settings
from tinymem.data.build import cache_path, load_dataset
from tinymem.data.dataset import Artifacts, MemorizationDataset
from tinymem.data.decode import Decoder, decoder

LINE_WIDTH = 110


def parse() -> tuple:
    parser = cli.Parser(__doc__)
    cli.add_data_options(parser)
    parser.add_argument("--data_dir", default="data", help="cache of built datasets (default: data)")
    parser.add_argument("--examples", type=cli.not_negative, default=1, help="artifacts to show (default: 1)")
    arguments = parser.parse_args()
    return arguments, data_settings(arguments)


def main() -> None:
    arguments, settings = parse()
    dataset = load_dataset(settings, arguments.data_dir)
    print(cli.table(sizes(dataset)))
    decode = decoder(settings, arguments.data_dir)
    for index in range(min(arguments.examples, len(dataset.artifacts))):
        print(f"\n{dataset.kind} artifact {index}, repeated {10 ** int(dataset.artifacts.group[index])} times:")
        print(side_by_side(dataset.artifacts.select(torch.tensor([index])), dataset, decode))
    print(f"\n{measured_text(dataset)}")
    if settings.twin:
        others = "other passages" if dataset.kind == "natural" else "their clean twins"
        print(f"a never-planted twin is trained on {others} in their places")
    print(f"cached: {cache_path(settings, arguments.data_dir)}")


def sizes(dataset: MemorizationDataset) -> list[dict]:
    """Return one row per part of the dataset."""
    parts = {"training, duplicates included": len(dataset), "training, distinct": len(dataset.sequences)}
    parts |= {f"training, task {name}": len(ids) for name, ids in dataset.tasks.items()}
    parts |= {f"artifacts repeated {10**g} times": int((dataset.artifacts.group == g).sum())
              for g in dataset.artifacts.group.unique().tolist()}  # fmt: skip
    parts |= {"artifacts held out for testing": len(dataset.test_artifacts)}
    parts |= {f"test, {name}": len(tokens) for name, tokens in dataset.tests.items()}
    return [{"part": name.ljust(34), "sequences": count} for name, count in parts.items()]


def measured_text(dataset: MemorizationDataset) -> str:
    """Return a sentence on which artifacts count towards % memorized."""
    total, behind = len(dataset.artifacts), f"the {dataset.continuation} tokens after the prompt"
    counted = int(dataset.measured(dataset.artifacts).sum())
    if dataset.kind == "natural":
        return f"{counted} of {total} passages have text in {behind}: these are measured"
    return f"{counted} of {total} artifacts differ from their clean twin in {behind}: these are measured"


def side_by_side(artifact: Artifacts, dataset: MemorizationDataset, decode: Decoder) -> str:
    """Return clean and planted text, aligned by token, with prompt, measured window and differences marked."""
    end, lines, width = int(artifact.prompt_end[0]), [], LINE_WIDTH
    for position, pair in enumerate(zip(artifact.clean[0].tolist(), artifact.planted[0].tolist())):
        clean, planted = (decode([token]) for token in pair)
        size = max(len(clean), len(planted))
        if width + size > LINE_WIDTH:
            lines.append({"clean": "", "planted": "", "window": "", "differs": ""})
            width = 0
        width += size
        measured = end <= position < end + dataset.continuation
        lines[-1]["clean"] += clean.ljust(size)
        lines[-1]["planted"] += planted.ljust(size)
        lines[-1]["window"] += (">" if position < end else "=" if measured else " ") * size
        lines[-1]["differs"] += ("^" if pair[0] != pair[1] else " ") * size
    blocks = ["\n".join(f"{name:<8} {text}".rstrip() for name, text in line.items()) for line in lines]
    return "\n\n".join(blocks) + "\n\n         > prompt, = measured, ^ differs"


if __name__ == "__main__":
    cli.run(main)
