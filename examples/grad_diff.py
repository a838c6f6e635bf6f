"""Gradient difference (Liu et al. 2022, arXiv 2203.12817; Maini et al. 2024, TOFU, arXiv 2401.06121, section 4).

    python src/localize/localize_memorization.py --model_path results/models/increment_backdoor_2layers \
        --localization_method examples/grad_diff.py --steps 10 20 --lr 3e-4

The registered method gradient_difference as a file of one's own. Ascent on the forget set with descent on the retain set
minimizes -g L(forget) + a L(retain), with mean token loss L and --forget_weight g, --retain_weight a.
"""

from tinymem.options import settings
from tinymem.training.objective import ObjectiveSettings


@settings
class HyperParameters(ObjectiveSettings):
    """Gradient difference"""


def loss(hp: HyperParameters, model, reference, forget, retain):
    """Return the values of forget and retain rows, (R, T - 1) each; retain is None with --retain_weight 0."""
    ascent = -forget.losses(model)
    return ascent if retain is None else (ascent, retain.losses(model))
