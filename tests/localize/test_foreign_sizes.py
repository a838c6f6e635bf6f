"""Sizes given for a model from elsewhere: they must be its own, since its config.json is what counts."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import GPT2Config, LlamaConfig

from tinymem.cli.subject import check_sizes
from tinymem.errors import UserError

CONFIGS = [
    GPT2Config(n_layer=2, n_head=4, n_embd=8),
    LlamaConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=8),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["gpt2", "llama"])
@pytest.mark.parametrize("flag, held", [("n_layers", 2), ("n_heads", 4), ("n_embd", 8)])
def test_a_size_that_the_model_does_not_have_is_refused(config, flag, held):
    model = SimpleNamespace(config=config)
    check_sizes(model, Path("mine"), {flag: held})
    with pytest.raises(UserError, match=f"mine holds a model with --{flag} {held}, not with --{flag} 3; leave"):
        check_sizes(model, Path("mine"), {flag: 3})
