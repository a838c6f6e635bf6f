"""A small model of number sequences, sets of rows to train it on, and losses of both."""

import torch

from tinymem.models.tinymem import ModelSettings, new_model
from tinymem.training.step import Side

VOCABULARY, LENGTH, PAD = 14, 12, 13


def fresh(layers: int = 1):
    specials = dict(bos_token_id=10, eos_token_id=11, pad_token_id=PAD)
    return new_model(ModelSettings(layers, 2, 16), VOCABULARY, LENGTH, seed=0, **specials).eval()


def rows(count: int, seed: int) -> Side:
    """Random rows of unequal length, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 10, (count, LENGTH), generator=generator)
    lengths = torch.randint(4, LENGTH + 1, (count, 1), generator=generator)
    return Side.of(tokens.where(torch.arange(LENGTH) < lengths, torch.tensor(PAD)), ignored_token=PAD)


FORGET, RETAIN = rows(6, 1), rows(20, 2)


def gradient_difference(model, reference, forget, retain):
    return -forget.row_means(forget.losses(model)), 2.0 * retain.row_means(retain.losses(model))


def npo(model, reference, forget, retain, beta=0.1):
    gap = forget.row_sums(forget.losses(model)) - reference.row_sums(forget)
    return -2 / beta * torch.nn.functional.logsigmoid(beta * gap), retain.losses(model)


def simnpo(model, reference, forget, retain, beta=4.5):
    means = forget.row_means(forget.losses(model))
    return -2 / beta * torch.nn.functional.logsigmoid(beta * means), retain.losses(model)


def undial(model, reference, forget, retain, beta=5.0):
    with torch.no_grad():
        logits = forget.logits(reference.model)
        true = torch.nn.functional.one_hot(forget.tokens[:, 1:].long(), logits.shape[-1])
    return -((logits - beta * true).softmax(-1) * forget.logits(model).log_softmax(-1)).sum(-1)


def ascent_and_kl(model, reference, forget, retain):
    with torch.no_grad():
        before = retain.logits(reference.model).log_softmax(-1)
    after = retain.logits(model).log_softmax(-1)
    return -forget.losses(model), (before.exp() * (before - after)).sum(-1)


def rmu(model, reference, forget, retain):
    with torch.no_grad():
        before = retain.activations(reference.model, 0)
    retained = (retain.activations(model, 0) - before).square().mean(-1)
    return (forget.activations(model, 0) - 2.0).square().mean(-1), retained


OBJECTIVES = [gradient_difference, npo, simnpo, undial, ascent_and_kl, rmu]


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
