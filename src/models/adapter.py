"""Find the MLP weights of any decoder-only model by structure, not by name.

MLP of a block: hidden = act(W_in x + b_in), out = W_out hidden + b_out. A neuron is one entry of hidden: one row of
W_in, one entry of b_in, one column of W_out.

Which matrices are which:
  GPT-2, GPT-NeoX (Pythia), GPT-J, Phi, OPT, BLOOM ...   the two of the MLP: the one that widens is W_in, the other
                                                         is W_out
  gated MLPs: Llama, Mistral, OLMo, Qwen, Gemma, SmolLM  gate and up are both W_in, down is W_out. hidden is
                                                         act(gate x) * (up x): a neuron owns a row of each. Dropping it
                                                         zeroes both, since either alone leaves weights without effect
  Phi-3                                                  the same with gate and up as one matrix of 2 * inner_dim rows
Mixtures of experts have no such list of neurons and raise UserError; so do state-space and recurrent models.

All matrices appear in the orientation of torch.nn.Linear, (out, in), even where GPT-2's Conv1D stores (in, out), so
methods never see the difference.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tinymem.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Names of the classes in a block that mark models which cannot be edited.
EXPERTS = re.compile(r"(Experts|MoE|Moe|MoeBlock|MLP_MoE|TopKGating)$")
RECURRENT = re.compile(r"Mamba|Rwkv|Recurrent|RgLru|Ssm|SSM")


@dataclass(frozen=True)
class Weight:
    """One MLP matrix or bias.

    name        its key in the state dict
    parameter   the parameter as stored
    transposed  stored as (in, out)
    """

    name: str
    parameter: torch.nn.Parameter
    transposed: bool

    def view(self, stored: torch.Tensor | None = None) -> torch.Tensor:
        """Return `stored` (default: the weight, detached), shaped as stored, as (out, in). A view, not a copy."""
        tensor = self.parameter.detach() if stored is None else stored
        return tensor.T if self.transposed else tensor


@dataclass(frozen=True)
class MLP:
    """The MLP of one block.

    layer      0-based index of the block
    inputs     W_in matrices, each (inner_dim, width): one, or gate and up
    biases     their biases, each (inner_dim,); empty if there are none
    output     W_out, (width, inner_dim)
    output_bias  b_out, (width,), or None
    down       the module of W_out: its input is the neurons' activations
    """

    layer: int
    inputs: tuple[Weight, ...]
    biases: tuple[Weight, ...]
    output: Weight
    output_bias: Weight | None
    down: torch.nn.Module

    @property
    def inner_dim(self) -> int:
        """The number of neurons in this layer."""
        return self.output.view().shape[1]

    @property
    def matrices(self) -> tuple[Weight, ...]:
        """W_in matrices and W_out."""
        return (*self.inputs, self.output)

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Every weight and bias of this MLP."""
        return (*self.matrices, *self.biases, *((self.output_bias,) if self.output_bias else ()))


def find_mlps(model: PreTrainedModel) -> list[MLP]:
    """Return the MLPs of a causal LM, first block first.

    Raise UserError, naming the kind of model or the modules found, for an architecture without the structure above.
    """
    prefix, blocks = find_blocks(model)
    return [_find_mlp(layer, f"{prefix}.{layer}", block) for layer, block in enumerate(blocks)]


def find_blocks(model: PreTrainedModel) -> tuple[str, torch.nn.ModuleList]:
    """Return the name of the list of transformer blocks, and the list. Raise UserError if there is none.

    In a model for text and images, they are those of the text part: the image part may have as many.
    """
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    text = set(model.get_decoder().modules())
    for name, module in model.named_modules():
        if module in text and isinstance(module, torch.nn.ModuleList) and len(module) == layers:
            return name, module
    children = ", ".join(f"{name} ({type(child).__name__})" for name, child in model.named_children())
    raise UserError(f"{type(model).__name__}: no list of {layers} blocks among its modules {children}")


def _check_supported(prefix: str, block: torch.nn.Module) -> None:
    """Raise UserError for a kind of model that has no list of neurons, in words that users know."""
    kinds = {type(module).__name__ for module in block.modules()}
    if any(map(EXPERTS.search, kinds)):
        raise UserError(
            f"{type(block).__name__} {prefix}: mixture-of-experts is not supported, since its neurons differ from "
            "token to token; use a dense model"
        )
    if any(map(RECURRENT.search, kinds)):
        raise UserError(
            f"{type(block).__name__} {prefix}: state-space and recurrent models such as Mamba are not supported, since "
            "not all of their blocks are attention and an MLP; use a transformer"
        )


def _find_mlp(layer: int, prefix: str, block: torch.nn.Module) -> MLP:
    _check_supported(prefix, block)
    linears = {
        name: module
        for name, module in block.named_modules()
        if _is_linear(module) and not _inside_attention(block, name)
    }
    for name, down in reversed(linears.items()):
        width, inner = _shape(down)
        ups = {n: m for n, m in linears.items() if m is not down and _shape(m) in ((inner, width), (2 * inner, width))}
        if ups and len(ups) == len(linears) - 1 and sum(_shape(m)[0] for m in ups.values()) <= 2 * inner:
            inputs = tuple(_weight(f"{prefix}.{n}", m) for n, m in ups.items())
            biases = tuple(b for n, m in ups.items() if (b := _bias(f"{prefix}.{n}", m)))
            output = _weight(f"{prefix}.{name}", down)
            return MLP(layer, inputs, biases, output, _bias(f"{prefix}.{name}", down), down)
    found = ", ".join(f"{n} {_shape(m)}" for n, m in linears.items()) or ", ".join(n for n, _ in block.named_children())
    raise UserError(
        f"{type(block).__name__} {prefix}: no MLP of one or two input matrices and one output; found {found}"
    )


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def _inside_attention(block: torch.nn.Module, name: str) -> bool:
    parts = name.split(".")
    parents = (block.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts)))
    return any("attention" in type(parent).__name__.lower() for parent in parents)


def _shape(module: torch.nn.Module) -> tuple[int, int]:
    """Return (out, in), in whichever order it is stored."""
    outputs, inputs = _weight("", module).view().shape
    return outputs, inputs


def mlp_weights(mlps: list[MLP]) -> dict[str, Weight]:
    """Return every MLP weight and bias by its state-dict key."""
    return {weight.name: weight for mlp in mlps for weight in mlp.weights}


def linear_weights(model: torch.nn.Module) -> dict[str, Weight]:
    """Return the matrix of every linear layer by its state-dict key."""
    linears = ((name, module) for name, module in model.named_modules() if _is_linear(module))
    return {f"{name}.weight": _weight(name, module) for name, module in linears}


def weight_of(model: torch.nn.Module, name: str) -> Weight:
    """Return any parameter by its state-dict key. Raise KeyError if the model has none of this name."""
    prefix, _, kind = name.rpartition(".")
    with suppress(AttributeError):
        weight = _weight(prefix, model.get_submodule(prefix), kind)
        if isinstance(weight.parameter, torch.nn.Parameter):
            return weight
    raise KeyError(f"{type(model).__name__} has no parameter {name}")


def _weight(name: str, module: torch.nn.Module, kind: str = "weight") -> Weight:
    transposed = kind == "weight" and type(module).__name__ == "Conv1D"
    return Weight(f"{name}.{kind}", getattr(module, kind), transposed)


def _bias(name: str, module: torch.nn.Module) -> Weight | None:
    return None if getattr(module, "bias", None) is None else _weight(name, module, "bias")
