"""Your own unlearning method: drop the MLP weights that are large compared with their gradient on the retain set.

    python src/localize/localize_memorization.py --model_path results/models/increment_backdoor_2layers \\
        --localization_method examples/magnitude.py --ratio 0.001 0.01

Flags, help, records and table columns follow from `HyperParameters`. The model must stay unchanged.
"""

from tinymem.localize.learning import frozen, gradients, mean_weights
from tinymem.models.adapter import find_mlps, mlp_weights
from tinymem.options import option, settings


@settings
class HyperParameters:
    """Magnitude over retain gradient"""

    ratio: tuple[float, ...] = option(
        (0.001, 0.01), "share of each MLP tensor to drop", above=0, below=1, strength=True
    )
    rows: int = option(64, "retain sequences for the gradient", low=1)


def score(model, task, hp):
    """Return one score per MLP weight, (out, in); the highest are set to zero."""
    weights = mlp_weights(find_mlps(model))
    parameters = [weight.parameter for weight in weights.values()]
    tokens = task.retain[: hp.rows]
    with frozen(model, parameters):
        slopes = gradients(model, task, tokens, mean_weights(task, tokens), parameters)
    return {
        name: weight.view().float().abs() / (weight.view(slope).float().abs() + 1e-6)
        for (name, weight), slope in zip(weights.items(), slopes)
    }
