"""A Pythia of 2 layers that has memorized 32 sequences, for trying the sweep of the real ones without downloads."""

from __future__ import annotations

from pathlib import Path

import torch

from tinymem import files, locks
from tinymem.data.production import ProductionSettings
from tinymem.data.token_sets import TokenSet, write_token_set
from tinymem.models.production import LoadSettings
from tinymem.sweeps.jobs import Production

STEPS = (40, 120)  # it has memorized some sequences at the first, all at the second
VOCABULARY, LENGTH, MEMORIZED, OTHERS = 300, 24, 32, 128


def make_tiny_pythia(folder: Path, dry_run: bool = False) -> list[Production]:
    """Return the model at each of its steps, trained in seconds if it is not in the folder yet."""
    if not dry_run:
        files.writable_folder(folder)
        with locks.locked(folder / ".lock"):
            if not (folder / f"step{STEPS[-1]}").exists():
                _train(folder)
    window = dict(prompt_tokens=8, continuation_tokens=12, num_test=64, num_retain=64)
    data = ProductionSettings(str(folder / "memorized.safetensors"), str(folder / "random.safetensors"), **window)
    return [Production(str(folder), LoadSettings(step=step), data) for step in STEPS]


def _train(folder: Path) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256)
    special = dict(bos_token_id=0, eos_token_id=0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=VOCABULARY, max_position_embeddings=64, **special, **sizes))
    memorized = torch.randint(0, VOCABULARY, (MEMORIZED, LENGTH))
    random = torch.randint(0, 20, (OTHERS, LENGTH)).cumsum(1) % VOCABULARY  # with some order that can be learned
    note = {"source": "made by experiments/tiny_pythia.py"}
    write_token_set(folder / "memorized.safetensors", TokenSet(memorized.int(), note))
    write_token_set(folder / "random.safetensors", TokenSet(random.int(), note))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = torch.cat([memorized, random[:64]])
    for step in range(1, STEPS[-1] + 1):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        if step in STEPS:
            files.write_folder(folder / f"step{step}", model.save_pretrained)
