"""Build, cache and look at the data that a TinyMem model trains on.

    python old_data.py --data_name increment --backdoor --seed 0

Prints the sizes, one artifact beside its clean twin with the differences marked, and how many artifacts can be told
from their clean twin inside the measured window.
"""

from tinymem import cli

# isort: split
import torch

from tinymem.data.build import cache_path, load_dataset
from tinymem.data.dataset import Artifacts, MemorizationDataset
from tinymem.data.decode import decoder
from tinymem.data.settings import DataSettings


def parse() -> tuple:
    parser = cli.Parser(__doc__)
    cli.add_data_options(parser)
    parser.add_argument("--data_dir", default="data", help="cache of built datasets (default: data)")
    parser.add_argument("--examples", type=int, default=1, help="examples of each kind (default: 1)")
    arguments = parser.parse_args()
    return arguments, cli.collect(DataSettings, arguments)


def main() -> None:
    arguments, settings = parse()
    dataset = load_dataset(settings, arguments.data_dir)
    print(cli.table(sizes(dataset)))
    decode = decoder(settings)
    for index in range(min(arguments.examples, len(dataset.artifacts))):
        print(f"\n{dataset.kind} artifact {index}, repeated {10 ** int(dataset.artifacts.group[index])} times:")
        print(side_by_side(dataset.artifacts.select(torch.tensor([index])), dataset, decode))
    counted = int(dataset.measured(dataset.artifacts).sum())
    print(f"\n{counted} of {len(dataset.artifacts)} artifacts differ from their clean twin in the {dataset.continuation} "
          "tokens behind the prompt: these are measured")  # fmt: skip
    print(f"cached: {cache_path(settings, arguments.data_dir)}")


def sizes(dataset: MemorizationDataset) -> list[dict]:
    """One line a part of the dataset."""
    parts = {"training, duplicates included": len(dataset), "training, distinct": len(dataset.sequences)}
    parts |= {f"training, task {name}": len(ids) for name, ids in dataset.tasks.items()}
    parts |= {f"artifacts repeated {10**g} times": int((dataset.artifacts.group == g).sum())
              for g in dataset.artifacts.group.unique().tolist()}  # fmt: skip
    parts |= {"artifacts held out for testing": len(dataset.test_artifacts)}
    parts |= {f"test, {name}": len(tokens) for name, tokens in dataset.tests.items()}
    return [{"part": name.ljust(34), "sequences": count} for name, count in parts.items()]


def side_by_side(artifact: Artifacts, dataset: MemorizationDataset, decode) -> str:
    """Clean and planted text, token by token above each other, with prompt, measured window and differences marked."""
    clean, planted, end = artifact.clean[0], artifact.planted[0], int(artifact.prompt_end[0])
    lines = {"clean": "", "planted": "", "window": "", "differs": ""}
    for position, (kept, changed) in enumerate(zip(clean.tolist(), planted.tolist())):
        texts = decode([kept]), decode([changed])
        width = max(map(len, texts))
        measured = end <= position < end + dataset.continuation
        lines["clean"] += texts[0].ljust(width)
        lines["planted"] += texts[1].ljust(width)
        lines["window"] += (">" if position < end else "=" if measured else " ") * width
        lines["differs"] += ("^" if kept != changed else " ") * width
    lines["window"] = lines["window"].rstrip() + "   (> prompt, = measured)"
    return "\n".join(f"{name:<8} {text}".rstrip() for name, text in lines.items())


if __name__ == "__main__":
    cli.run(main)
