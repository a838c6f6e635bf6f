"""Find what a model has memorized of any text or file of token ids, and store it for prod_grad.py.

    python pythia_mem_data/find_memorized.py --model_name EleutherAI/pythia-70m --corpus books/ \\
        --output found.safetensors

A window of --length tokens begins every --stride tokens of each document; no window spans two documents. A window is
memorized if the model, prompted with exactly its first --prompt_tokens tokens, reproduces the next
--continuation_tokens. `--stride 1` tests every offset. Overlapping memorized windows form one passage. Its text,
document, offset and length are printed and written to found.jsonl. The same command resumes an interrupted run.

Several workers can share one corpus: start the same command with --shard 1/4, 2/4, 3/4 and 4/4, on any machines that
share the folder of --output. The last one to finish writes the combined result.
"""

from __future__ import annotations

from tinymem import cli

# isort: split
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tinymem import allocator, files
from tinymem.data.decode import printable
from tinymem.data.documents import Documents, corpus_documents, dataset_documents, token_documents
from tinymem.data.production import check_ids, check_length
from tinymem.data.search_result import (
    SearchResult,
    merge_results,
    passages_file,
    publish,
    read_results,
    worker_file,
    write_result,
)
from tinymem.data.settings import BUILTIN, HUB
from tinymem.data.tokenizer import beginning, bos_identity
from tinymem.data.windows import Windows, cut_windows, passages
from tinymem.errors import UserError
from tinymem.folders import check_outputs, check_writable
from tinymem.localize.task import default_microbatch
from tinymem.metrics.scan import BLOCK, find_memorized
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.models.production import LoadSettings, model_identity, open_causal_lm, open_description
from tinymem.options import check_options, option

PRINTED, SHOWN = 20, 100  # number of passages to print, and characters of each
DISTINCT = 8  # default of min_distinct
PLACES = ("tokens", "corpus", "dataset")


