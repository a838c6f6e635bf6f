import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tinymem.attacks import quantize
from tinymem.attacks.registry import find_attacks
from tinymem.errors import UserError
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import applied, apply


def test_rounding_by_hand():
    matrix = torch.tensor([[7.0, -3.4, 0.6, 0.4], [0.0, 0.0, 0.0, 0.0], [-0.7, 0.35, 0.1, 0.04]])
    assert quantize.rounded(matrix, 4).tolist() == [
        [7.0, -3.0, 1.0, 0.0],
        [0.0, 0.0, 0.0, 0.0],
        pytest.approx([-0.7, 0.4, 0.1, 0.0]),  # 3.5 steps of 0.1 go to the even 4
    ]


def test_against_a_plain_loop():
    matrix = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    for bits in (2, 4, 8):
        for row, found in zip(matrix, quantize.rounded(matrix, bits)):
            step = max(abs(value) for value in row.tolist()) / (2 ** (bits - 1) - 1)
            assert found.tolist() == pytest.approx([round(value / step) * step for value in row.tolist()], abs=1e-6)
            assert len(found.unique()) <= 2**bits - 1


def test_zeros_stay_zeros_in_every_matrix_but_the_output_layer():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=14, n_positions=12, n_embd=8, n_layer=2, n_head=2)).eval()
    view = find_mlps(model)[0].inputs[0].view()
    view[3, :5] = 0
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    edit = quantize.attack(model, None, quantize.HyperParameters(), 4)
    assert len(edit.values) == 2 * 4  # attention's two and the MLP's two, of each block
    with applied(model, edit):
        assert (view[3, :5] == 0).all()
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert changed == set(edit.values) and all(name.endswith("weight") for name in changed)
        for row in view:  # Conv1D stores (in, out): one scale per output
            assert len(row.unique()) <= 15
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    apply(model, edit)
    twice = {name: model.get_parameter(name).clone() for name in edit.values}
    apply(model, quantize.attack(model, None, quantize.HyperParameters(), 4))
    assert all(torch.allclose(model.get_parameter(name), twice[name], atol=1e-7) for name in twice)


def test_an_unknown_attack_and_bits_that_cannot_be():
    with pytest.raises(UserError, match="--attack magic: must be one of quantize"):
        find_attacks(["magic"])
    with pytest.raises(UserError, match="--bits 1"):
        quantize.HyperParameters(bits=(1,))
