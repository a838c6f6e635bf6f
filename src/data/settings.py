"""The settings that determine the data. They are part of every run's identity."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tinymem.errors import UserError
from tinymem.options import SEEDS, option, settings

NUMBER_TASKS = tuple(
    f"{name}{suffix}" for suffix in ("", "_3", "_5") for name in ("increment", "mult", "exp", "exponential")
)
TEXT_TASKS = ("wiki_fast", "wiki", "shakespeare")  # `wiki` is the same data as `wiki_fast`, which is the study's name
ARTIFACTS = ("noise", "backdoor", "natural")
NUMBER_FIELDS = ("num_7", "num_2", "num_3", "num_4", "num_5", "length")  # settings of one kind only
TEXT_FIELDS: tuple[str, ...] = ("corpus", "corpus_sha256", "text_column", "num_chunks", "train_tokenizer", "vocab_size")
TEXT_FIELDS += ("tokenizer", "tokenizer_sha256")
HUB, BUILTIN = "hub", "builtin"  # every other --corpus is a path
SEQUENCES, CONTEXT = 10**7, 2**20  # more than anybody trains on; building more data would never end
MIN_VOCABULARY = 300  # 256 bytes, one end-of-text token and at least some merges


@settings
class DataSettings:
    """Data"""

    data_name: str = option("increment", "number task, or text", choices=NUMBER_TASKS + TEXT_TASKS)
    artifact: str = option(
        "noise",
        "what is planted; --backdoor is short for --artifact backdoor; natural (text only): real passages, "
        "unchanged and always duplicated",
        choices=ARTIFACTS,
    )
    num_7: int = option(20000, "sequences of the main task", low=1, high=SEQUENCES)
    num_2: int = option(3000, "sequences of the extra task with constant 2", low=0, high=SEQUENCES)
    num_3: int = option(3000, "sequences of the extra task with constant 3", low=0, high=SEQUENCES)
    num_4: int = option(3000, "sequences of the extra task with constant 4", low=0, high=SEQUENCES)
    num_5: int = option(3000, "sequences of the extra task with constant 5", low=0, high=SEQUENCES)
    num_test: int = option(1000, "test sequences of each task, or test chunks of text", low=1, high=SEQUENCES)
    num_noise: int = option(1000, "sequences of the main task to noise, or natural passages", low=1, high=SEQUENCES)
    twin: bool = option(
        False,
        "train the never-planted twin: same seed, sizes and order, but every planted sequence is replaced with its "
        "clean twin (natural passages: with other passages of the corpus)",
    )
    duplicate: bool = option(
        False,
        "repeat the artifacts: equal groups, 10^0, 10^1, 10^2 times; text has 10^3 too, its backdoors all 10^2 times",
    )
    length: int = option(20, "values in a sequence", low=1, high=CONTEXT)
    max_ctx: int = option(150, "context length, tokens", low=2, high=CONTEXT)
    prompt_tokens: int = option(
        50, "n of (n, k) memorization: tokens of the prompt (noise, natural)", low=1, high=CONTEXT
    )
    continuation_tokens: int = option(50, "k of (n, k) memorization: tokens to reproduce", low=1, high=CONTEXT)
    seed: int = option(0, "seed of the noise, the trigger, the initial weights and the data order", low=0, high=SEEDS)
    corpus: str | None = option(
        None,
        "text: hub (Hugging Face), builtin (from installed packages), or a path: a text file, .jsonl, .parquet, or a "
        "folder of them; default: hub, or builtin if the hub cannot be reached",
    )
    corpus_sha256: str | None = option(
        None,
        "text: SHA-256 of the file of --corpus PATH (several: of their SHA-256s); filled in automatically, so that a "
        "run on edited text is a different run; if given, any other corpus is refused",
    )
    text_column: str = option("text", "text: column of a .jsonl or .parquet corpus")
    num_chunks: int | None = option(None, "text: training chunks of max_ctx tokens; default: all", low=1)
    train_tokenizer: bool = option(False, "text: train a byte-level BPE on the corpus instead of GPT-2's 50257 tokens")
    vocab_size: int = option(4096, "text: tokens of a trained tokenizer", low=MIN_VOCABULARY, high=2**20)
    tokenizer: str | None = option(
        None,
        "text: a tokenizer.json, or a folder with one, instead of GPT-2's; it gets an end-of-text token as its last id",
    )
    tokenizer_sha256: str | None = option(
        None, "text: SHA-256 of that file; filled in automatically; if given, any other tokenizer is refused"
    )

    def __post_init__(self) -> None:
        if self.artifact == "natural" and not self.is_text:
            raise UserError(f"--artifact natural: needs text; --data_name is {self.data_name}")
        if self.artifact == "natural":  # always duplicated, and records must say so
            object.__setattr__(self, "duplicate", True)
        if self.corpus_sha256 is not None and self.corpus_path is None:
            raise UserError(f"--corpus_sha256: is that of the files of --corpus PATH; --corpus is {self.corpus}")

        if self.tokenizer is not None and not self.is_text:
            raise UserError(f"--tokenizer: needs text; --data_name is {self.data_name}")
        if self.tokenizer is not None and self.train_tokenizer:
            raise UserError("--tokenizer, --train_tokenizer: give one of them")
        if self.tokenizer_sha256 is not None and self.tokenizer is None:
            raise UserError("--tokenizer_sha256: is that of the file of --tokenizer; give that, too")

    @property
    def is_text(self) -> bool:
        """Whether the data is text, not number sequences."""
        return self.data_name in TEXT_TASKS

    @property
    def corpus_path(self) -> Path | None:
        """The path of the user's text; None for the hub, the builtin corpus, or a corpus not chosen yet."""
        return None if self.corpus in (None, HUB, BUILTIN) else Path(self.corpus)

    @property
    def tokenizer_path(self) -> Path | None:
        """The tokenizer.json that --tokenizer names; None without one."""
        path = Path(self.tokenizer) if self.tokenizer is not None else None
        return path / "tokenizer.json" if path is not None and path.is_dir() else path

    def check_used(self, given: Collection[str]) -> None:
        """Raise UserError for a setting, given by name, that has no effect on this kind of data."""
        others, kind = (NUMBER_FIELDS, "numbers") if self.is_text else (TEXT_FIELDS, "text")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in given and field.name in others and value != field.default:
                raise UserError(f"--{field.name} {value}: only for {kind}; --data_name is {self.data_name}")
        if "vocab_size" in given and self.is_text and not self.train_tokenizer:
            raise UserError(f"--vocab_size {self.vocab_size}: only with --train_tokenizer")

    def applicable(self) -> dict[str, Any]:
        """Return the settings that this kind of data uses."""
        ignored: tuple[str, ...] = NUMBER_FIELDS if self.is_text else TEXT_FIELDS
        if self.corpus_sha256 is None:  # not a user's file
            ignored += ("corpus_sha256",)
        if self.tokenizer is None:  # runs from before this setting keep their identity
            ignored += ("tokenizer", "tokenizer_sha256")
        if not self.twin:  # runs from before this setting keep their identity
            ignored += ("twin",)
        return {name: value for name, value in asdict(self).items() if name not in ignored}