@dataclass(frozen=True)
class ScanSettings:
    """Text to search"""

    tokens: str | None = option(
        None, "file of token ids (.safetensors or .pt), (rows, tokens), each row a document; default: text of --corpus"
    )
    corpus: str | None = option(
        None,
        "hub, builtin or a path: a .txt, .md, .jsonl or .parquet file, or a folder of them; default: hub, or builtin "
        "if it cannot be reached",
    )
    dataset: str | None = option(None, "a Hugging Face dataset, such as Salesforce/wikitext; each row is a document")
    dataset_config: str | None = option(None, "configuration of the dataset, such as wikitext-2-v1")
    dataset_split: str = option("train", "split of the dataset")
    text_column: str = option("text", "column of a .jsonl or .parquet corpus, or of a dataset")
    stride: int | None = option(
        None, "tokens from one window of a document to the next; 1: every offset; default: windows side by side", low=1
    )
    length: int | None = option(
        None,
        "tokens in a window, of which the first n + k are tested; default: n + k; of --tokens without --stride: whole "
        "rows",
        low=2,
    )
    screen: float = option(
        0.0,
        "for speed: test a window only if a pass over a long piece of the document, with more text before the prompt, "
        "reproduces this share of its continuation; may miss some windows; 0: test every window",
        low=0.0,
        high=1.0,
    )
    max_rows: int | None = option(
        None, "test at most this many windows (with --shard, in each worker); default: all", low=1
    )
    shard: str | None = option(None, "I/N: this is worker I of N on the same corpus; each takes every Nth document")
    bos: str = option(
        "auto",
        "whether every window begins with <bos>, before its own tokens; auto: if the model's tokenizer adds <bos>",
        choices=("auto", "yes", "no"),
    )
    prompt_tokens: int = option(32, "n of (n, k) memorization", low=1)
    continuation_tokens: int = option(40, "k of (n, k) memorization", low=1)
    min_distinct: int | None = option(
        None,
        "distinct tokens that a continuation must have; 1 also accepts constant ones; default: 8, at most half of k",
        low=1,
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.length is not None and self.length < self.needed:
            raise UserError(f"--length {self.length}: prompt and continuation need {self.needed} tokens")
        given = [name for name in PLACES if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"{', '.join(f'--{name}' for name in given)}: give one of them")
        if self.distinct > self.continuation_tokens:
            raise UserError(
                f"--min_distinct {self.min_distinct}: no continuation of {self.continuation_tokens} tokens has so many"
            )
        worker, workers = self.worker
        if not 1 <= worker <= workers:
            raise UserError(
                f"--shard {self.shard}: must be I/N, this worker's number and how many there are, as in 1/4"
            )

    @property
    def needed(self) -> int:
        """The number of tokens that are tested."""
        return self.prompt_tokens + self.continuation_tokens

    @property
    def distinct(self) -> int:
        """The number of distinct tokens that a continuation must have."""
        return self.min_distinct or max(1, min(DISTINCT, self.continuation_tokens // 2))

    @property
    def worker(self) -> tuple[int, int]:
        """This worker's number and the number of workers; (0, 0) for a --shard that is not I/N."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.shard or "1/1", re.ASCII)
        return (int(match[1]), int(match[2])) if match else (0, 0)


def parse():
    parser = cli.Parser(__doc__)
    parser.add_argument("--model_name", required=True, help="a model's name on the hub, or a folder")
    parser.add_argument(
        "--output", type=Path, required=True, help="the .safetensors file to write; passages go to .jsonl beside it"
    )
    parser.add_argument(
        "--batch_size", type=cli.positive, help="windows per forward pass (default: from the model's size)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--force", action="store_true", help="repeat finished work; replace what is there")
    cli.add_options(parser, LoadSettings)
    cli.add_options(parser, ScanSettings)
    return parser.parse_args()


def check_output(arguments, settings: ScanSettings) -> None:
    """Raise UserError if the output cannot be written, or would replace an input or, without --force, another file."""
    output, (worker, workers) = arguments.output, settings.worker
    outputs = [output, passages_file(output)]
    inputs = [arguments.model_name, settings.tokens, settings.dataset]
    inputs += [] if settings.corpus in (HUB, BUILTIN) else [settings.corpus]
    own = [worker_file(output, worker, workers)] if workers > 1 else []
    check_outputs("--output", outputs + own, [place for place in inputs if place is not None])
    there = [path for path in outputs if path.exists()]
    if there and not arguments.force:
        raise UserError(f"--output {output}: {there[0]} exists already; --force searches again and replaces it")
    check_writable(output.parent, flag=" with --output")


def load_documents(settings: ScanSettings, config, tokenizer) -> Documents:
    """Return the documents of all workers. config: the model's (text part)."""
    if settings.tokens is not None:
        return token_documents(settings.tokens, config.vocab_size)
    if tokenizer is None:
        flag = "dataset" if settings.dataset else "corpus"
        raise UserError(
            f"--{flag}: this model's folder has no tokenizer to read text with; give token ids with --tokens"
        )
    if settings.dataset is not None:
        return dataset_documents(
            settings.dataset, settings.dataset_config, settings.dataset_split, settings.text_column
        )
    return corpus_documents(settings.corpus, settings.text_column)


def load_windows(
    settings: ScanSettings, documents: Documents, config, tokenizer, begin: tuple[int, ...] = ()
) -> Windows:
    """Return the windows of this worker's documents. Raise UserError for windows that do not fit the model.

    begin: the ids at the start of each window.
    """
    streams = documents.share(*settings.worker).tokens(tokenizer)
    length = settings.length or settings.needed
    if settings.tokens is not None:
        rows = without(documents.content, begin)
        streams = iter(rows[settings.worker[0] - 1 :: settings.worker[1]])
        if settings.length is None and settings.stride is None:
            length = len(rows[0])
        if len(rows[0]) < settings.needed:
            raise UserError(
                f"--tokens: <bos>, prompt and continuation need {len(begin) + settings.needed} tokens per row"
            )
    windows = cut_windows(streams, length, settings.stride or length, begin, settings.max_rows)
    check_ids("--corpus" if settings.dataset is None else "--dataset", config.vocab_size, windows.stream)
    return windows


def without(rows: list[np.ndarray], begin: tuple[int, ...]) -> list[np.ndarray]:
    """Return rows of token ids without the ids `begin`, if all rows begin with them."""
    if all(tuple(row[: len(begin)].tolist()) == begin for row in rows):
        return [row[len(begin) :] for row in rows]
    return rows


def search(
    arguments, settings: ScanSettings, model, windows: Windows, names: list[str], key: str, decode
) -> SearchResult:
    """Search the windows and show the progress. key: identifies the search of all workers. names: the documents'."""
    worker, workers = settings.worker
    own = files.digest({"key": key, "worker": worker, "workers": workers})
    progress = arguments.output.with_name(f".{arguments.output.stem}.{worker}of{workers}.progress.json")
    batch_size = arguments.batch_size or default_microbatch(model, len(windows.begin) + settings.needed)
    with cli.Display("finding", len(windows), "window") as display:

        def show(done: int, count: int) -> None:
            if display.meter.done == 0 and done > BLOCK * batch_size:  # resumed
                display.meter.begun = display.meter.done = done
            tokens = (done - display.meter.done) * (len(windows.begin) + settings.needed)
            display.to(done, tokens, f"{count} memorized")

        memorized = find_memorized(
            model, windows, settings.prompt_tokens, settings.continuation_tokens, progress, own, batch_size,
            settings.distinct, settings.screen, show,
        )  # fmt: skip
    made, chosen = passages(windows, memorized, settings.needed, names, decode)
    sizes = windows.bounds.diff()
    return SearchResult(
        key=key,
        documents=len(sizes),
        short=int((sizes < windows.width).sum()),
        tokens=len(windows.stream),
        windows=len(windows),
        memorized=len(memorized),
        passages=[asdict(passage) for passage in made],
        rows=windows.rows(chosen).tolist(),
    )


def together(
    arguments, settings: ScanSettings, names: Sequence[str], key: str, look: Callable[[], SearchResult]
) -> SearchResult | None:
    """Do this worker's part, unless it is done. Return what all workers found, or None if some have not finished.

    names: of all workers' documents.
    """
    worker, workers = settings.worker
    own = worker_file(arguments.output, worker, workers)
    if arguments.force:
        own.unlink(missing_ok=True)
    if worker not in read_results(arguments.output, workers, key):
        write_result(own, look())
    results = read_results(arguments.output, workers, key)
    missing = [f"{number}/{workers}" for number in range(1, workers + 1) if number not in results]
    if missing:
        memorized, windows = results[worker].memorized, results[worker].windows
        print(f"shard {settings.shard}: {memorized} of {windows} windows are memorized; not done: {', '.join(missing)}")
        return None
    return merge_results(list(results.values()), names)


def report(result: SearchResult, settings: ScanSettings, width: int) -> str:
    """Return lines on what was searched and found."""
    n, k, stride = settings.prompt_tokens, settings.continuation_tokens, settings.stride or width
    where = "at every token" if stride == 1 else f"every {stride} tokens"
    lines = [
        f"looked at {counted(result.windows, 'window')} in {counted(result.documents, 'document')} of {result.tokens} "
        f"tokens together: one begins {where} of a document; it is {width} tokens, the first {n} the prompt and the "
        f"next {k} what must come out"
    ]
    if result.short:
        have, hold = ("has", "holds") if result.short == 1 else ("have", "hold")
        lines.append(f"{counted(result.short, 'document')} {have} fewer than {width} tokens and {hold} no window")
    if settings.distinct > 1:
        lines.append(
            f"a continuation of fewer than {settings.distinct} distinct tokens does not count (--min_distinct)"
        )
    if settings.screen:
        lines.append(
            f"windows were tested only where {settings.screen:g} of the continuation came out in one long pass"
        )
    documents = len({passage["document"] for passage in result.passages})
    lines.append(
        f"{result.memorized} of {counted(result.windows, 'window')} are ({n}, {k}) memorized: "
        f"{counted(len(result.passages), 'passage')} in {counted(documents, 'document')}"
    )
    for passage in result.passages[:PRINTED]:
        text = printable(passage["text"] or "")
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
        lines.append(f"  {passage['document']}, offset {passage['offset']}, {passage['length']} tokens: {shown}")
    if len(result.passages) > PRINTED:
        lines.append(f"  and {len(result.passages) - PRINTED} more")
    if stride > 1 and (settings.tokens is None or settings.stride):  # otherwise windows are whole rows
        lines.append(
            f"what begins between two windows may be missed: --stride 1 looks at every token, not every {stride}"
        )
    return "\n".join(lines)


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, such as "2 windows"."""
    return f"{count} {noun}" + "s" * (count != 1)


def main() -> None:
    arguments = parse()
    loading, settings = cli.collect(LoadSettings, arguments), cli.collect(ScanSettings, arguments)
    worker, workers = settings.worker
    if arguments.output.suffix != ".safetensors":
        raise UserError(f"--output {arguments.output}: must end in .safetensors")
    check_output(arguments, settings)
    allocator.keep_freed_memory()
    device = cli.resolve_device(arguments.device)
    config, tokenizer = open_description(arguments.model_name, loading.step, for_text=settings.tokens is None)
    begin = beginning(settings.bos, tokenizer, config)
    check_length("--prompt_tokens, --continuation_tokens", len(begin) + settings.needed, config.get_text_config())
    documents = load_documents(settings, config.get_text_config(), tokenizer)
    windows = load_windows(settings, documents, config.get_text_config(), tokenizer, begin)
    if not len(windows) and workers == 1:
        raise UserError(
            f"{documents.source}: no document has {windows.width} tokens, as a window needs; give longer text"
        )
    model, _ = open_causal_lm(arguments.model_name, device=device, **vars(loading))
    about = {
        "model_name": model_identity(arguments.model_name), **asdict(loading), "source": documents.source,
        **{name: getattr(settings, name) for name in ("prompt_tokens", "continuation_tokens")},
        "min_distinct": settings.distinct,
        "stride": settings.stride or windows.width, "length": windows.width, "screen": settings.screen,
        "max_rows": settings.max_rows, "weights": weights_fingerprint(model), "searched": documents.fingerprint,
        **bos_identity(begin),
    }  # fmt: skip
    key = files.digest(about)
    arguments.output.unlink(missing_ok=True)  # with --force: remove the mark of finished work first
    names = documents.share(worker, workers).names
    look = partial(search, arguments, settings, model, windows, names, key, tokenizer and tokenizer.decode)
    whole = look() if workers == 1 else together(arguments, settings, documents.names, key, look)
    if whole is None:
        return
    passages_file = publish(arguments.output, whole, about)
    print(report(whole, settings, windows.width))
    print(f"written to {passages_file}" + (f" and {arguments.output}" if whole.rows else ""))


if __name__ == "__main__":
    cli.run(main)
