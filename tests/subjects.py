"""Subjects of models that memorize: a model with its task, twin and folder, as the scripts make them."""

from functools import partial

from tinymem.localize.subject import Subject, shared_sections
from tinymem.localize.task import TaskSettings, unlearning_task
from tinymem.metrics.evaluate import measure
from tinymem.metrics.reference import References
from tinymem.models.tinymem import new_model


def blank(of):
    """A model of the same sizes that has learned nothing."""
    dataset, data = of.dataset, of.settings.data
    specials = dict(bos_token_id=dataset.bos, eos_token_id=dataset.eos, pad_token_id=dataset.pad)
    return new_model(of.settings.model, dataset.vocabulary_size, data.max_ctx, data.seed + 1, **specials)


def subject_of(of, folder, **more) -> Subject:
    settings = TaskSettings(holdout_fraction=0.25)
    task = unlearning_task(of.model, of.dataset, settings)
    about = shared_sections(of.model, task, settings, {"data": {"data_name": "increment"}, "model": {}, "training": {}})
    references = References(of.dataset, task.retain, lambda: blank(of))
    run = partial(measure, dataset=of.dataset, batch_size=task.microbatch)
    return Subject(of.model, task, run, about, folder, folder / "scores", references=references, **more)
