"""Tiny models and tasks (see tests/tiny.py) as fixtures."""

import copy

import pytest
import torch
from tiny import new_model, new_task


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
    """tiny_task(forget=10, retain=24, **fields): see `new_task`."""
    return new_task


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
