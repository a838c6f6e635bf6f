"""The model outputs that metrics need, computed once and shared by all metrics and sets of sequences."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from tinymem.data.dataset import Artifacts, MemorizationDataset
from tinymem.metrics.quality import Quality, quality
from tinymem.models.generation import greedy_continuations
from tinymem.models.losses import greedy_hits, window_losses_and_hits

STUDY_BATCH_SIZE = 128  # perplexity_batch_mean depends on it; for TinyMem


@dataclass(frozen=True)
class Window:
    """The results of a teacher-forced pass for the k tokens after each prompt, A rows.

    targets              (A, k) int64; 0 after the end of a row
    loss_mask              (A, k) bool: false after the end of a row and at ignored tokens
    matches              (A, k) bool: the arg-max is the target; false after the end of a row
    log_probabilities    (A, k) float32, nats, of the targets; 0 after the end of a row. None unless requested
    """

    targets: torch.Tensor
    loss_mask: torch.Tensor
    matches: torch.Tensor
    log_probabilities: torch.Tensor | None


class Probe:
    """A model and its computed outputs. The model must not change meanwhile.

    Rows are identified by their content: a sequence in several sets is run once.

    continuation      k: the number of tokens after each prompt that count
    batch_size        sequences per forward pass; bounds memory, does not change results
    ignored_token     token id excluded from all means and matches, or None
    needs             needs of all later metrics (`tinymem.metrics.metric.NEEDS`), so that one pass serves them all
    pad               token id of pads, for figures without them
    study_batch_size  batch size of `perplexity_batch_mean`

    The model's mode is not set: dropout must be off. Raise UserError if its outputs are not finite numbers.
    """

    def __init__(
        self,
        model,
        continuation: int,
        batch_size: int = 64,
        ignored_token: int | None = None,
        needs: Collection[str] = (),
        pad: int | None = None,
        study_batch_size: int = STUDY_BATCH_SIZE,
    ):
        self.model, self.continuation, self.batch_size = model, continuation, batch_size
        self.ignored_token, self.pad, self.study_batch_size = ignored_token, pad, study_batch_size
        self._with_losses = "log_probabilities" in needs
        self._hits, self._losses, self._generated = _Rows(), _Rows(), _Rows()
        self._texts: dict[int, tuple[torch.Tensor, Quality]] = {}

    @classmethod
    def of(cls, model, dataset: MemorizationDataset, batch_size: int = 64, **more) -> Probe:
        """Return a probe with a dataset's window and pad token. more: needs, study_batch_size."""
        return cls(model, dataset.continuation, batch_size, dataset.ignored_token, pad=dataset.pad, **more)

    def teacher_forced(
        self, artifacts: Artifacts, prompt: str = "clean", target: str = "planted", log_probabilities: bool = False
    ) -> Window:
        """Run the prompt of `prompt` followed by the next k tokens of `target`; each is "clean" or "planted"."""
        targets, loss_mask = self.targets(artifacts, target)
        ends = artifacts.prompt_end[:, None]
        columns = torch.arange(artifacts.planted.shape[1])
        tokens = torch.where(columns < ends, getattr(artifacts, prompt), getattr(artifacts, target))
        tokens = tokens.masked_fill(columns >= ends + self.continuation, 0)  # later tokens have no effect
        keys = _keys(torch.cat([tokens, ends], 1))
        with_losses = self._with_losses or log_probabilities
        rows = (self._losses if with_losses else self._hits).of(
            keys, lambda new: self._run(tokens[new], artifacts.prompt_end[new], with_losses)
        )
        return Window(targets, loss_mask, rows[0], rows[1] if with_losses else None)

    def targets(self, artifacts: Artifacts, target: str = "planted") -> tuple[torch.Tensor, torch.Tensor]:
        """Return the k tokens after each prompt, int64, and the loss mask, bool, both (A, k)."""
        length = artifacts.planted.shape[1]
        places = artifacts.prompt_end[:, None] + torch.arange(self.continuation)
        inside = places < length
        tokens = getattr(artifacts, target).gather(1, places.clamp(max=length - 1)).long()
        loss_mask = inside if self.ignored_token is None else inside & (tokens != self.ignored_token)
        return tokens.masked_fill(~inside, 0), loss_mask

    def generated(self, artifacts: Artifacts, prompt: str = "clean") -> torch.Tensor:
        """Return the model's k tokens after each prompt, int64 (A, k); -1 beyond its context."""
        ends, source = artifacts.prompt_end, getattr(artifacts, prompt)
        outside = torch.arange(source.shape[1]) >= ends[:, None]

        def run(new: torch.Tensor) -> tuple[torch.Tensor]:
            prompts = [source[row, : ends[row]] for row in new.tolist()]
            return (greedy_continuations(self.model, prompts, self.continuation, self.batch_size),)

        keys = _keys(torch.cat([source.masked_fill(outside, 0), ends[:, None]], 1))
        return self._generated.of(keys, run)[0]

    def text_sums(self, tokens: torch.Tensor) -> Quality:
        """Return sums of losses and hits of test sequences (rows, T). A set is identified by its tensor object."""
        if id(tokens) not in self._texts:
            sums = quality(self.model, tokens, self.pad, self.ignored_token is None, self.batch_size)
            self._texts[id(tokens)] = (tokens, sums)  # keep the tensor, so that its id is not reused
        return self._texts[id(tokens)][1]

    def _run(self, tokens: torch.Tensor, ends: torch.Tensor, with_losses: bool) -> tuple[torch.Tensor, ...]:
        """Return matches, and log-probabilities if requested, of tokens (rows, T) with prompts of length `ends`."""
        k, length = self.continuation, tokens.shape[1]
        matches = torch.zeros(len(tokens), k, dtype=torch.bool)
        log_probabilities = torch.zeros(len(tokens), k) if with_losses else None
        # Batch rows with similar prompt lengths, so that the output layer runs on few positions.
        for rows in ends.argsort(stable=True).split(self.batch_size) if len(ends) else ():
            start = ends[rows, None]
            first, last = int(start.min()), min(int(start.max()) + k, length)
            if last <= first:
                continue
            places = start - first + torch.arange(k)
            inside, places = places < last - first, places.clamp(max=last - first - 1)
            with torch.inference_mode():
                if with_losses:
                    losses, hits = window_losses_and_hits(self.model, tokens[rows, :last], first, last)
                    log_probabilities[rows] = -losses.cpu().gather(1, places) * inside
                else:
                    hits = greedy_hits(self.model, tokens[rows, :last], first, last)
            matches[rows] = hits.cpu().gather(1, places) & inside
        return (matches, log_probabilities) if with_losses else (matches,)


class _Rows:
    """A cache of results, keyed by the content of rows."""

    def __init__(self):
        self._places: dict[bytes, int] = {}
        self._results: tuple[torch.Tensor, ...] | None = None

    def of(
        self, keys: Sequence[bytes], compute: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
    ) -> tuple[torch.Tensor, ...]:
        """Return the results of these rows. compute: row numbers of new rows, each once -> their results."""
        new = {key: number for number, key in enumerate(keys) if key not in self._places}
        if new or self._results is None:
            made = compute(torch.tensor([*new.values()], dtype=torch.long))
            before = self._results
            self._results = made if before is None else tuple(map(torch.cat, zip(before, made)))
            self._places.update(zip(new, range(len(self._places), len(self._places) + len(new))))
        places = torch.tensor([self._places[key] for key in keys], dtype=torch.long)
        return tuple(values[places] for values in self._results)


def _keys(rows: torch.Tensor) -> list[bytes]:
    return [row.tobytes() for row in rows.numpy()]
