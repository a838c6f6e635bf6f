"""The model outputs that metrics need, computed once and shared by all metrics and sets of sequences."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from tinymem.data.dataset import Artifacts, MemorizationDataset
from tinymem.metrics.quality import Quality, quality
from tinymem.models.generation import greedy_continuations
from tinymem.models.losses import greedy_hits, window_losses_and_hits, window_statistics

if TYPE_CHECKING:
    from tinymem.metrics.reference import Drift, References

LEVELS = ("argmax_matches", "log_probabilities", "distribution")  # the needs that a teacher-forced pass meets
TOP_K = 40  # default of sampling
STUDY_BATCH_SIZE = 128  # perplexity_batch_mean depends on it; for TinyMem
OnRows = Callable[[str, int, int], object]  # a pass in words, its rows done, its rows in total
Compute = Callable[["torch.Tensor", int, int], Sequence["torch.Tensor"]]  # see Probe.windows


def silent(what: str, done: int, total: int) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Window:
    """The results of a teacher-forced pass for the k tokens after each prompt, A rows.

    targets              (A, k) int64; 0 after the end of a row
    loss_mask            (A, k) bool: false after the end of a row and at ignored tokens
    matches              (A, k) bool: the arg-max is the target; false after the end of a row
    real                 (A, k) bool: the loss mask without pads; what means are over
    log_probabilities    (A, k) float32, nats, of the targets; 0 after the end of a row. empty unless requested
    means, variances     (A, k) float32: of log p under p itself, over the vocabulary. empty unless requested
    """

    targets: torch.Tensor
    loss_mask: torch.Tensor
    matches: torch.Tensor
    real: torch.Tensor
    log_probabilities: torch.Tensor
    means: torch.Tensor
    variances: torch.Tensor

    @property
    def lengths(self) -> torch.Tensor:
        """The number of tokens in each row without pads, float64 (A,); NaN for none."""
        count = self.real.sum(1).double()
        return count.masked_fill(count == 0, torch.nan)


class Probe:
    """A model and its computed outputs. The model must not change meanwhile.

    Rows are identified by their content: a sequence in several sets is run once.

    continuation      k: the number of tokens after each prompt that count
    batch_size        sequences per forward pass; bounds memory, does not change results
    ignored_token     token id excluded from all means and matches, or None
    needs             needs of all later metrics (`tinymem.metrics.metric.NEEDS`), so that one pass serves them all
    pad               token id of pads, for figures without them
    study_batch_size  batch size of `perplexity_batch_mean`
    non_members       never-planted sequences, by which membership is judged; None: there are none
    references        the model before its edit and its twin; None: neither is known
    on_rows           called at the start of a pass and after every batch

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
        non_members: Artifacts | None = None,
        references: References | None = None,
        on_rows: OnRows = silent,
    ):
        self.model, self.continuation, self.batch_size = model, continuation, batch_size
        self.ignored_token, self.pad, self.study_batch_size = ignored_token, pad, study_batch_size
        self.non_members, self.references, self.on_rows = non_members, references, on_rows
        self._level = max([0, *(LEVELS.index(need) for need in needs if need in LEVELS)])
        self._windows: dict[tuple, _Rows] = {}
        self._generated, self._passes = _Rows(), dict[str, _Rows]()
        self._texts: dict[int, tuple[torch.Tensor, Quality]] = {}
        self._drifts: dict[str, Drift] = {}

    @classmethod
    def of(cls, model, dataset: MemorizationDataset, batch_size: int = 64, **more) -> Probe:
        """Return a probe with the window and the pads of a dataset. more: needs, study_batch_size.

        Non-members are chosen as members are: those that can be told from their clean twin.
        """
        others = dataset.never_planted
        more = {"pad": dataset.pad, "non_members": others.select(dataset.measured(others)), **more}
        return cls(model, dataset.continuation, batch_size, dataset.ignored_token, **more)

    @property
    def twin(self) -> Probe | None:
        """The probe of the never-planted twin, if there is one; the twin's own twin is itself."""
        if self.references is None:
            return None
        twin = self.references.twin(self.batch_size)
        if twin is not None and twin.model is self.model:
            return self  # not the other probe, whose outputs may differ in the last bits: it meets other needs
        if twin is not None:
            twin.on_rows = lambda what, done, total: self.on_rows(f"twin on {what}", done, total)
        return twin

    @property
    def original(self) -> Probe | None:
        """The probe of the model before its edit, if it can be opened."""
        return None if self.references is None else self.references.original(self.batch_size)

    def drift(self, name: str) -> Drift:
        """Compare the predictions on typical text with those before the edit. name: one of `metric.TEXTS`.

        Raise ValueError for a probe without references.
        """
        if self.references is None:
            raise ValueError("drift: needs the model before its edit (references)")
        if name not in self._drifts:
            self._drifts[name] = self.references.drift(self.model, name, partial(self.on_rows, f"drift on {name} text"))
        return self._drifts[name]

    def teacher_forced(
        self, artifacts: Artifacts, prompt: str = "clean", target: str = "planted", need: str = LEVELS[0]
    ) -> Window:
        """Run the prompt of `prompt` followed by the next k tokens of `target`; each is "clean" or "planted".

        need: one of LEVELS, the least that the window holds; the pass also meets the needs of all later metrics.
        """
        targets, loss_mask = self.targets(artifacts, target)
        level = max(self._level, LEVELS.index(need))
        found = self._forced(artifacts, prompt, target, level)
        real = self._without_pads(targets, loss_mask)
        logs, means, variances = (*found[1:4], *[torch.empty(0, 0)] * 3)[:3]
        return Window(targets, loss_mask, found[0], real, logs, means, variances)

    def sampled(self, artifacts: Artifacts, top_k: int = TOP_K, temperature: float = 1.0) -> torch.Tensor:
        """Return log q of each target when sampling from the top k, float32 (A, k); -infinity for those outside.

        top_k: the whole vocabulary if it is larger. 0 after the end of a row.
        """
        return self._forced(artifacts, "clean", "planted", 2, (top_k, temperature))[-1]

    def _forced(
        self, artifacts: Artifacts, prompt: str, target: str, level: int, sampling: tuple[int, float] = (TOP_K, 1.0)
    ) -> tuple[torch.Tensor, ...]:
        """Return each row's matches and what the level adds, (A, k): see `_run`."""
        ends = artifacts.prompt_end
        in_prompt = torch.arange(artifacts.planted.shape[1]) < ends[:, None]
        tokens = torch.where(in_prompt, getattr(artifacts, prompt), getattr(artifacts, target))
        rows = self._windows.setdefault((level, sampling), _Rows())
        keys = _keys(tokens, ends, self.continuation)
        return rows.of(keys, lambda new: self._run(tokens[new], ends[new], level, sampling))

    def targets(self, artifacts: Artifacts, target: str = "planted") -> tuple[torch.Tensor, torch.Tensor]:
        """Return the k tokens after each prompt, int64, and the loss mask, bool, both (A, k)."""
        length = artifacts.planted.shape[1]
        places = artifacts.prompt_end[:, None] + torch.arange(self.continuation)
        inside = places < length
        tokens = getattr(artifacts, target).gather(1, places.clamp(max=length - 1)).long()
        loss_mask = inside if self.ignored_token is None else inside & (tokens != self.ignored_token)
        return tokens.masked_fill(~inside, 0), loss_mask

    def real_targets(self, artifacts: Artifacts) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the k tokens after each prompt and whether each counts and is no pad: int64 and bool, both (A, k)."""
        tokens, loss_mask = self.targets(artifacts)
        return tokens, self._without_pads(tokens, loss_mask)

    def _without_pads(self, tokens: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
        return loss_mask if self.pad is None else loss_mask & (tokens != self.pad)

    def generated(self, artifacts: Artifacts) -> torch.Tensor:
        """Return the model's k tokens after each clean prompt, int64 (A, k); -1 beyond its context."""
        ends, source = artifacts.prompt_end, artifacts.clean

        def run(new: torch.Tensor) -> tuple[torch.Tensor]:
            prompts = [source[row, : ends[row]] for row in new.tolist()]
            tell = partial(self.on_rows, "generation")
            return (greedy_continuations(self.model, prompts, self.continuation, self.batch_size, on_rows=tell),)

        return self._generated.of(_keys(source, ends), run)[0]

    def once(self, what: str, artifacts: Artifacts, compute: Callable[[Artifacts], torch.Tensor]) -> torch.Tensor:
        """Return a result per row, (A, ...), from a pass of a metric's own over planted rows.

        what: the name of the pass. compute: rows -> their results; called only for rows that the pass has not yet seen,
        since several sets hold the same ones. Tokens after the k that count must have no effect.
        """
        keys = _keys(artifacts.planted, artifacts.prompt_end, self.continuation)
        rows = self._passes.setdefault(what, _Rows())
        return rows.of(keys, lambda new: (compute(artifacts.select(new)),))[0]

    def text_sums(self, tokens: torch.Tensor) -> Quality:
        """Return sums of losses and hits of test sequences (rows, T). A set is identified by its tensor object."""
        if id(tokens) not in self._texts:
            tell = partial(self.on_rows, "test text")
            left_out = self.pad if self.ignored_token is None else self.ignored_token
            sums = quality(self.model, tokens, left_out, self.ignored_token is None, self.batch_size, tell)
            self._texts[id(tokens)] = (tokens, sums)  # keep the tensor, so that its id is not reused
        return self._texts[id(tokens)][1]

    def _run(
        self, tokens: torch.Tensor, ends: torch.Tensor, level: int, sampling: tuple[int, float]
    ) -> tuple[torch.Tensor, ...]:
        """Run tokens (rows, T) with prompts of length `ends`. Return tensors (rows, k).

        They are matches; from level 1 on, log p; at level 2, mean and variance of log p, and log q of sampling (top k,
        temperature).
        """

        def compute(rows: torch.Tensor, first: int, last: int) -> tuple[torch.Tensor, ...]:
            return self._window(tokens[rows, :last], first, last, level, sampling)

        types = [torch.bool, *[torch.float32] * (0, 1, 4)[level]]
        return self.windows("planted sequences", tokens, ends, compute, types)

    def windows(
        self, what: str, tokens: torch.Tensor, ends: torch.Tensor, compute: Compute, types: Sequence[torch.dtype]
    ) -> tuple[torch.Tensor, ...]:
        """Return results for the k tokens after each prompt, (rows, k) of each of `types`; 0 after the end of a row.

        what           the pass in words
        tokens, ends   (rows, T), and the lengths of their prompts
        compute(some, first, last)   runs rows by number; returns, per type, (rows, last - first): about the tokens
                                     first <= position < last. No gradients are kept
        """
        k, length = self.continuation, tokens.shape[1]
        found = tuple(torch.zeros(len(tokens), k, dtype=dtype) for dtype in types)
        self.on_rows(what, done := 0, len(tokens))
        # Batch rows with similar prompt lengths, so that the output layer runs on few positions.
        for rows in ends.argsort(stable=True).split(self.batch_size) if len(ends) else ():
            start = ends[rows, None]
            first, last = int(start.min()), min(int(start.max()) + k, length)
            if last <= first:
                continue
            places = start - first + torch.arange(k)
            inside, places = places < last - first, places.clamp(max=last - first - 1)
            with torch.inference_mode():
                parts = compute(rows, first, last)
            for values, part in zip(found, parts):
                values[rows] = part.cpu().gather(1, places).masked_fill(~inside, 0)
            self.on_rows(what, done := done + len(rows), len(tokens))
        return found

    def _window(
        self, tokens: torch.Tensor, first: int, last: int, level: int, sampling: tuple[int, float]
    ) -> tuple[torch.Tensor, ...]:
        if level == 0:
            return (greedy_hits(self.model, tokens, first, last),)
        if level == 1:
            losses, hits = window_losses_and_hits(self.model, tokens, first, last)
            return hits, -losses
        found = window_statistics(self.model, tokens, first, last, *sampling)
        return found.hits, -found.losses, found.means, found.variances, -found.top_losses


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


def _keys(tokens: torch.Tensor, prompt_end: torch.Tensor, continuation: int = 0) -> list[bytes]:
    """Return the content of each row: its prompt and the tokens after it that count. Later ones have no effect."""
    ends = prompt_end[:, None]
    later = torch.arange(tokens.shape[1]) >= ends + continuation
    return [row.tobytes() for row in torch.cat([tokens.masked_fill(later, 0), ends], 1).numpy()]
