import pytest
import torch

from tinymem.regularizers.spectral_reg import Settings, build, power_step, weight_matrices

SETTINGS = Settings(spectral_reg=True, lam=0.3)


def expected_matrices(model) -> list[torch.Tensor]:
    """Every penalised matrix by name, sliced in the plainest way; Conv1D stores (in, out)."""
    heads, width, matrices = model.config.n_head, model.config.n_embd, []
    size = width // heads
    for block in model.transformer.h:
        for matrix in block.attn.c_attn.weight.split(width, dim=1):
            matrices += [matrix[:, head * size : (head + 1) * size] for head in range(heads)]
        matrices += [block.attn.c_proj.weight[head * size : (head + 1) * size] for head in range(heads)]
        matrices += [block.mlp.c_fc.weight, block.mlp.c_proj.weight]
    return matrices


def shown_matrices(model) -> list[torch.Tensor]:
    groups = weight_matrices(model).values()
    return [matrix for parts in groups for part in parts for matrix in part.view(part.parameter)]


def penalty(model) -> float:
    return SETTINGS.lam / 2 * sum(torch.linalg.svdvals(m)[0].item() for m in expected_matrices(model))


def converged(model):
    """The regularizer after many power iterations, with the gradient of the last one alone in .grad."""
    regularizer = build(model, SETTINGS, seed=0)
    for _ in range(600):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        regularizer.after_backward()
    return regularizer


def test_the_matrices_are_those_of_every_head_and_mlp(make_model):
    model = make_model()
    shown, expected = shown_matrices(model), expected_matrices(model)
    assert len(shown) == 2 * (4 * 2 + 2) == len(expected)

    def key(matrices):
        return sorted(tuple(sorted(matrix.flatten().tolist())) for matrix in matrices)

    assert key(shown) == key(expected)


def test_matrices_of_one_shape_are_in_one_batch(make_model):
    for parts in weight_matrices(make_model()).values():
        assert len({part.view(part.parameter).shape[1:] for part in parts}) == 1


def test_singular_values_are_the_largest(make_model):
    model = make_model().double()
    regularizer = converged(model)
    for name, parts in weight_matrices(model).items():
        matrices = torch.cat([part.view(part.parameter) for part in parts]).detach()
        u, v = power_step(matrices, regularizer.state[name])
        torch.testing.assert_close((u.mT @ matrices @ v).flatten(), torch.linalg.svdvals(matrices)[:, 0])


def test_one_power_iteration_a_step(make_model):
    model = make_model()
    regularizer = build(model, SETTINGS, seed=0)
    before = {name: u.clone() for name, u in regularizer.state.items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    regularizer.after_backward()
    for name, parts in weight_matrices(model).items():
        matrices = torch.cat([part.view(part.parameter) for part in parts]).detach()
        torch.testing.assert_close(regularizer.state[name], power_step(matrices, before[name])[0])


@pytest.mark.parametrize("name", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"])
def test_gradient_against_finite_differences(make_model, name):
    model = make_model().double()
    converged(model)
    weight, step = model.transformer.h[1].get_submodule(name).weight, 1e-5
    for index in torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(0))[:8].tolist():
        values = []
        with torch.no_grad():
            for shift in (step, -2 * step):
                weight.view(-1)[index] += shift
                values.append(penalty(model))
            weight.view(-1)[index] += step
        assert weight.grad.view(-1)[index].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-8)


def test_the_gradient_is_added_and_other_parameters_are_left_alone(make_model):
    model = make_model()
    regularizer = build(model, SETTINGS, seed=0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    regularizer.after_backward()
    changed = {name for name, parameter in model.named_parameters() if (parameter.grad != 1).any()}
    kinds = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert changed == {f"transformer.h.{layer}.{kind}.weight" for layer in (0, 1) for kind in kinds}
