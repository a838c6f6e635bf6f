"""Gradient difference (Liu et al. 2022, arXiv 2203.12817; Maini et al. 2024, TOFU, arXiv 2401.06121, section 4).

    python src/localize/localize_memorization.py --model_path results/models/increment_backdoor_2layers \
        --localization_method examples/grad_diff.py --steps 10 20 --lr 3e-4

Ascent on the forget set with descent on the retain set minimizes -L(forget) + a L(retain), with mean token loss L.
Nothing bounds the ascent, so that too many steps ruin the model.
"""

from tinymem.options import option, settings
from tinymem.training.objective import ObjectiveSettings


@settings
class HyperParameters(ObjectiveSettings):
    """Gradient difference"""

    retain_weight: float = option(1.0, "a: weight of the retain loss", low=0.0)


def loss(hp: HyperParameters, model, reference, forget, retain):
    """Return the values of forget and retain rows whose means are minimized together, (R, T - 1) each."""
    return -forget.losses(model), hp.retain_weight * retain.losses(model)
