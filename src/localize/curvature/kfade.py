"""K-FADE (McKinney et al. 2026, arXiv 2602.10568): Gauss-Newton steps uphill on the forget set.

A step raises the forget loss as steeply as possible per unit of change in the predictions on the retain set. The
Kronecker factors of the retain set measure that change:

    dW = eta (G + d_G I)^-1 (gradient of L_F) (A + d_A I)^-1      d_G, d_A = damping * mean eigenvalue of G, A

A search finds the eta at which KL(before || after) on retain sequences reaches the budget. The KL grows with the square
of the distance, so after step s of n it may be (s / n)^2 of the budget. The factors stay those of the unedited model.
The paper corrects eigenvalues one by one; here each is a product of an eigenvalue of A and one of G.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch

from tinymem.errors import NotFinite
from tinymem.localize.curvature.factors import Basis, FactorSettings, bases, check_factors, factor_passes
from tinymem.localize.curvature.layers import chosen_weights
from tinymem.localize.learning import frozen, gradients, kl_note
from tinymem.localize.objective_method import sides
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import Weight
from tinymem.models.edit import Weights, reversible
from tinymem.models.losses import loss_mask, next_token_logits, remedy
from tinymem.models.planned import is_plan
from tinymem.options import option, settings
from tinymem.training.objective import FORGET_TOKENS
from tinymem.training.step import all_finite

TRIALS = 8  # measurements of the KL in a step
ENOUGH = 12  # forward passes that show a run's peak in a plan: factors, predictions before, gradient, first trials

FindBases = Callable[[], Iterator[tuple[Weight, Basis]]]


@settings
class HyperParameters(FactorSettings):
    """K-FADE"""

    kl_budget: tuple[float, ...] = option(
        (0.001, 0.01, 0.1), "KL(before || after) on retain sequences that the edit may reach, in nats per token",
        above=0.0, strength=True, grid=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3), small=(0.01, 0.1),
    )  # fmt: skip
    newton_steps: int = option(1, "Gauss-Newton steps in which to spend the budget", low=1)
    damping: float = option(1e-3, "added to the eigenvalues of each factor, as a multiple of their mean", above=0.0)
    forget_tokens: str = option(
        "continuation", "tokens of a forget row that count in its loss: all, or those after its prompt",
        choices=FORGET_TOKENS,
    )  # fmt: skip
    kl_sequences: int = option(32, "retain sequences to measure the KL on", low=1)


def run(model, task: UnlearningTask, hp: HyperParameters) -> Iterator[tuple[float, Weights]]:
    """Yield the edited matrices at each budget, each found from scratch.

    Memory: the bases of one group of matrices, three copies of the chosen matrices and their float32 gradients, and the
    predictions before the edit, kl_sequences * (T - 1) * vocabulary in float32. Without a cache the bases of all chosen
    matrices are held if there are several steps.
    """
    if not is_plan(model):  # a plan runs on a few rows
        check(model, task, hp)
    weights = chosen_weights(model, hp)
    find_bases: FindBases = partial(bases, model, task, weights, hp)
    if task.cache is None and len(hp.kl_budget) * hp.newton_steps > 1 and not is_plan(model):  # a plan's run has one
        find_bases = partial(iter, list(find_bases()))
    drift = RetainDrift(model, task, hp.kl_sequences)
    for budget in hp.kl_budget:
        yield budget, Weights(*_ascended(model, task, weights, find_bases, drift, budget, hp))


def check(model, task: UnlearningTask, hp: HyperParameters) -> None:
    """Raise UserError for a layer that the model does not have, and for less retain text than its factors need."""
    task.check_retain("--localization_method kfade")
    check_factors(model, task, hp)


def passes(model, task: UnlearningTask, hp: HyperParameters) -> tuple[int, int]:
    """Return the passes: for the factors, the predictions before the edit, the gradients, and the trials.

    Raise UserError as `check` does.
    """
    check(model, task, hp)
    forward, backward = factor_passes(task, chosen_weights(model, hp), hp)
    steps, forget = len(hp.kl_budget) * hp.newton_steps, task.passes(len(task.forget))
    measured = task.passes(min(hp.kl_sequences, len(task.retain)))
    return forward + measured + steps * (forget + TRIALS * measured), backward + steps * forget


def held_bytes(model, task: UnlearningTask, hp: HyperParameters) -> int:
    """Return the bytes of the predictions before the edit."""
    rows, length = min(hp.kl_sequences, len(task.retain)), task.retain.shape[1]
    return 4 * rows * (length - 1) * model.config.get_text_config().vocab_size


class RetainDrift:
    """KL(before || after) on retain sequences, in nats per token. It keeps the predictions before the edit."""

    def __init__(self, model, task: UnlearningTask, count: int) -> None:
        order = torch.randperm(len(task.retain), generator=task.generator())
        tokens = task.retain[order[:count].sort().values]
        self._model, self._parts = model, tokens.split(task.microbatch)
        self._masks = [loss_mask(part, task.ignored_token).to(model.device) for part in self._parts]
        with torch.no_grad():
            self._before = [next_token_logits(model, part).log_softmax(-1) for part in self._parts]

    def __call__(self) -> float:
        """Return the divergence of the model as it is now; infinity if its predictions are not finite."""
        total = count = 0.0
        for part, mask, before in zip(self._parts, self._masks, self._before):
            with torch.no_grad():
                after = next_token_logits(self._model, part).log_softmax(-1)
            total += ((before.exp() * (before - after)).sum(-1) * mask).sum().item()
            count += mask.sum().item()
        mean = total / max(1.0, count)
        return max(0.0, mean) if math.isfinite(mean) else math.inf  # rounding can bring it below 0


def _ascended(
    model, task, weights: list[Weight], find_bases: FindBases, drift: RetainDrift, budget: float, hp
) -> tuple[dict, dict[str, float]]:
    """Return the matrices after all steps, shaped as stored, and the drift they reach. Leave the model unchanged."""
    with reversible() as changes, frozen(model):
        for weight in weights:
            changes.keep(weight.parameter)
        reached = 0.0
        for step in range(1, hp.newton_steps + 1):
            target = budget * (step / hp.newton_steps) ** 2
            reached = _climb(model, task, weights, find_bases, drift, target, reached, hp)
        edited = {weight.name: weight.parameter.detach().clone() for weight in weights}
    return edited, kl_note("kfade", budget, reached)


def _climb(
    model, task, weights: list[Weight], find_bases: FindBases, drift: RetainDrift, target: float, before: float, hp
) -> float:
    """Move the matrices uphill until the drift, now `before`, is close to the target. Return the drift."""
    parameters = [weight.parameter for weight in weights]
    with frozen(model, parameters):
        slopes = gradients(model, task, task.forget.planted, forget_weights(task, hp.forget_tokens), parameters)
    if not all_finite(slopes):
        raise NotFinite(f"its gradient is not finite; {remedy(model)}")
    directions, curvature = [], 0.0
    for weight, basis in find_bases():
        direction, bend = newton_direction(weight.view(slopes.pop(0)), basis, hp.damping)
        directions.append(weight.view(direction))
        curvature += bend
    start = [parameter.detach().clone() for parameter in parameters]

    def move(eta: float) -> None:
        for parameter, value, direction in zip(parameters, start, directions):
            parameter.detach().copy_(value + eta * direction)

    def divergence(eta: float) -> float:
        move(eta)
        return drift()

    unit = math.sqrt(2 / curvature) if curvature > 0 else 1.0  # the drift is about curvature * eta^2 / 2
    eta, reached = largest_step(divergence, target, before, unit * (math.sqrt(target) - math.sqrt(before)))
    move(eta)
    return reached


def forget_weights(task: UnlearningTask, forget_tokens: str) -> torch.Tensor:
    """Return each token loss's weight in the forget loss, a mean over the tokens that count, (F, T - 1). Pads do not.

    A row's prompt is not memorized: if it counted, the loss would first rise there, where the text is unpredictable.
    """
    mask = sides(task, forget_tokens)[0].mask
    return mask / mask.sum().clamp(min=1)


def newton_direction(slope: torch.Tensor, basis: Basis, damping: float) -> tuple[torch.Tensor, float]:
    """Return (G + d_G I)^-1 slope (A + d_A I)^-1, (out, in), and its squared length in the undamped A (x) G."""
    inputs, outputs = basis.input_values, basis.output_values
    damped = (outputs + damping * outputs.mean())[:, None] * (inputs + damping * inputs.mean())
    rotated = basis.rotate(slope) / damped.clamp(min=torch.finfo(torch.float32).tiny)
    return basis.back(rotated), (rotated.square() * outputs[:, None] * inputs).sum().item()


def largest_step(
    divergence: Callable[[float], float], target: float, before: float, first: float
) -> tuple[float, float]:
    """Return the largest of TRIALS step sizes whose divergence is at most the target, and that divergence.

    Return (0, before) if there is none. The trials begin at `first` and assume that the square root of the divergence
    grows linearly from that of `before`.
    """
    best, high, eta = (0.0, before), math.inf, first
    for _ in range(TRIALS):
        reached = divergence(eta)
        if reached <= target:
            best = max(best, (eta, reached))
        else:
            high = min(high, eta)
        rise, wanted = (math.sqrt(value) - math.sqrt(before) for value in (reached, 0.98 * target))
        guess, low = eta * wanted / rise if rise > 0 else math.inf, best[0]
        if low < guess < high:
            eta = min(guess, 10 * eta)
        else:
            eta = 10 * eta if high == math.inf else math.sqrt(low * high) if low else high / 10
    return best
