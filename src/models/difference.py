"""One model as an edit of another, which must be the same except for its weights."""

from __future__ import annotations

from typing import Any

from tinymem.errors import UserError
from tinymem.models.channel_gate import CONFIG_KEY, Gated, gate_of, is_gated
from tinymem.models.edit import Edit, Weights

# Settings of a config that do not affect outputs in evaluation mode, or are compared separately.
IGNORED_SETTINGS = (
    "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "name_or_path", CONFIG_KEY,
)  # fmt: skip
IGNORED_ENDS = ("_token_id", "_pdrop", "_dropout", "initializer_range")


def edit_between(original, model, name: str) -> Edit:
    """Return the edit that turns one model into another. name: of the other. Raise UserError as `check_same` does."""
    check_same(original, model, name)
    own, new = dict(original.named_parameters()), dict(model.named_parameters())
    weights = Weights(
        {part: value.detach() for part, value in new.items() if not value.detach().equal(own[part].detach().to(value))}
    )
    return Gated(weights, gate_of(model)) if is_gated(model) and not is_gated(original) else weights


def check_same(original, model, name: str, relation: str = "an edit") -> None:
    """Raise UserError unless two models differ in nothing but values. name: of the second. relation: to the first.

    They must have the same parameters in the same shapes, and agree in every setting that both of their configs have.
    """
    shapes_before, shapes = _shapes(original), _shapes(model)
    parts = sorted(shapes_before.keys() | shapes.keys())
    if unequal := [part for part in parts if shapes_before.get(part) != shapes.get(part)]:
        more = f"and {len(unequal) - 1} more differ" if unequal[1:] else "differs"
        raise UserError(f"{name}: not {relation} of this model; {unequal[0]} {more} in shape")
    before, now = _output_settings(original.config), _output_settings(model.config)
    if unequal := [key for key in sorted(before.keys() & now.keys()) if before[key] != now[key]]:
        key = unequal[0]
        raise UserError(f"{name}: not {relation} of this model; config.json says {key} {now[key]}, not {before[key]}")
    gate_before, gate = getattr(original.config, CONFIG_KEY, None), getattr(model.config, CONFIG_KEY, None)
    if is_gated(original) and gate_before != gate:  # a second gate would come on top of its own
        raise UserError(
            f"{name}: not {relation} of this model, which was trained with example-tied dropout {gate_before}, not "
            f"{gate}"
        )


def check_twin_model(model, twin, name: str) -> None:
    """Raise UserError unless a model and its never-planted twin differ in values and nothing else. name: the twin's."""
    check_same(model, twin, name, "a twin")
    values = dict(twin.named_parameters())
    if all(value.detach().equal(values[part].detach().to(value)) for part, value in model.named_parameters()):
        raise UserError(f"{name}: not a twin of this model, but the model itself: all weights are equal")


def check_same_tokens(original: Any, tokenizer: Any, name: str) -> None:
    """Raise UserError unless two tokenizers have the same vocabulary. A missing one (None) is not compared."""
    if original is not None and tokenizer is not None and original.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"{name}: has another tokenizer than the model that it is an edit of; token ids would mean other text"
        )


def _shapes(model) -> dict[str, Any]:
    return {part: value.shape for part, value in model.named_parameters()}


def _output_settings(config) -> dict[str, Any]:
    """Return the settings of a config that its outputs depend on."""
    values = config.to_dict()
    return {
        key: value
        for key, value in values.items()
        if key.lstrip("_") not in IGNORED_SETTINGS and not key.endswith(IGNORED_ENDS) and not key.startswith("summary_")
    }
