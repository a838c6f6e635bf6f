"""find_memorized.py end to end: what it writes is what prod_grad.py reads."""

import json

import pytest
import torch
from small import in_process

from tinymem.data.token_sets import TokenSet, read_token_set, write_token_set

SCRIPT = "pythia_mem_data/find_memorized.py"
WINDOW = ["--prompt_tokens", 10, "--continuation_tokens", 10, "--min_distinct", 1]


def test_the_planted_sequences_are_found(memorizing_noise, tmp_path, capsys):
    dataset = memorizing_noise.dataset
    write_token_set(tmp_path / "rows.safetensors", TokenSet(dataset.sequences.int(), {}))
    command = [SCRIPT, "--model_name", memorizing_noise.checkpoint, "--tokens", tmp_path / "rows.safetensors", *WINDOW]
    in_process(*command, "--output", tmp_path / "found.safetensors")
    found = read_token_set(tmp_path / "found.safetensors", 14, 20)
    rows = {tuple(row.tolist()) for row in found.tokens}
    assert rows <= {tuple(row.tolist()) for row in dataset.sequences} and len(rows) == len(found.tokens)
    assert rows & {tuple(row.tolist()) for row in dataset.artifacts.planted}
    note = found.provenance
    assert (
        note["source"] == "rows.safetensors" and note["rows"] == len(dataset.sequences) and len(note["weights"]) == 16
    )
    assert f"of {len(dataset.sequences)} windows are (10, 10) memorized" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    in_process(*command, "--output", tmp_path / "found.safetensors", "--force", "--min_distinct", 10)
    assert "0 of" in capsys.readouterr().out and not (tmp_path / "found.safetensors").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--output", "found.pt"], "must end in .safetensors"),
        (["--output", "{folder}/there.safetensors"], "exists already"),
        (["--output", "{folder}/new.safetensors", "--length", 19], "prompt and continuation need 20 tokens"),
        (["--output", "{folder}/new.safetensors", "--corpus", "{folder}/a.jsonl"], "has no tokenizer"),
        (["--output", "{folder}/new.safetensors", "--tokens", "{folder}/past.pt"], "token id 14 is outside"),
        (["--output", "{folder}/new.safetensors", "--tokens", "a.pt", "--corpus", "b"], "--tokens, --corpus: give one"),
        (["--output", "{folder}/new.safetensors", "--batch_size", -1], "'-1' is not a whole number >= 1"),
        (
            ["--output", "{folder}/new.safetensors", "--length", 90, "--continuation_tokens", 80],
            "90 tokens per sequence; this model takes at most",
        ),
    ],
)
def test_bad_input(memorizing_noise, tmp_path, capsys, words, message):
    (tmp_path / "there.safetensors").touch()
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a b"}) + "\n")
    torch.save(torch.full((3, 20), 14), tmp_path / "past.pt")
    words = [str(word).format(folder=tmp_path) for word in words]
    with pytest.raises(SystemExit) as stopped:
        in_process(SCRIPT, "--model_name", memorizing_noise.checkpoint, *WINDOW, *words)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and len(error.splitlines()) == 1
