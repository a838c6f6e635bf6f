"""Windows of documents, and the passages that finds make up, against brute force."""

import numpy as np
import pytest
import torch

from tinymem.data.windows import Passage, cut_windows, passages


def documents(*sizes):
    return [np.arange(100 * number, 100 * number + size, dtype=np.int32) for number, size in enumerate(sizes)]


@pytest.mark.parametrize("stride", [1, 3, 4, 9])
@pytest.mark.parametrize("begin", [(), (7,), (7, 8)])
def test_windows_begin_at_every_document_and_never_span_two(stride, begin):
    some = documents(4, 0, 11, 3, 5)
    windows = cut_windows(iter(some), 4, stride, begin)
    expected = [
        (number, [*begin, *document[start : start + 4].tolist()])
        for number, document in enumerate(some)
        for start in range(0, len(document), stride)
        if start + 4 <= len(document)
    ]
    numbers = torch.arange(len(windows))
    assert windows.rows(numbers).tolist() == [row for _, row in expected]
    assert windows.documents(numbers).tolist() == [number for number, _ in expected]
    assert windows.rows(numbers).dtype == torch.int32


def test_no_more_documents_are_read_than_needed():
    def read():
        yield from documents(6, 6)
        raise AssertionError("one too many")

    windows = cut_windows(read(), 4, 1, most=5)
    assert len(windows) == 5 and windows.bounds.tolist() == [0, 6, 12]
    assert not len(cut_windows([], 4, 1))


def test_overlapping_and_adjoining_finds_are_one_passage():
    windows = cut_windows(documents(30, 12), 4, 1)
    starts = [0, 1, 2, 5, 9, 14, 30, 31, 38]  # 30 and later: in the second document; 26 + 4 = 30 does not join
    found = torch.tensor([start - 3 * (start >= 30) for start in starts[:6]] + [start - 3 for start in starts[6:]])
    assert windows.starts[found].tolist() == starts
    made, chosen = passages(windows, found, 4, ["a", "b"], lambda ids: ",".join(map(str, ids)))
    assert [(each.document, each.offset, each.length, each.windows) for each in made] == [
        ("a", 0, 13, 5), ("a", 14, 4, 1), ("b", 0, 5, 2), ("b", 8, 4, 1),
    ]  # fmt: skip
    assert made[1].text == "14,15,16,17" and made[3].text == "108,109,110,111"
    assert windows.starts[chosen].tolist() == [0, 5, 9, 14, 30, 38]


def test_a_passage_ends_where_its_last_tested_token_is():
    windows = cut_windows(documents(30), 10, 1)  # rows are longer than what is tested
    made, chosen = passages(windows, torch.tensor([0, 4, 9]), 4, ["a"], None)
    assert made == [Passage("a", 0, 8, 2, None), Passage("a", 9, 4, 1, None)]
    assert chosen.tolist() == [0, 9]  # the row at 4 would overlap that at 0
    assert passages(windows, torch.arange(0), 4, ["a"], None)[0] == []
