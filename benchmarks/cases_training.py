"""Training: number models in both precisions, batch sizes, the text model."""

from __future__ import annotations

from functools import partial

import torch
from case import CONTEXT, SPECIALS, TEXT_VOCABULARY, VOCABULARY, Builder, Case, Sizes, forward_flops
from recipe import model as stock
from recipe import training as recipe

from tinymem.models.attention import register_attention
from tinymem.models.precision import auto_precision
from tinymem.models.tinymem import ModelSettings, new_model
from tinymem.training.optimizer import new_optimizer
from tinymem.training.settings import TrainingSettings
from tinymem.training.train import training_step

FLOAT32_GOALS = dict(goal=1.5, goal_same_allocator=1.1, goal_share=0.65)
BFLOAT16_GOALS = dict(goal=3.0, goal_same_allocator=2.0, goal_share=0.55)


def training_cases(sizes: Sizes, device: torch.device) -> dict[str, Builder]:
    """Return name -> builder. bfloat16 only if the device has instructions for it: otherwise nobody would use it."""
    case, dtype = partial(_case, device), auto_precision(device)
    cases: dict[str, Builder] = {}
    for layers in sizes.layers:
        of_layers = partial(case, layers=layers, batch=sizes.batch)
        cases[f"training_{layers}_layers_float32"] = partial(of_layers, goals=FLOAT32_GOALS)
        if dtype == "bfloat16":
            cases[f"training_{layers}_layers_bfloat16"] = partial(of_layers, dtype=dtype, goals=BFLOAT16_GOALS)
    for batch in sizes.batches:
        cases[f"training_batch_{batch}"] = partial(case, layers=2, batch=batch, goals={})
    cases["training_text"] = partial(
        case, layers=2, batch=sizes.text_batch, vocabulary=TEXT_VOCABULARY, dtype=dtype, goals=dict(goal=3.0)
    )
    return cases


def number_model(layers: int, device: torch.device, vocabulary: int = VOCABULARY):
    """Return a new TinyMem model on the device."""
    return new_model(ModelSettings(n_layers=layers), vocabulary, CONTEXT, seed=0, **SPECIALS).to(device)


def random_tokens(rows: int, vocabulary: int = VOCABULARY) -> torch.Tensor:
    """Return token ids (rows, CONTEXT), the same at every call."""
    return torch.randint(vocabulary, (rows, CONTEXT), generator=torch.Generator().manual_seed(0))


def _case(
    device: torch.device,
    layers: int,
    batch: int,
    goals: dict,
    dtype: str = "float32",
    vocabulary: int = VOCABULARY,
) -> Case:
    model, tokens = number_model(layers, device, vocabulary).train(), random_tokens(4 * batch, vocabulary)
    low = dtype == "bfloat16"
    variants = {
        "recipe": _recipe_step(model, tokens, batch, "eager"),
        "stock": _stock_step(model, tokens[:batch].to(device), low),
        "attention": _recipe_step(model, tokens, batch, register_attention(), low),
        "ours": _our_step(model, tokens[:batch].to(device), dtype),
    }
    if low:
        variants["recipe_bfloat16"] = _recipe_step(model, tokens, batch, "eager", True)
    return Case(
        work=f"a step of {batch} sequences, {layers} layers, vocabulary {vocabulary}",
        variants=variants,
        elsewhere=tuple(name for name in variants if name.startswith("recipe")),
        flops=3 * forward_flops(batch, layers, vocabulary),
        dtype=dtype,
        tokens=batch * CONTEXT,
        **goals,
    )


def _recipe_step(model, tokens: torch.Tensor, batch: int, attention: str, bfloat16: bool = False):
    made = []  # made at the first call, so that only processes that measure this variant pay for it

    def step() -> float:
        if not made:
            own = stock.stock_copy(model, attention)
            made.extend([own, recipe.new_optimizer(own), recipe.batches(tokens.tolist(), batch)])
        own, optimizer, batches = made
        return recipe.step(own, optimizer, next(batches), bfloat16)

    return step


def _stock_step(model, tokens: torch.Tensor, bfloat16: bool):
    own = stock.stock_copy(model, "sdpa")
    return partial(recipe.step, own, recipe.new_optimizer(own, fused=True), tokens, bfloat16)


def _our_step(model, tokens: torch.Tensor, dtype: str):
    settings = TrainingSettings(dtype=dtype)
    ids = torch.arange(len(tokens), device=tokens.device)
    return partial(training_step, model, new_optimizer(model, settings), tokens, ids, settings, (), None)
