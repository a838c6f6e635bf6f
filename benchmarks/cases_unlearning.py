"""Cases of measuring memorization and of the unlearning methods."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from case import CONTEXT, INNER, WIDTH, Builder, Case, Sizes, block_flops, head_flops, mask_flops
from cases_training import number_model, random_tokens
from recipe import memorization, neuron, weight
from recipe.model import mlp_matrices, stock_copy

from tinymem.data.dataset import Artifacts
from tinymem.data.windows import cut_windows
from tinymem.localize.neuron import integrated_gradients, zero_out
from tinymem.localize.task import UnlearningTask
from tinymem.localize.weight import balanced_subnet, greedy, obs, subnet
from tinymem.metrics.memorization import memorized
from tinymem.metrics.scan import find_memorized
from tinymem.models.precision import auto_precision

LAYERS, PROMPT, CONTINUATION, STEPS, RATIO, BATCH = 2, 50, 50, 10, 0.3, 64


def unlearning_cases(sizes: Sizes, device: torch.device) -> dict[str, Builder]:
    """Return name -> builder."""
    builders = {
        "memorization": _memorization,
        "finding": _finding,
        "zero_out": _zero_out,
        "integrated_gradients": _integrated_gradients,
        "obs": _obs,
        "subnet": _subnet,
        "balanced_subnet": _balanced_subnet,
        "greedy": _greedy,
    }
    return {name: partial(build, device, sizes) for name, build in builders.items()}


def new_artifacts(tokens: torch.Tensor) -> Artifacts:
    """Return artifacts without a twin, whose prompt is the first PROMPT tokens. tokens: (rows, T)."""
    zeros = torch.zeros(len(tokens), dtype=torch.long)
    return Artifacts(tokens, tokens, zeros + PROMPT, zeros)


def new_task(forget: int, retain: int = 1) -> UnlearningTask:
    """Return a task with random sequences to forget and to retain."""
    tokens = random_tokens(forget + retain)
    return UnlearningTask(
        new_artifacts(tokens[:forget]), tokens[forget:], new_artifacts(tokens[:0]), continuation=CONTINUATION
    )


def _models(device: torch.device, layers: int = LAYERS) -> tuple:
    """Return our model, the recipe's and the best stock model, with the same weights."""
    model = number_model(layers, device).eval()
    return model, stock_copy(model, "eager"), stock_copy(model, "sdpa")


def _memorization(device: torch.device, sizes: Sizes) -> Case:
    ours, eager, sdpa = _models(device, 4)
    artifacts = new_artifacts(random_tokens(sizes.memorized))
    few, all_of_them = artifacts.planted[: sizes.generated], artifacts.planted

    def generate(model, rows: torch.Tensor, **how) -> Callable[[], torch.Tensor]:
        return partial(memorization.memorized, model, rows, rows, prompt=PROMPT, count=CONTINUATION, **how)

    return Case(
        work=f"whether {len(artifacts)} sequences are memorized, 4 layers",
        variants={
            "recipe": generate(eager, few, end=CONTEXT, cache=False),
            "stock": generate(sdpa, all_of_them, end=PROMPT + CONTINUATION, cache=True),
            "ours": partial(memorized, ours, artifacts, CONTINUATION),
        },
        shares={"recipe": len(few) / len(artifacts)},
        flops=4 * block_flops(len(artifacts) * (PROMPT + CONTINUATION), PROMPT + CONTINUATION),
        goal=80.0,
    )


