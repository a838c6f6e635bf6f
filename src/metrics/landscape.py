"""The loss around a model, on a plane through its weights (Li et al. 2018, arXiv 1712.09913, section 4).

Two random directions span the plane. Each is filter-normalised: each of its filters (the weights into one output unit)
is scaled to the norm of the model's filter. So a step of 1 moves every filter by its own norm, and landscapes of
different models can be compared. Biases and norms (parameters of one dimension) are not moved, as in the
paper's code.

Edits of one original belong on the same plane: normalise against the original once and move all models along the same
directions. Otherwise filters that an edit emptied would not move, and that model's landscape would look too
flat.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tinymem import files
from tinymem.data.token_sets import TokenSet
from tinymem.errors import NotFinite, UserError
from tinymem.inputs import read_settings
from tinymem.metrics.quality import quality
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.options import SEEDS, option, settings

Direction = dict[str, "torch.Tensor"]  # parameter name -> its change; fixed parameters are left out
SAVE_SECONDS = 1.0  # an interruption loses at most this much work, or one point


@settings
class LandscapeSettings:
    """Loss landscape"""

    points: int = option(
        21, "grid points along each direction; odd, so that the middle one is the model itself", low=3, high=1001
    )
    distance: float = option(1.0, "extent of the grid to each side; 1: the norm of the weights", above=0.0)
    num_sequences: int = option(128, "sequences for the loss, drawn at random", low=1)
    landscape_seed: int = option(0, "seed of the two directions and of the sequences", low=0, high=SEEDS)

    def __post_init__(self) -> None:
        if self.points % 2 == 0:
            raise UserError(f"--points {self.points}: must be odd, so that the middle point is the model itself")

    @property
    def coordinates(self) -> list[float]:
        """The grid's coordinates along one direction, from -distance to distance; the middle one is exactly 0."""
        half = self.points // 2
        return [self.distance * (i - half) / half for i in range(self.points)]


