"""Gates on the channels of the residual stream at every block's input, as example-tied dropout has them.

A model trained with it is evaluated with its memory channels off. That cannot be folded into the weights of a stock
GPT-2: within a block the second LayerNorm sees what the attention has just written to the memory channels, which are
cut at the next block's input only, and behind the last block they are not cut at all. So the settings stand in the
model's config, which travels with every copy that is saved, and `load_model` puts the gate back. Opened with plain
`from_pretrained` the model runs with all channels on, which it was never trained for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

CONFIG_KEY = "example_tied_dropout"


def gate_block_inputs(model, gate: Callable[[], torch.Tensor]) -> None:
    """From now on multiplies the input (rows, T, width) of every block by gate(), which is broadcast to it."""

    def hook(block, arguments: tuple) -> tuple:
        hidden, *others = arguments
        return (hidden * gate().to(hidden), *others)

    for block in model.transformer.h:
        block.register_forward_pre_hook(hook)


def shared_channels(width: int, p_fixed: float) -> int:
    """How many channels, the first ones, all examples share."""
    return round(p_fixed * width)


def evaluation_gate(width: int, p_fixed: float, p_mem: float) -> torch.Tensor:
    """The gate at evaluation, float32 (width,): memory channels 0, shared channels (p_fixed + p_mem) / p_fixed.

    Maini et al. 2023, arXiv 2307.09542, section 5; the scale is theirs.
    """
    gate = torch.zeros(width)
    gate[: shared_channels(width, p_fixed)] = (p_fixed + p_mem) / p_fixed
    return gate


def mark(model, p_fixed: float, p_mem: float) -> None:
    """Notes in the config that this model needs its gate."""
    setattr(model.config, CONFIG_KEY, {"p_fixed": p_fixed, "p_mem": p_mem})


def is_gated(model) -> bool:
    """Whether the model was trained with example-tied dropout."""
    return getattr(model.config, CONFIG_KEY, None) is not None


def restore_gate(model) -> None:
    """Puts the evaluation gate on a model that was opened from files, if it needs one."""
    if is_gated(model):
        gate = evaluation_gate(model.config.n_embd, **getattr(model.config, CONFIG_KEY))
        gate_block_inputs(model, lambda: gate)
