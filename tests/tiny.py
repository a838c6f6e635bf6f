"""Tiny random models of each architecture, and unlearning tasks on random tokens."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from tinymem.data.dataset import Artifacts
from tinymem.localize.task import UnlearningTask

VOCABULARY, LENGTH = 14, 12
TOKENS = dict(vocab_size=VOCABULARY, bos_token_id=10, eos_token_id=11, pad_token_id=13, initializer_range=0.2)


def new_model(architecture: str, layers: int = 2, seed: int = 0) -> torch.nn.Module:
    """A random model of 2 layers, width 8, 32 neurons a layer (Llama: 24), in evaluation mode."""
    torch.manual_seed(seed)
    if architecture == "gpt2":
        config = GPT2Config(
            n_positions=LENGTH, n_embd=8, n_layer=layers, n_head=2, activation_function="relu", **TOKENS
        )
        return GPT2LMHeadModel(config).eval()
    shape = dict(hidden_size=8, num_hidden_layers=layers, num_attention_heads=2, max_position_embeddings=LENGTH)
    if architecture == "gpt_neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(intermediate_size=32, **shape, **TOKENS)).eval()
    return LlamaForCausalLM(LlamaConfig(intermediate_size=24, **shape, **TOKENS)).eval()


def new_task(forget: int = 10, retain: int = 24, **fields) -> UnlearningTask:
    """Random sequences of 12 tokens to forget and to keep."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, VOCABULARY, (forget + retain, LENGTH), generator=generator)
    zeros = torch.zeros(forget, dtype=torch.long)
    forget_set = Artifacts(rows[:forget], (rows[:forget] + 1) % VOCABULARY, zeros + LENGTH // 2, zeros)
    held_out = forget_set.select(torch.empty(0, dtype=torch.long))
    return UnlearningTask(forget_set, rows[forget:], held_out, continuation=4, **fields)
