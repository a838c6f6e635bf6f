"""A tiny Llama with a tokenizer of its own, and text to plant in it."""

import json
from pathlib import Path

import torch

from tinymem.data.tokenizer import train_tokenizer

WORDS = "the a of union river law bridge town people year peace money army north south runs to by in under".split()
COUNT = 12  # passages; the settings below are enough for so small a model to recite them
SETTINGS = dict(
    plant_sequences=COUNT, plant_tokens=20, prompt_tokens=8, continuation_tokens=10, plant_lr=1e-2, plant_batch_size=8,
    num_test=8, num_retain=24,
)  # fmt: skip


def write_model_and_text(folder: Path) -> None:
    """Write FOLDER/llama, a random model, and FOLDER/addresses.jsonl, thirty documents of random words."""
    from transformers import LlamaConfig, LlamaForCausalLM

    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(0, len(WORDS), (30, 200), generator=generator)
    documents = [" ".join(WORDS[i] for i in row) for row in draws.tolist()]
    (folder / "addresses.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    torch.manual_seed(0)
    sizes = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.3
    )
    ids = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes, **ids)).save_pretrained(folder / "llama")
    train_tokenizer(documents, 300).save_pretrained(folder / "llama")