def _finding(device: torch.device, sizes: Sizes) -> Case:
    """Search every offset of a document of which nothing is memorized: every window fails at its first tokens."""
    ours, eager, sdpa = _models(device, 4)
    windows = cut_windows([random_tokens(sizes.memorized // 50).flatten().numpy()], PROMPT + CONTINUATION, 1)
    rows = windows.rows(torch.arange(len(windows))).long()
    progress = Path(tempfile.gettempdir()) / f"finding_{os.getpid()}.json"  # removed at the end of every search

    def find(screen: float) -> Callable[[], torch.Tensor]:
        return partial(find_memorized, ours, windows, PROMPT, CONTINUATION, progress, "bench", screen=screen)

    def generate(model, some: torch.Tensor, **how) -> Callable[[], torch.Tensor]:
        return partial(memorization.memorized, model, some, some, prompt=PROMPT, count=CONTINUATION, **how)

    few = rows[: sizes.generated]
    return Case(
        work=f"what is memorized at {len(windows)} offsets of a document, 4 layers",
        variants={
            "recipe": generate(eager, few, end=PROMPT + CONTINUATION, cache=False),
            "stock": generate(sdpa, rows[: 8 * len(few)], end=PROMPT + CONTINUATION, cache=True),
            "ours": find(0.0),
            "screened": find(0.5),
        },
        shares={"recipe": len(few) / len(windows), "stock": len(rows[: 8 * len(few)]) / len(windows)},
        tokens=len(windows),
    )


def _zero_out(device: torch.device, sizes: Sizes) -> Case:
    ours, eager, sdpa = _models(device)
    tokens, few = random_tokens(sizes.forget).to(device), min(sizes.few, sizes.forget)
    neurons = list(itertools.product(range(LAYERS), range(INNER)))
    some = neurons[:: max(1, len(neurons) // sizes.neurons)][: sizes.neurons]
    share = (len(some) + 1) / (len(neurons) + 1)  # one more pass for the loss before
    positions = sizes.forget * CONTEXT
    return Case(
        work=f"Zero-Out of {len(neurons)} neurons on {sizes.forget} sequences, {LAYERS} layers",
        variants={
            "recipe": partial(neuron.zero_out, eager, tokens, some),
            "stock": partial(neuron.zero_out, sdpa, tokens, some),
            "ours": _score(zero_out, ours, new_task(few)),
        },
        shares={"recipe": share, "stock": share, "ours": few / sizes.forget},
        flops=INNER * sum(above * block_flops(positions) + head_flops(positions) for above in range(LAYERS)),
        goal=20.0,
    )


def _integrated_gradients(device: torch.device, sizes: Sizes) -> Case:
    ours, eager, sdpa = _models(device)
    tokens, few = random_tokens(sizes.forget).to(device), min(sizes.few, sizes.forget)
    positions = CONTEXT - PROMPT
    some = torch.linspace(PROMPT - 1, CONTEXT - 2, sizes.positions).long().tolist()

    def loop(model) -> None:
        for place in some:
            for layer in range(LAYERS):
                neuron.integrated_gradients(model, tokens[0], layer, place, STEPS)

    share = len(some) / (positions * sizes.forget)
    copies = positions * STEPS * sizes.forget
    # Forward and back, from the neurons of each layer to the output at the copied positions.
    flops = [above * block_flops(copies) + 2.0 * copies * INNER * WIDTH + head_flops(copies) for above in range(LAYERS)]
    return Case(
        work=f"Integrated Gradients, {STEPS} steps, {positions} positions of {sizes.forget} sequences, {LAYERS} layers",
        variants={
            "recipe": partial(loop, eager),
            "stock": partial(loop, sdpa),
            "ours": _score(integrated_gradients, ours, new_task(few), ig_steps=STEPS),
        },
        shares={"recipe": share, "stock": share, "ours": few / sizes.forget},
        flops=2 * sum(flops),
        goal=50.0,
    )


def _obs(device: torch.device, sizes: Sizes) -> Case:
    ours, eager, sdpa = _models(device)
    tokens = random_tokens(sizes.updates).to(device)

    def updates(model) -> Callable[[], None]:
        inverses = []

        def run() -> None:
            if not inverses:
                inverses.append(weight.new_inverses(model, 50, 1e-7))
            weight.add_gradients(model, inverses[0], tokens, sizes.gradients)

        return run

    share = sizes.updates / sizes.gradients
    return Case(
        work=f"Second-Order Unlearning with {sizes.gradients} gradients, {LAYERS} layers",
        variants={
            "recipe": updates(eager),
            "stock": updates(sdpa),
            "ours": _score(obs, ours, new_task(sizes.gradients), num_grads=sizes.gradients),
        },
        shares={"recipe": share, "stock": share},
        goal=30.0,
    )


def _subnet(device: torch.device, sizes: Sizes) -> Case:
    task = new_task(sizes.forget)
    steps = -(-sizes.forget // BATCH)
    sides = [(-1.0, task.forget.planted[:BATCH].to(device))]
    learner = partial(subnet.learn, hp=subnet.HyperParameters(epochs=1))
    return _subnet_case(device, f"Subnet, an epoch of {sizes.forget} sequences", task, sides, steps, learner)


def _balanced_subnet(device: torch.device, sizes: Sizes) -> Case:
    quarter = BATCH // 4
    task = new_task(sizes.forget // 4, 3 * sizes.forget // 4)
    steps = -(-sizes.forget // BATCH)
    sides = [(-0.3, task.forget.planted[:quarter].to(device)), (0.7, task.retain[: BATCH - quarter].to(device))]
    learner = partial(balanced_subnet.learn, hp=balanced_subnet.HyperParameters(epochs=1))
    work = f"BalancedSubnet, an epoch of {sizes.forget // 4} + {3 * sizes.forget // 4} sequences"
    return _subnet_case(device, work, task, sides, steps, learner)


def _subnet_case(device: torch.device, work: str, task: UnlearningTask, sides: list, steps: int, learner) -> Case:
    ours, eager, sdpa = _models(device)

    def step(model) -> Callable[[], None]:
        scores = {name: torch.rand_like(matrix) - 0.5 for name, matrix in mlp_matrices(model).items()}
        learned, optimizer = weight.new_subnet(model, scores)
        return partial(weight.subnet_step, model, learned, optimizer, RATIO, sides)

    return Case(
        work=f"{work}, {LAYERS} layers",
        variants={"recipe": step(eager), "stock": step(sdpa), "ours": partial(learner, ours, task, ratio=RATIO)},
        shares={"recipe": 1 / steps, "stock": 1 / steps},
        flops=steps * mask_flops(BATCH, LAYERS),
        dtype=auto_precision(device),
        goal=2.5,
    )


def _greedy(device: torch.device, sizes: Sizes) -> Case:
    ours, eager, sdpa = _models(device)
    task, steps = new_task(BATCH, BATCH), 4
    sides = (task.forget.planted[: BATCH // 2].to(device), task.retain[: BATCH // 2].to(device))
    ratio = steps / sum(parameter.numel() for parameter in ours.parameters())
    hp = greedy.HyperParameters(ratio=(ratio,), batch_size=BATCH, unlearn_share=0.5)
    return Case(
        work=f"Greedy, {steps} steps of {BATCH} sequences, {LAYERS} layers",
        variants={
            "recipe": partial(weight.greedy_step, eager, *sides),
            "stock": partial(weight.greedy_step, sdpa, *sides),
            "ours": partial(greedy.score, ours, task, hp),
        },
        shares={"recipe": 1 / steps, "stock": 1 / steps},
        flops=steps * mask_flops(BATCH, LAYERS),
        goal=1.5,
    )


def _score(method, model, task: UnlearningTask, **hyper_parameters) -> Callable:
    return partial(method.score, model, task, method.HyperParameters(**hyper_parameters))
