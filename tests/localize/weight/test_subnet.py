import dataclasses

import pytest
import torch

from tinymem.errors import NotFinite
from tinymem.localize.weight import subnet
from tinymem.localize.weight.subnet import HyperParameters, learn
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Zeros, applied

EXACT = HyperParameters(epochs=10, batch_size=4, lr=1.0, dtype="float32")


def same(masks, others):
    return masks.keys() == others.keys() and all(torch.equal(masks[name], others[name]) for name in masks)


def unlearn_loss(model, task, masks):
    with applied(model, Zeros(masks)):
        return task.mean_loss(model, task.forget.planted)


def test_raises_the_unlearn_loss(any_model, tiny_task):
    task = tiny_task()
    untrained = learn(any_model, task, dataclasses.replace(EXACT, lr=1e-9), 0.3)
    assert (
        unlearn_loss(any_model, task, learn(any_model, task, EXACT, 0.3))
        > unlearn_loss(any_model, task, untrained) + 0.1
    )


def test_each_step_follows_minus_the_mean_loss(tiny_model, tiny_task, monkeypatch):
    """The step's gradient is -1 times that of the mean loss over counted tokens, whatever the microbatch."""
    model, steps = tiny_model(), {}
    for microbatch in (1, 3, 64):
        task = tiny_task(ignored_token=13, microbatch=microbatch)

        def collect(model, batches, step, *rest):
            for batch in batches:
                model.zero_grad()
                parameters = [m.parameter for mlp in find_mlps(model) for m in mlp.matrices]
                ours = step(batch, parameters)
                model.zero_grad()
                logits, targets = model(batch).logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten()
                (-torch.nn.functional.cross_entropy(logits, targets, ignore_index=13)).backward()
                steps.setdefault(microbatch, []).append(len(batch))
                plain = [parameter.grad for parameter in parameters]
                assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(ours, plain))

        monkeypatch.setattr(subnet, "learn_subnet", collect)
        learn(model, task, dataclasses.replace(EXACT, epochs=2), 0.3)
    assert all(sizes == [4] * 6 for sizes in steps.values())  # two passes over 10 sequences, 4 a batch


def test_keeps_exactly_the_right_number(any_model, tiny_task):
    masks = learn(any_model, tiny_task(), EXACT, 0.3)
    matrices = {m.name: m for mlp in find_mlps(any_model) for m in mlp.matrices}
    assert masks.keys() == matrices.keys()
    for name, mask in masks.items():
        assert mask.shape == matrices[name].view().shape and int(mask.sum()) == round(0.3 * mask.numel())


def test_conv1d_and_linear_give_the_same_mask(tiny_model, tiny_task, linear_twin):
    model = tiny_model()
    assert same(learn(model, tiny_task(), EXACT, 0.3), learn(linear_twin(model), tiny_task(), EXACT, 0.3))


def test_microbatches_do_not_matter(tiny_model, tiny_task):
    first, *others = [learn(tiny_model(), tiny_task(microbatch=microbatch), EXACT, 0.3) for microbatch in (1, 3, 64)]
    assert all(same(first, other) for other in others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_one_sequence_and_a_model_left_as_it_was(tiny_model, tiny_task, snapshot, dtype, precision):
    model, task = tiny_model().to(dtype).train(), tiny_task(forget=1)
    before = snapshot(model)
    hp = dataclasses.replace(EXACT, dtype=precision)
    assert same(learn(model, task, hp, 0.3), learn(model, task, hp, 0.3))
    assert snapshot(model) == before


def test_a_model_of_nan_is_refused(tiny_model, tiny_task):
    model = tiny_model()
    find_mlps(model)[0].output_bias.view().fill_(float("nan"))
    with pytest.raises(NotFinite, match="none of its .* steps had a finite gradient"):
        learn(model, tiny_task(), EXACT, 0.3)
