"""prod_grad.py --dry_run."""

import pytest
import torch
from small import in_process

from tinymem.localize.registry import METHODS
from tinymem.models.known_configs import known_config

SCRIPT = "src/localize/prod_grad.py"


@pytest.mark.parametrize(
    "methods",
    [
        pytest.param(("activations", "balanced_subnet", "npo", "kfac"), marks=pytest.mark.slow),  # one of each group
        pytest.param(tuple(METHODS), marks=pytest.mark.nightly),
    ],
)
def test_dry_run_needs_no_weights(capsys, tmp_path, methods):
    tiny = known_config("pythia-70m")
    tiny.update({"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32})
    tiny.save_pretrained(tmp_path / "model")
    in_process(
        SCRIPT,
        "--model_name",
        tmp_path / "model",
        "--localization_method",
        *methods,
        "examples/magnitude.py",
        *"--plant builtin --plant_sequences 16 --num_retain 16 --batch_size 8 --dry_run".split(),  # plans take a while
    )
    output = capsys.readouterr().out
    assert all(name in output for name in (*methods, "magnitude")) and "peak_gb" in output
    assert "the never-planted twin, in addition: 0.0" in output


@pytest.mark.parametrize(
    "words, message",
    [
        ("--num_retain 2", "2 retain sequences have at most 144 tokens, and a factor of 200 x 200"),
        ("--factor_sequences 2", "2 retain sequences have at most 144 tokens"),
        ("--factor_data {folder}/few.pt", "4 sequences of --factor_data {folder}/few.pt have at most 288 tokens"),
    ],
)
def test_too_little_text_for_a_factor(capsys, tmp_path, words, message):
    """Rows have 72 tokens: those of prompt and continuation."""
    tiny = known_config("pythia-70m")
    inner = 300 if "factor_data" in words else 200
    tiny.update({"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": inner})
    tiny.save_pretrained(tmp_path / "model")
    torch.save(torch.zeros(4, 72, dtype=torch.int64), tmp_path / "few.pt")
    torch.save(torch.zeros(8, 72, dtype=torch.int64), tmp_path / "memorized.pt")
    data = f"--memorized {tmp_path}/memorized.pt --num_test 99 {words}".format(folder=tmp_path)
    with pytest.raises(SystemExit) as ended:
        in_process(
            SCRIPT, "--model_name", tmp_path / "model", "--localization_method", "kfac", *data.split(), "--dry_run"
        )
    error = capsys.readouterr().err
    assert ended.value.code == 2 and f"--factor_sequences: {message.format(folder=tmp_path)}" in error
    assert error.count("\n") == 1


def test_a_known_model_needs_no_network(capsys, monkeypatch):
    monkeypatch.setattr("tinymem.planning.dry_run.open_description", lambda *_, **__: pytest.fail("asked the hub"))
    in_process(SCRIPT, "--model_name", "EleutherAI/pythia-70m", "--localization_method", "durable", "--dry_run")
    assert "70,426,624 parameters, 12,598,272 of them in MLPs; 0.28 GB of weights" in capsys.readouterr().out
