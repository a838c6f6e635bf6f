"""Fetch the sequences that Pythia has memorized, check them, and store them as safetensors.

    python pythia_mem_data/fetch.py
    python pythia_mem_data/fetch.py --from FOLDER      # .pt files on this machine

README.md in this folder describes them and their origin.
"""

from tinymem import cli

# isort: split
import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tinymem.data.token_sets import TokenSet, read_token_set, write_token_set
from tinymem.errors import UserError

URL = "https://raw.githubusercontent.com/terarachang/MemPi/HEAD/data/pile/EleutherAI"
LICENSE = "Apache-2.0, Chang et al. 2024, https://github.com/terarachang/MemPi"
VOCABULARY = 50277  # size of Pythia's tokenizer; the models' embeddings have some extra rows
SECONDS = 30


@dataclass(frozen=True)
class Source:
    """A file in MemPi. sha256: of the .pt file; None if it is unknown."""

    name: str
    folder: str
    file: str
    shape: tuple[int, int]
    sha256: str | None = None


SOURCES = (
    Source(
        "pythia-2.8b-deduped-v0",
        "pythia-2.8b-deduped-v0",
        "pile_bs0-100-dedup.pt",
        (505, 80),
        "e3cce8e4a63161b8afbb2a8da20266a0ff54099497d4842202e61a058736ff4a",
    ),
    Source(
        "pythia-6.9b-deduped",
        "pythia-6.9b-deduped",
        "pile_bs0-100-dedup.pt",
        (505, 80),
        "4b1f6300413ee90eba3603f31e77d7ed562c8343170ef53f9ad5329508ad2de9",
    ),
    Source("pile_random_batch", "pythia-6.9b-deduped", "pile_random_batch.pt", (2048, 128)),
)


def parse():
    parser = cli.Parser(__doc__)
    parser.add_argument("--url", default=URL, help=f"where to fetch from (default: {URL})")
    parser.add_argument("--from", dest="folder", type=Path, help="use the .pt files of this folder instead")
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent, help="default: this script's folder")
    parser.add_argument("--force", action="store_true", help="fetch existing files again")
    return parser.parse_args()


def find(folder: Path, source: Source) -> Path | None:
    """Return the file of a source in a folder that is laid out as in MemPi, or has the model's name as a prefix."""
    plain = (source.file,) if source.sha256 is None else ()
    names = (f"{source.folder}/{source.file}", f"{source.folder}_{source.file}", *plain)
    return next((path for name in names if (path := folder / name).is_file()), None)


def fetch(url: str, path: Path) -> Path:
    """Download a file to `path`. Raise UserError if that fails."""
    from http.client import HTTPException
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=SECONDS) as answer:
            path.write_bytes(answer.read())
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"{url}: cannot be fetched ({reason}); fetch it elsewhere and use --from FOLDER, or name a mirror "
            "with --url"
        ) from None
    return path


def checked(path: Path, source: Source) -> TokenSet:
    """Return the sequences of a .pt file, with their provenance. Raise UserError if they are not MemPi's."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if source.sha256 not in (None, sha256):
        raise UserError(f"{path}: SHA-256 is {sha256}, not {source.sha256}: another file, or damaged on the way")
    tokens = read_token_set(path, VOCABULARY).tokens
    if tuple(tokens.shape) != source.shape:
        raise UserError(f"{path}: has shape {tuple(tokens.shape)}, not {source.shape}")
    provenance = {"source": f"{URL}/{source.folder}/{source.file}", "license": LICENSE, "sha256": sha256}
    return TokenSet(tokens, provenance)


def main() -> None:
    arguments = parse()
    rows = []
    if arguments.folder is not None and not any(find(arguments.folder, source) for source in SOURCES):
        raise UserError(f"--from {arguments.folder}: none of MemPi's files is in there; see pythia_mem_data/README.md")
    for source in SOURCES:
        target = arguments.output_dir / f"{source.name}.safetensors"
        if target.exists() and not arguments.force:
            token_set, state = read_token_set(target, VOCABULARY), "there already"
        elif arguments.folder is not None:
            path = find(arguments.folder, source)
            if path is None:
                rows.append({"file": target.name, "state": f"no {source.file} in {arguments.folder}"})
                continue
            token_set, state = checked(path, source), "converted"
            write_token_set(target, token_set)
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = fetch(f"{arguments.url}/{source.folder}/{source.file}", Path(folder) / source.file)
                token_set, state = checked(path, source), "fetched"
            write_token_set(target, token_set)
        shape = "{} x {}".format(*token_set.tokens.shape)
        rows.append({"file": target.name, "state": state, "tokens": shape, "fingerprint": token_set.fingerprint})
    print(cli.table(rows))


if __name__ == "__main__":
    cli.run(main)
