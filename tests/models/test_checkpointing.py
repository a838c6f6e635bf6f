import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from tinymem.models.checkpointing import checkpointed
from tinymem.models.losses import token_losses

TOKENS = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(0))


def models():
    torch.manual_seed(0)
    yield GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=3, n_head=2, n_positions=12, vocab_size=50))
    # Its blocks apply dropout by themselves: in training mode, which transformers' own switch needs, it would be on.
    yield OPTForCausalLM(
        OPTConfig(
            hidden_size=16, num_hidden_layers=3, num_attention_heads=2, ffn_dim=32, vocab_size=50,
            word_embed_proj_dim=16, max_position_embeddings=12,
        )
    )  # fmt: skip


def gradients(model, enabled):
    """Gradients of all parameters, and the bytes that the forward pass kept for them beside the parameters."""
    model.zero_grad()
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with checkpointed(model, enabled):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = token_losses(model, TOKENS)
        losses.sum().backward()
    return [p.grad for p in model.parameters()], sum(kept.values())


@pytest.mark.parametrize("model", models(), ids=lambda model: model.config.model_type)
def test_same_gradients_in_less_memory(model):
    model.eval()
    (plain, most), (again, less) = gradients(model, False), gradients(model, True)
    assert all(torch.equal(a, b) for a, b in zip(plain, again))
    assert less < most / 2
    assert not any("forward" in vars(module) for module in model.modules())  # put back


def test_a_forward_pass_that_was_replaced_is_put_back():
    model = next(models()).eval()
    block = model.transformer.h[0]
    block.forward = replaced = block.forward
    with checkpointed(model):
        assert block.forward is not replaced
    assert block.forward is replaced
