"""Goldfish loss (Hans et al. 2024, arXiv 2406.10209): some tokens are never learned, so no sequence is learned whole.

Whether a target is left out depends on the text alone, so every epoch leaves out the same targets. With `hashed`, it
depends on the last goldfish_h targets, itself included: a passage loses the same tokens wherever it stands, even in
other sequences.
"""

from __future__ import annotations

import torch

from tinymem.errors import UserError
from tinymem.options import option, settings
from tinymem.regularizers.hashing import STEP, high_bits, mix, random_bits
from tinymem.regularizers.protocol import Regularizer

_BASE = 0x5851F42D4C957F2D  # odd, from Knuth's MMIX generator: the base of the polynomial
STRATEGIES = ("hashed", "seeded", "static")


@settings
class Settings:
    """Regularizer: goldfish loss (Hans et al. 2024)"""

    goldfish: bool = option(False, "leave some tokens out of the loss, the same ones in every epoch")
    goldfish_k: int = option(4, "leave out one in this many tokens", low=2, high=2**31 - 1)
    goldfish_h: int = option(13, "tokens that decide whether the last of them is left out (hashed)", low=1, high=2**16)
    goldfish_strategy: str = option(
        "hashed",
        "how to choose the tokens: by a hash of the token and those before it, at random by the whole sequence, or "
        "every k-th",
        choices=STRATEGIES,
    )

    def __post_init__(self) -> None:
        if self.goldfish_strategy != "hashed" and self.goldfish_h != Settings.goldfish_h:
            raise UserError(f"--goldfish_h {self.goldfish_h}: only with --goldfish_strategy hashed")


def build(model, settings: Settings, seed: int) -> Regularizer:
    """Leave targets out of the loss mask; the loss is the mean over the others.

    Raise UserError for a window, or a distance of `static`, that no sequence of the model has room for.
    """
    context = model.config.n_positions
    width = {"hashed": "goldfish_h", "static": "goldfish_k"}.get(settings.goldfish_strategy)
    if width and getattr(settings, width) >= context:
        raise UserError(
            f"--{width} {getattr(settings, width)}: must be < {context}, the model's context, or no token is left out"
        )

    def positions(tokens: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
        return loss_mask & ~left_out(tokens[:, 1:].long(), settings, seed)

    return Regularizer(positions=positions)


def left_out(targets: torch.Tensor, settings: Settings, seed: int) -> torch.Tensor:
    """Return which targets are left out, bool, broadcast to (rows, T - 1). targets: int64 (rows, T - 1).

    With `hashed` the first goldfish_h - 1 targets never are: their window would be incomplete.
    """
    k, places = settings.goldfish_k, torch.arange(targets.shape[1], device=targets.device)
    if settings.goldfish_strategy == "static":
        return places[None] % k == k - 1
    if settings.goldfish_strategy == "seeded":
        bits = random_bits(((targets + 1) * torch.tensor(powers(len(places))).to(targets)).sum(1), seed, places)
    else:
        bits = high_bits(mix(window_hashes(targets, settings.goldfish_h) + _signed((seed + 1) * STEP)))
    chosen = bits < 2**32 // k
    return chosen & (places >= settings.goldfish_h - 1) if settings.goldfish_strategy == "hashed" else chosen


def window_hashes(tokens: torch.Tensor, width: int) -> torch.Tensor:
    """Return a hash of each window of `width` tokens that ends at a token, int64 (rows, T); shorter ones at the start.

    It is the polynomial sum of (id + 1) base^j modulo 2^64, j counting back from the end of the window, so the order
    matters, and even a token with id 0, such as a digit 0, changes the sum. tokens: int64 (rows, T).
    """
    sums = torch.zeros_like(tokens)
    for back, power in enumerate(powers(min(width, tokens.shape[1]))):
        sums[:, back:] += (tokens[:, : tokens.shape[1] - back] + 1) * power
    return sums


def powers(count: int) -> list[int]:
    """Return base^0 .. base^(count - 1) modulo 2^64, as signed integers."""
    found = [1]
    while len(found) < count:
        found.append(_signed(found[-1] * _BASE))
    return found


def _signed(number: int) -> int:
    """Return a number modulo 2^64 as a signed 64-bit integer."""
    return (number + 2**63) % 2**64 - 2**63
