"""The models of plans: their fake tensors only show what a run would need (`tinymem.planning.memory`)."""

from __future__ import annotations


def is_plan(model) -> bool:
    """Return whether this is a plan's model."""
    return hasattr(model, "planned_for")


def runs_on(model) -> str:
    """Return the type of device that a model runs on, such as cpu or cuda; for a plan, that of the planned run."""
    return getattr(model, "planned_for", model.device.type)
