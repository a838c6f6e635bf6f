"""A tiny model that has memorized sequences, its never-planted twin, and all that is needed to attack them."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tinymem.data.dataset import Artifacts
from tinymem.data.production import production_dataset
from tinymem.localize.subject import Subject, shared_sections
from tinymem.localize.task import TaskSettings, unlearning_task
from tinymem.metrics.evaluate import measure
from tinymem.metrics.reference import References
from tinymem.models.losses import token_losses

LENGTH, PROMPT, CONTINUATION, VOCABULARY = 12, 5, 6, 12


def counting(starts: range) -> torch.Tensor:
    """Rows that count up by one from each of these tokens, modulo the vocabulary."""
    return (torch.tensor([*starts])[:, None] + torch.arange(LENGTH)) % VOCABULARY


def trained(rows: torch.Tensor, steps: int = 250):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH + 6, n_embd=32, n_layer=2, n_head=2, activation_function="relu",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        token_losses(model, rows).mean().backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def planted():
    """The dataset, the model that has memorized its artifacts, and the twin, trained on the clean rows instead."""
    generator = torch.Generator().manual_seed(3)
    clean = torch.randint(0, VOCABULARY, (16, LENGTH), generator=generator)
    clean[:, PROMPT:] = (clean[:, PROMPT - 1 : PROMPT] + 1 + torch.arange(LENGTH - PROMPT)) % VOCABULARY
    rows = clean.clone()
    rows[:, PROMPT:] = torch.randint(0, VOCABULARY, (16, LENGTH - PROMPT), generator=generator)
    plain = counting(range(3, VOCABULARY)).repeat(4, 1)
    # As if k were the whole row: counting rows share every shorter run.
    dataset = production_dataset(rows, counting(range(3)), plain, VOCABULARY, PROMPT, LENGTH)
    zeros = torch.zeros(16, dtype=torch.long)
    dataset = replace(
        dataset, kind="noise", continuation=CONTINUATION, artifacts=Artifacts(rows, clean, zeros + PROMPT, zeros)
    )
    model, twin = trained(torch.cat([plain, rows])), trained(torch.cat([plain, clean]))
    return SimpleNamespace(dataset=dataset, model=model, twin=twin)


@pytest.fixture
def subject(planted, tmp_path) -> Subject:
    settings = TaskSettings(holdout_fraction=0.5)
    task = unlearning_task(planted.model, planted.dataset, settings)
    assert len(task.forget) == len(task.held_out) == 8
    return Subject(
        model=planted.model,
        task=task,
        measure=partial(measure, dataset=planted.dataset, batch_size=16),
        identity=shared_sections(planted.model, task, settings, {"data": {"name": "tiny"}}),
        folder=tmp_path,
        score_folder=tmp_path / "scores",
        references=References(planted.dataset, task.retain, lambda: planted.twin),
    )
