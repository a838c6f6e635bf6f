"""Token ids in files: round trip, and every way in which a file can be wrong."""

import pytest
import torch
from safetensors.torch import save_file

from tinymem.data.token_sets import TokenSet, read_token_set, write_token_set
from tinymem.errors import UserError

TOKENS = torch.arange(24).view(3, 8)


def test_round_trip_keeps_tokens_and_provenance(tmp_path):
    written = TokenSet(TOKENS.int(), {"source": "here", "rows": 3})
    read = read_token_set(write_token_set(tmp_path / "a.safetensors", written), vocabulary_size=24, length=8)
    assert torch.equal(read.tokens, TOKENS) and read.tokens.dtype == torch.int32
    assert read.provenance == written.provenance and read.fingerprint == written.fingerprint


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8, torch.uint16, torch.uint32])
def test_a_pt_file_of_any_integer_type_is_the_same_set(tmp_path, dtype):
    torch.save(TOKENS.to(dtype), tmp_path / "a.pt")
    read = read_token_set(tmp_path / "a.pt")
    assert read.fingerprint == TokenSet(TOKENS.int(), {}).fingerprint and read.provenance == {"file": "a.pt"}


def test_the_fingerprint_sees_content_and_shape():
    prints = [TokenSet(t.int(), {}).fingerprint for t in (TOKENS, TOKENS.view(8, 3), TOKENS + 1)]
    assert len(set(prints)) == 3


@pytest.mark.parametrize(
    "content, message",
    [
        (TOKENS.float(), "holds float32 values, not integer token ids"),
        (TOKENS > 2, "holds bool values"),
        (TOKENS[0], r"has shape \(8,\), not \(sequences, tokens\)"),
        (TOKENS[:0], r"has shape \(0, 8\)"),
        (TOKENS - 1, "token id -1 is outside"),
        (TOKENS + 1, "token id 24 is outside the model's vocabulary of 24"),
        (TOKENS[:, :5], "have 5 tokens, prompt and continuation need 8; lower --prompt_tokens"),
        ([1, 2], "holds a list, not one tensor"),
        ({"a": TOKENS}, "holds a dict, not one tensor"),
    ],
)
def test_wrong_content(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError, match=message):
        read_token_set(tmp_path / "a.pt", vocabulary_size=24, length=8)


def test_damaged_missing_and_foreign_files(tmp_path):
    for name in ("a.pt", "a.safetensors"):
        with pytest.raises(UserError, match="no such file"):
            read_token_set(tmp_path / name)
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
        with pytest.raises(UserError, match="damaged"):
            read_token_set(tmp_path / name)
    with pytest.raises(UserError, match=r"kept in \.safetensors or \.pt"):
        read_token_set(tmp_path / "a.npy")
    save_file({"a": TOKENS, "b": TOKENS + 1}, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match="holds 2 tensors"):
        read_token_set(tmp_path / "two.safetensors")
