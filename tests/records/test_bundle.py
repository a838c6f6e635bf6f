"""Many records in one file, read like a folder of them."""

import gzip
import os

import pytest
from handmade import checkpoint, outcome, unlearning

from tinymem.errors import UserError
from tinymem.records.bundle import find_bundles, read_bundle, write_bundle
from tinymem.records.gather import gather
from tinymem.records.table import load_records


def some(folder):
    unlearning(folder, checkpoint(), {("unedited",): outcome(90.0), ("durable", ("ratio", 0.1)): outcome(10.0)})
    return load_records(folder)


def test_a_bundle_is_read_like_its_records(tmp_path):
    records = some(tmp_path / "runs")
    path = write_bundle(tmp_path / "out" / "case", records)
    assert path.read_bytes() == write_bundle(tmp_path / "other", reversed(records)).read_bytes()
    assert find_bundles(tmp_path / "out") == [path]
    assert sorted(map(str, read_bundle(path))) == sorted(map(str, records))
    columns, rows = gather(tmp_path / "out")
    assert sorted(row["record"] for row in rows) == sorted(
        f"case/records/{row['record'].rpartition('/')[2]}" for row in gather(tmp_path / "runs")[1]
    )


def test_a_record_counts_once(tmp_path):
    records = some(tmp_path / "runs")
    write_bundle(tmp_path / "runs", records)
    write_bundle(tmp_path / "runs" / "again", records)
    assert len(load_records(tmp_path / "runs")) == len(records) == 2


@pytest.mark.parametrize("content", [b"no gzip", b"{", b'{"format": 2}\n'])
def test_damage_is_one_line(tmp_path, content):
    path = write_bundle(tmp_path, some(tmp_path / "runs"))
    path.write_bytes(content if content == b"no gzip" else gzip.compress(content))
    with pytest.raises(UserError, match="records.jsonl.gz: (cannot be read|this file is damaged .*; make it again)"):
        load_records(tmp_path)


def test_only_regular_files_and_finite_numbers_are_read(tmp_path):
    os.mkfifo(tmp_path / "records.jsonl.gz")
    with pytest.raises(UserError, match="records.jsonl.gz: "):
        load_records(tmp_path)
    (tmp_path / "records.jsonl.gz").unlink()
    (tmp_path / "records.jsonl.gz").write_bytes(gzip.compress(b'{"format": 2, "results": {"perplexity": NaN}}\n'))
    with pytest.raises(UserError, match="NaN"):
        load_records(tmp_path)
