"""Direct preference optimization, as in AltPO (Mekala et al. 2024, arXiv 2409.13474) and ParaPO (arXiv 2504.14452).

The model learns to prefer an alternative to a planted row: here the row's clean twin, the sequence before the memory
was written into it.
"""

from __future__ import annotations

from tinymem.errors import UserError
from tinymem.localize.objective.terms import PreferenceSettings, learning_rate, preference, rises, with_retain
from tinymem.localize.objective_method import sides
from tinymem.options import settings
from tinymem.training.step import Side


@settings
class HyperParameters(PreferenceSettings):
    """Direct preference optimization"""

    lr: float = learning_rate()


def check(model, task, hp: HyperParameters) -> None:
    """Raise UserError for sequences without clean twins."""
    check_twin(sides(task, hp.forget_tokens)[0])


def check_twin(forget: Side) -> None:
    """Raise UserError for sequences without clean twins."""
    if forget.twin is None:
        raise UserError(
            "--localization_method dpo: these sequences have no clean twin (natural text); use npo or planted noise"
        )


def loss(hp: HyperParameters, model, reference, forget, retain):
    """Return one value per forget row and its twin, and the values of retain tokens."""
    check_twin(forget)
    margins = rises(model, reference, forget) - rises(model, reference, forget.twin)
    return with_retain(hp, model, reference, retain, preference(hp, forget, margins))
