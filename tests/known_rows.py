"""A model whose next-token distribution is read from a table, and rows that a random model knows in part."""

import torch
from tiny import LENGTH, VOCABULARY, new_model

from tinymem.data.dataset import Artifacts
from tinymem.metrics.probe import Probe
from tinymem.models.generation import greedy_continuations

PAD = 13


class Table:
    """Predicts from the present token alone: row `token` of a table of logits (vocabulary, vocabulary)."""

    device = torch.device("cpu")

    def __init__(self, logits: torch.Tensor):
        self.logits = logits

    def __call__(self, tokens, use_cache=False, logits_to_keep=0, **more):
        return type("Output", (), {"logits": self.logits[tokens[:, -logits_to_keep:]]})


def successor() -> Table:
    """Greedy decoding counts up: 0 1 2 ..."""
    return Table(torch.eye(VOCABULARY).roll(1, 1) * 5)


def artifacts(planted, ends, clean=None) -> Artifacts:
    planted, ends = torch.as_tensor(planted), torch.as_tensor(ends)
    return Artifacts(planted, planted if clean is None else torch.as_tensor(clean), ends, torch.zeros_like(ends))


def known_in_part(rows: int = 40, continuation: int = 5, seed: int = 0, **more) -> tuple[Probe, Artifacts]:
    """A random model, and rows whose continuation is its own with a third of the tokens replaced, prompts of 1 to 9.

    Some continuations are cut by the end of the row, some end in pads, one is nothing but pads.
    """
    model, generator = new_model("gpt2"), torch.Generator().manual_seed(seed)
    clean = torch.randint(0, PAD, (rows, LENGTH), generator=generator)
    ends = torch.randint(1, 10, (rows,), generator=generator)
    written = greedy_continuations(model, [row[:end] for row, end in zip(clean, ends)], continuation)
    planted = clean.clone()
    for number, end in enumerate(ends.tolist()):
        count = min(continuation, LENGTH - end)
        tokens = written[number, :count]
        if number % 3:
            other = torch.rand(count, generator=generator) < 0.4
            tokens = torch.where(other, torch.randint(0, PAD, (count,), generator=generator), tokens)
        planted[number, end : end + count] = tokens
        if number % 5 == 4:
            planted[number, end + 2 :] = PAD
    planted[-1, int(ends[-1]) :] = PAD
    clean[1::4, 0] = 0  # the prompts of some rows were noised
    return Probe(model, continuation, 7, pad=PAD, **more), Artifacts(planted, clean, ends, torch.zeros_like(ends))


def free_run(model, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding, a whole forward pass a token."""
    tokens = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def windows(probe: Probe, found: Artifacts) -> list[tuple[list[int], list[int], list[int]]]:
    """(clean prompt, planted prompt, planted tokens up to the first pad) of each row."""
    rows = []
    for planted, clean, end in zip(found.planted.tolist(), found.clean.tolist(), found.prompt_end.tolist()):
        tokens = planted[end : end + probe.continuation]
        rows.append((clean[:end], planted[:end], tokens[: tokens.index(PAD)] if PAD in tokens else tokens))
    return rows