def random_directions(model, seed: int) -> tuple[Direction, Direction]:
    """Return two filter-normalised Gaussian directions. A seed gives the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    return _random_direction(model, generator), _random_direction(model, generator)


def _random_direction(model, generator: torch.Generator) -> Direction:
    drawn = {
        name: torch.randn(parameter.shape, generator=generator).to(parameter.device)
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1
    }
    return filter_normalised(model, drawn)


def filter_normalised(model, direction: Direction) -> Direction:
    """Scale every filter of a direction to the norm of the model's filter: |d_i| = |w_i|.

    A filter is the set of weights into one output unit: a row of a matrix (out, in), which GPT-2's Conv1D stores as a
    column, a row of an embedding, and a slice along the first dimension of other tensors, as in the paper.
    """
    stored_in_out = {id(module.weight) for module in model.modules() if type(module).__name__ == "Conv1D"}
    scaled = {}
    for name, parameter in model.named_parameters():
        if name in direction:
            dims = (0,) if id(parameter) in stored_in_out else tuple(range(1, parameter.dim()))
            lengths = torch.linalg.vector_norm(parameter.detach().float(), dim=dims, keepdim=True)
            own = torch.linalg.vector_norm(direction[name], dim=dims, keepdim=True)
            scaled[name] = direction[name] * (lengths / own.clamp(min=torch.finfo(torch.float32).tiny))
    return scaled


@contextmanager
def moved(model, directions: Sequence[Direction], steps: Sequence[float]) -> Iterator:
    """Yield the model at weights + sum of step * direction; restore it bit for bit on leaving.

    Raise KeyError for a direction with a parameter that the model does not have.
    """
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach().clone() for direction in directions for name in direction}
    try:
        with torch.no_grad():
            for direction, step in zip(directions, steps, strict=True):
                for name, tensor in direction.items():
                    parameters[name].add_(tensor, alpha=step)
        yield model
    finally:
        with torch.no_grad():
            for name, tensor in before.items():
                parameters[name].copy_(tensor)


def grid_losses(
    model,
    directions: tuple[Direction, Direction],
    coordinates: Sequence[float],
    loss: Callable[..., float],
    start: int = 0,
) -> Iterator[float]:
    """Yield loss(model) at every point of the grid.

    Points are in row order: point i * len(coordinates) + j is at coordinates[i] along the first direction and
    coordinates[j] along the second. start: the number of known points to skip. The model is restored before each
    loss is yielded.
    """
    points = [(x, y) for x in coordinates for y in coordinates]
    for steps in points[start:]:
        with moved(model, directions, steps):
            value = loss(model)
        yield value


@dataclass(frozen=True)
class Survey:
    """The settings that all models on one plane share.

    tokens         (N, T) token ids of the sequences for the loss
    ignored_token  token id excluded from the loss, or None
    directions     the plane; `plane` has the fingerprint of the weights used to normalise them
    batch_size     sequences per forward pass
    folder         stores losses as they are computed
    """

    settings: LandscapeSettings
    tokens: torch.Tensor
    ignored_token: int | None
    directions: tuple[Direction, Direction]
    plane: str
    batch_size: int
    folder: Path

    def mean_loss(self, model) -> float:
        """Return the mean token loss in nats. Raise NotFinite if it is not finite."""
        counts, pad = self.ignored_token is None, -1 if self.ignored_token is None else self.ignored_token
        return quality(model, self.tokens, pad, counts, self.batch_size).mean_loss

    def loss_or_nan(self, model) -> float:
        """Return the mean loss; NaN if it is not finite, as can happen far from the model."""
        try:
            return self.mean_loss(model)
        except NotFinite:
            return math.nan


def new_survey(
    original,
    settings: LandscapeSettings,
    tokens: torch.Tensor,
    ignored_token: int | None,
    batch_size: int,
    folder: Path,
) -> Survey:
    """Return a survey: a plane around the original, and a sample of the sequences. Raise UserError for too few."""
    if len(tokens) < settings.num_sequences:
        raise UserError(f"--num_sequences {settings.num_sequences}: there are only {len(tokens)}; ask for fewer")
    drawn = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(settings.landscape_seed))
    return Survey(
        settings=settings,
        tokens=tokens[drawn[: settings.num_sequences].sort().values],
        ignored_token=ignored_token,
        directions=random_directions(original, settings.landscape_seed),
        plane=weights_fingerprint(original),
        batch_size=batch_size,
        folder=folder,
    )


@dataclass
class _Kept:
    """The content of a file of losses, without its key."""

    losses: list[float | None]
    seconds: float


def landscape(model, survey: Survey, on_points: Callable[[int], None] = lambda count: None) -> dict[str, Any]:
    """Return the losses of one model on the survey's grid, and the seconds of computing over all sessions.

    losses[i][j] is the loss at coordinates[i] along the first direction and coordinates[j] along the second; None if it
    is not finite. Losses are stored in the survey's folder as they are computed, under a digest of all their inputs, so
    that an interrupted call can resume. on_points(n) is called when n more points are known.
    """
    identity = {**asdict(survey.settings), "weights": weights_fingerprint(model), "plane": survey.plane}
    identity |= {"tokens": TokenSet(survey.tokens, {}).fingerprint, "ignored_token": survey.ignored_token}
    path, size = survey.folder / f"{files.digest(identity)}.json", survey.settings.points
    kept = vars(read_settings(_Kept, files.read_json(path), path, whole=True) if path.exists() else _Kept([], 0.0))
    losses = kept["losses"]
    if len(losses) > size**2:
        raise UserError(f"{path}: losses: has {len(losses)}, the grid {size**2}; delete it and run again")
    on_points(len(losses))
    saved = time.monotonic()
    started = saved - kept["seconds"]
    for value in grid_losses(
        model, survey.directions, survey.settings.coordinates, survey.loss_or_nan, start=len(losses)
    ):
        if len(losses) == size**2 // 2 and math.isnan(value):
            raise NotFinite("the loss of the model itself, in the middle of the landscape, is not a finite number")
        losses.append(value if math.isfinite(value) else None)
        on_points(1)
        now = time.monotonic()
        if now - saved > SAVE_SECONDS or len(losses) == size**2:
            kept["seconds"], saved = round(now - started, 3), now
            files.write_json(path, {"settings": identity, **kept})
    return {"seconds": kept["seconds"], "losses": [losses[i : i + size] for i in range(0, size**2, size)]}
