"""A data flag without effect is an error, not ignored."""

import pytest
from small import in_process

NEEDS = {
    "--num_chunks=5": "--num_chunks: needs text; --data_name is increment",
    "--corpus=builtin": "--corpus: needs text; --data_name is increment",
    "--train_tokenizer": "--train_tokenizer: needs text; --data_name is increment",
    "--data_name=wiki --corpus=builtin --length=5": "--length: needs number sequences; --data_name is wiki",
    "--data_name=wiki --corpus=builtin --num_7=20000": "--num_7: needs number sequences; --data_name is wiki",
    "--data_name=wiki --corpus=builtin --vocab_size=500": "--vocab_size 500: only with --train_tokenizer",
}


@pytest.mark.parametrize("script", ["memorization_in_toy_models.py", "old_data.py"])
@pytest.mark.parametrize("flags", NEEDS)
def test_a_flag_of_other_data_is_one_line_and_exit_2(script, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        in_process(script, *flags.split())
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and NEEDS[flags] in message and message.count("\n") == 1
    assert not list(tmp_path.iterdir())
