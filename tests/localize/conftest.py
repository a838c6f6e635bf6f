"""Tiny random models of each architecture, and unlearning tasks on random tokens."""

import copy

import pytest
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


@pytest.fixture
def tiny_model():
    """tiny_model(architecture="gpt2", layers=2): see `new_model`."""
    return lambda architecture="gpt2", layers=2: new_model(architecture, layers)


@pytest.fixture(params=["gpt2", "gpt_neox", "llama"])
def any_model(request):
    """A tiny model of each architecture in turn."""
    return new_model(request.param)


@pytest.fixture
def linear_twin():
    """linear_twin(gpt2): the same model with torch.nn.Linear where GPT-2 has Conv1D."""

    def twin_of(model):
        twin = copy.deepcopy(model)
        for name, module in list(twin.named_modules()):
            if type(module).__name__ == "Conv1D":
                linear = torch.nn.Linear(*module.weight.shape)
                linear.weight.data, linear.bias.data = module.weight.data.T.contiguous(), module.bias.data
                twin.set_submodule(name, linear)
        return twin

    return twin_of


@pytest.fixture
def tiny_task():
    """tiny_task(unlearn=10, retain=24, **fields): random sequences of 12 tokens to forget and to keep."""

    def make(unlearn: int = 10, retain: int = 24, **fields) -> UnlearningTask:
        generator = torch.Generator().manual_seed(1)
        rows = torch.randint(0, VOCABULARY, (unlearn + retain, LENGTH), generator=generator)
        zeros = torch.zeros(unlearn, dtype=torch.long)
        forget = Artifacts(rows[:unlearn], rows[:unlearn], zeros + LENGTH // 2, zeros)
        held_out = forget.select(torch.empty(0, dtype=torch.long))
        return UnlearningTask(forget, rows[unlearn:], held_out, continuation=4, **fields)

    return make


@pytest.fixture
def snapshot():
    """snapshot(model): everything a method must leave as it was, comparable with ==."""

    def bits(tensor):
        return None if tensor is None else tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()

    def take(model):
        parameters = [(bits(p), p.requires_grad, id(p.grad), bits(p.grad)) for p in model.parameters()]
        modules = [(m.training, len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
        return parameters, modules

    return take
