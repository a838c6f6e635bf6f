"""old_data.py on both kinds of data."""

import json

import numpy as np
import pytest
from small import SMALL_DATA, in_process


@pytest.fixture
def corpus(tmp_path):
    path, rng = tmp_path / "corpus.jsonl", np.random.default_rng(0)
    texts = [" ".join(rng.choice(["to", "be", "or", "not", f"name{number}"], 60)) for number in range(40)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path


def shown(capsys, tmp_path, *flags) -> list[str]:
    in_process("old_data.py", *flags, "--data_dir", tmp_path / "data", "--examples", 2)
    return capsys.readouterr().out.splitlines()


def marked(lines: list[str], name: str) -> str:
    """The line of that name of both examples, the parts of a wrapped one joined."""
    return "".join(line[9:].ljust(110) for line in lines if line.startswith(name + " ") or line == name)


@pytest.mark.parametrize("artifact", ["noise", "backdoor"])
def test_numbers(capsys, tmp_path, artifact):
    sizes = SMALL_DATA | ({"num_7": 250, "length": 12, "max_ctx": 56} if artifact == "backdoor" else {})
    lines = shown(capsys, tmp_path, *(f"--{name}={value}" for name, value in sizes.items()), "--artifact", artifact)
    clean, planted, differs = (marked(lines, name) for name in ("clean", "planted", "differs"))
    assert clean.startswith("^") and "^" in differs
    for position, mark in enumerate(differs):
        assert (mark == "^") == (clean[position : position + 1] != planted[position : position + 1])
    assert any("artifacts differ from their clean twin in the 10 tokens" in line for line in lines)


@pytest.mark.parametrize("artifact", ["noise", "natural"])
def test_text(capsys, tmp_path, corpus, artifact):
    flags = dict(data_name="wiki", corpus=corpus, train_tokenizer=1, vocab_size=300, max_ctx=30, prompt_tokens=10)
    flags |= dict(continuation_tokens=10, num_noise=8, num_test=2, artifact=artifact, duplicate=1)
    lines = shown(capsys, tmp_path, *(f"--{name}={value}" for name, value in flags.items()))
    assert any("or not" in line for line in lines if line.startswith("clean"))
    assert ("^" in marked(lines, "differs")) == (artifact == "noise")
    assert [line.split()[-1] for line in lines if line.strip().startswith("artifacts repeated")] == ["2"] * 4
    if artifact == "natural":
        assert any(line.startswith("8 of 8 passages have text in the 10 tokens") for line in lines)
    with_twin = shown(
        capsys, tmp_path, *(f"--{name}={value}" for name, value in {**flags, "num_chunks": 20}.items()), "--twin"
    )
    assert with_twin[-2].endswith(("their clean twins in their places", "other passages in their places"))
    assert not any("never-planted twin" in line for line in lines)


@pytest.mark.parametrize(
    "flags, error",
    [
        (["--corpus", "builtin"], "--corpus builtin: only for text; --data_name is increment"),
        (["--vocab_size", 500], "--vocab_size 500: only for text"),
        (["--data_name", "wiki", "--num_2", 10], "--num_2 10: only for numbers; --data_name is wiki"),
        (["--data_name", "wiki", "--vocab_size", 4096], "--vocab_size 4096: only with --train_tokenizer"),
    ],
)
def test_a_flag_without_effect_is_refused(capsys, flags, error):
    with pytest.raises(SystemExit) as refused:
        in_process("old_data.py", *flags)
    assert refused.value.code == 2 and f"error: {error}" in capsys.readouterr().err
