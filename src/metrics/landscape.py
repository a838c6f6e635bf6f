"""The loss around a model, on a plane through its weights (Li et al. 2018, arXiv 1712.09913, section 4).

The plane is spanned by two random directions. Each is filter-normalised: every filter of it, here the weights that
lead into one output unit, is scaled to the length of the same filter of the model. So a step of 1 moves every filter
as far as it is long, whatever its scale, and landscapes of different models can be compared. Biases and norms
(parameters of one dimension) stay where they are, as in the paper's code.

Models that were edited from one original belong on the same plane: normalise against the original once and move all
of them along the same directions. Filters that an edit emptied would otherwise stand still and make that model's
landscape look flatter than it is.
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
from tinymem.options import SEEDS, check_options, option

Direction = dict[str, "torch.Tensor"]  # parameter name -> how far it moves; parameters that stay are not in it
SAVE_SECONDS = 1.0  # a kill loses at most this much work, or one point


@dataclass(frozen=True)
class LandscapeSettings:
    """Loss landscape"""

    points: int = option(
        21, "grid points along each direction; odd, so that the middle one is the model itself", low=3, high=1001
    )
    distance: float = option(1.0, "how far the grid reaches to each side; 1: as far as the weights are long", above=0.0)
    num_sequences: int = option(128, "sequences that the loss is taken over, drawn at random", low=1)
    landscape_seed: int = option(0, "seed of the two directions and of the sequences", low=0, high=SEEDS)

    def __post_init__(self) -> None:
        check_options(self)
        if self.points % 2 == 0:
            raise UserError(f"--points {self.points}: must be odd, so that the middle point is the model itself")

    @property
    def coordinates(self) -> list[float]:
        """The grid's places along one direction, from -distance to distance; the middle one is exactly 0."""
        half = self.points // 2
        return [self.distance * (i - half) / half for i in range(self.points)]


def random_directions(model, seed: int) -> tuple[Direction, Direction]:
    """Two filter-normalised Gaussian directions. The same seed draws the same numbers on every device."""
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
    """Scales every filter of a direction to the length of the model's own: |d_i| = |w_i|.

    A filter is what leads into one output unit: a row of a matrix (out, in), so a column where GPT-2's Conv1D stores
    (in, out), and a row of an embedding. Of a tensor with more dimensions it is a slice of the first, as in the paper.
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
    """The model at weights + sum of step * direction, put back to the very same bits on leaving.

    Raises KeyError for a direction with a parameter that the model does not have.
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
    """loss(model) at every point of the grid, as they are computed.

    The points go line by line: point i * len(coordinates) + j is at coordinates[i] along the first direction and
    coordinates[j] along the second. start: how many of them are known already and left out. The model is itself
    whenever a loss is handed out.
    """
    points = [(x, y) for x in coordinates for y in coordinates]
    for steps in points[start:]:
        with moved(model, directions, steps):
            value = loss(model)
        yield value


@dataclass(frozen=True)
class Survey:
    """What all models on one plane share.

    tokens         (N, T) token ids of the sequences that the loss is taken over
    ignored_token  token id that no loss counts, or None
    directions     the plane, and in `plane` the fingerprint of the weights that they were normalised against
    batch_size     sequences per forward pass
    folder         where losses are kept as they come
    """

    settings: LandscapeSettings
    tokens: torch.Tensor
    ignored_token: int | None
    directions: tuple[Direction, Direction]
    plane: str
    batch_size: int
    folder: Path

    def mean_loss(self, model) -> float:
        """Mean token loss in nats. Raises NotFinite."""
        counts, pad = self.ignored_token is None, -1 if self.ignored_token is None else self.ignored_token
        return quality(model, self.tokens, pad, counts, self.batch_size).mean_loss

    def loss_or_nan(self, model) -> float:
        """The mean loss; NaN where it is not finite, as it may be far from a model."""
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
    """A plane around the original, and some of the sequences (rows, T). UserError for fewer than are asked for."""
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
    """What a file of losses holds beside what it is about."""

    losses: list[float | None]
    seconds: float


def landscape(model, survey: Survey, on_points: Callable[[int], None] = lambda count: None) -> dict[str, Any]:
    """The losses of one model on the survey's grid, and the seconds that they took over all sessions.

    losses[i][j] is the loss at coordinates[i] along the first direction and coordinates[j] along the second; None
    where it is not finite. They are kept in the survey's folder as they come, under a name that stands for everything
    that decides them: killed and called again it goes on. on_points(n) is called when n more points are known.
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
