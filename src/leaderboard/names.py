"""The names of columns, tables and limits of the leaderboard."""

from __future__ import annotations

import re

from tinymem.leaderboard.cases import Case
from tinymem.leaderboard.evidence import FORGETTING, JUDGED, PRIVACY, RECOVERED
from tinymem.leaderboard.score import PARTS

COMMAND = "python experiments/leaderboard.py --report"
NAMES = {f"{name}_{JUDGED}": text for name, text in zip((*FORGETTING, *PRIVACY), (
    "exact %", "near-verbatim %", "extractable %", "tokens", "AUC loss", "AUC zlib", "AUC Min-K%++"))}  # fmt: skip
NAMES[RECOVERED] = "exact, shown %"
NAMES |= {"mean_test_accuracy": "accuracy", "kl_unseen": "KL", "neighbour_accuracy": "neighbours"}
NAMES |= {"peak_memory_gb": "GB", "flip_rate_unseen": "flips %"}
DIGITS = {
    "score": 2,
    **dict.fromkeys(PARTS, 2),
    "mean_test_accuracy": 4,
    "perplexity": 3,
    "kl_unseen": 3,
    "seconds": 0,
    "flip_rate_unseen": 1,
}
DIGITS |= {name: 1 for name in NAMES if name.startswith("percent_")}
MEANINGS = {
    "score": "harmonic mean of forget, private, robust and useful, each at least 0.01",
    "forget": "the worst metric on held-out sequences: 0 unedited, 1 like the twin; overshooting is subtracted",
    "private": "the worst membership score, by AUC: 0 unedited, 1 like the twin; overshooting is subtracted",
    "robust": "1 minus the share of the memories that the worst attack brings back in excess of the twin",
    "useful": "accuracy (text: perplexity) relative to the twin's",
    "seconds": "to find the edit, or to train",
    "peak_memory_gb": "peak memory of the process that finds the edit, or trains",
    "trials": "settings that were tried",
}


def within(case: Case, limit: float) -> str:
    """Return a table's limit as text."""
    return f"within {case.utility.limit_text(limit)}"


def spelled_alike(name: str) -> str:
    """Return an entrant's name without case, blanks and signs, which readers and the page's links do not tell apart."""
    return " ".join(re.findall(r"[^\W_]+", name)).casefold()
