"""Find sequences that a model has memorized, in any text or file of token ids, and store them for prod_grad.py.

    python pythia_mem_data/find_memorized.py --model_name EleutherAI/pythia-70m --corpus books/ --output found.safetensors

A row of --length tokens is memorized if the model, prompted with its first --prompt_tokens tokens, gives the next
--continuation_tokens exactly. A batch needs one forward pass. An interrupted run resumes with the same command.
"""

from __future__ import annotations

from tinymem import cli

# isort: split
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tinymem import allocator, files
from tinymem.data.corpus import find_corpus
from tinymem.data.production import begun, check_ids, check_length, text_rows
from tinymem.data.settings import DataSettings
from tinymem.data.token_sets import TokenSet, read_token_set, write_token_set
from tinymem.data.tokenizer import beginning, bos_identity
from tinymem.errors import UserError
from tinymem.localize.task import default_microbatch
from tinymem.metrics.scan import find_memorized
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.models.production import LoadSettings, model_identity, open_causal_lm, open_description
from tinymem.options import check_options, option


@dataclass(frozen=True)
class ScanSettings:
    """Text to search"""

    tokens: str | None = option(
        None, "file of token ids (.safetensors or .pt), (rows, tokens); otherwise text of --corpus"
    )
    corpus: str | None = option(None, "hub, builtin or a path; default: hub, or builtin if it cannot be reached")
    text_column: str = option("text", "column of a .jsonl or .parquet corpus")
    length: int = option(80, "tokens in a row of text", low=2)
    max_rows: int | None = option(None, "search at most this many rows; default: all", low=1)
    bos: str = option(
        "auto",
        "whether every row begins with <bos>, before its own tokens; auto: if the model's tokenizer adds it",
        choices=("auto", "yes", "no"),
    )
    prompt_tokens: int = option(32, "n of (n, k) memorization", low=1)
    continuation_tokens: int = option(40, "k of (n, k) memorization", low=1)
    min_distinct: int = option(8, "distinct tokens that a continuation must have; 1 accepts constant ones too", low=1)

    def __post_init__(self) -> None:
        check_options(self)
        if self.tokens is None and self.length < self.needed:
            raise UserError(f"--length {self.length}: prompt and continuation need {self.needed} tokens")
        if self.tokens is not None and self.corpus is not None:
            raise UserError("--tokens, --corpus: give one of them")

    @property
    def needed(self) -> int:
        """The number of tokens that are tested."""
        return self.prompt_tokens + self.continuation_tokens


def parse():
    parser = cli.Parser(__doc__)
    parser.add_argument("--model_name", required=True, help="a model's name on the hub, or a folder")
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--batch_size", type=cli.positive, help="rows per forward pass (default: from the model's size)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--force", action="store_true", help="repeat finished work")
    cli.add_options(parser, LoadSettings)
    cli.add_options(parser, ScanSettings)
    return parser.parse_args()


def load_rows(settings: ScanSettings, config, tokenizer, begin: tuple[int, ...] = ()) -> tuple[torch.Tensor, str]:
    """Return the rows to search, int32 (rows, T), and the name of their source. config: the model's.

    begin: the ids at the beginning of each row.
    """
    check_length("--prompt_tokens, --continuation_tokens", len(begin) + settings.needed, config)
    if settings.tokens is not None:
        rows = read_token_set(settings.tokens, config.vocab_size, settings.needed).tokens
        name = Path(settings.tokens).name
    elif tokenizer is None:
        raise UserError(
            "--corpus: this model's folder has no tokenizer to read text with; give token ids with --tokens"
        )
    else:
        corpus = find_corpus(DataSettings(data_name="wiki", corpus=settings.corpus, text_column=settings.text_column))
        rows, name = text_rows(tokenizer, corpus.documents(), settings.length, settings.max_rows), corpus.name
        if not len(rows):
            raise UserError(f"--corpus: {name!r} is too short for a row of {settings.length} tokens; give more text")
        check_ids("--corpus", config.vocab_size, rows)
    rows = begun(rows[: settings.max_rows], begin)
    if rows.shape[1] < len(begin) + settings.needed:
        raise UserError(f"--tokens: <bos>, prompt and continuation need {len(begin) + settings.needed} tokens per row")
    return rows, name


def main() -> None:
    arguments = parse()
    loading, settings = cli.collect(LoadSettings, arguments), cli.collect(ScanSettings, arguments)
    if arguments.output.suffix != ".safetensors":
        raise UserError(f"--output {arguments.output}: must end in .safetensors")
    if arguments.output.exists() and not arguments.force:
        raise UserError(f"--output {arguments.output}: exists already; --force searches again")
    allocator.keep_freed_memory()
    device = cli.resolve_device(arguments.device)
    config, tokenizer = open_description(arguments.model_name, loading.step, for_text=settings.tokens is None)
    begin = beginning(settings.bos, tokenizer, config)
    rows, source = load_rows(settings, config.get_text_config(), tokenizer, begin)
    model, _ = open_causal_lm(arguments.model_name, device=device, **vars(loading))
    about = {
        "model_name": model_identity(arguments.model_name), **asdict(loading), "source": source, "rows": len(rows),
        "prompt_tokens": settings.prompt_tokens, "continuation_tokens": settings.continuation_tokens,
        "min_distinct": settings.min_distinct, "weights": weights_fingerprint(model),
        "searched": TokenSet(rows, {}).fingerprint, **bos_identity(begin),
    }  # fmt: skip
    arguments.output.unlink(missing_ok=True)  # with --force: remove the mark of finished work first
    progress = arguments.output.with_name(f".{arguments.output.stem}.progress.json")
    batch_size = arguments.batch_size or default_microbatch(model, rows.shape[1])
    with cli.progress_bar(total=len(rows), unit="row") as bar:

        def show(done: int, found: int) -> None:
            bar.set_postfix_str(f"{found} memorized", refresh=False)
            bar.update(done - bar.n)

        found = find_memorized(
            model, rows, len(begin) + settings.prompt_tokens, settings.continuation_tokens, progress, files.digest(about),
            batch_size, settings.min_distinct, show,
        )  # fmt: skip
    print(f"{len(found)} of {len(rows)} rows are ({settings.prompt_tokens}, {settings.continuation_tokens}) memorized")
    if len(found):
        write_token_set(arguments.output, TokenSet(rows[found].unique(dim=0), about))
        print(f"written to {arguments.output}")


if __name__ == "__main__":
    cli.run(main)
