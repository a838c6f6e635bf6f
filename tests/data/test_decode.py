import json

import torch

from tinymem.data.chunks import load_tokenizer
from tinymem.data.decode import decoder, printable
from tinymem.data.settings import DataSettings


def test_white_space_and_stray_bytes_are_printable():
    assert printable("two words\n\tnext\x00\x85") == "two words⏎⇥next��"


def test_numbers():
    assert decoder(DataSettings(), None)([10, 1, 7, 12, 2, 4, 11, 13]) == "^17 24$_"


def test_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"line {number}\nnaïve"}) for number in range(30)))
    settings = DataSettings(data_name="wiki", corpus=str(path), train_tokenizer=True, vocab_size=300)
    tokens = load_tokenizer(settings, tmp_path).encode("line\n naïve")
    assert decoder(settings, tmp_path)(torch.tensor(tokens)) == "line⏎ naïve"
