import pytest
import torch

from tinymem.data.dataset import Artifacts
from tinymem.errors import UserError
from tinymem.localize.ranking import how_many, weight_masks
from tinymem.localize.task import UnlearningTask
from tinymem.localize.weight import block_fisher, obs
from tinymem.models.adapter import find_mlps
from tinymem.models.tinymem import ModelSettings, new_model

PAD = 0


def make_model():
    sizes = ModelSettings(n_layers=2, n_heads=2, n_embd=6)
    return new_model(sizes, vocabulary_size=11, max_ctx=12, seed=0, bos_token_id=1, eos_token_id=2).eval()


def make_task(forget=9, microbatch=64, ignored_token=None):
    tokens = torch.randint(0, 11, (forget, 12), generator=torch.Generator().manual_seed(1))
    zeros = torch.zeros(forget, dtype=torch.long)
    artifacts = Artifacts(tokens, tokens, zeros, zeros)
    return UnlearningTask(artifacts, tokens, artifacts.select(zeros[:0]), 4, ignored_token, microbatch=microbatch)


def scores_of(model, task, **hyper_parameters):
    return obs.score(model, task, obs.HyperParameters(**hyper_parameters))


def plain_gradients(model, task):
    """Gradient of each sequence's mean loss by plain autograd, flattened as (out, in): name -> float64 (m, n)."""
    weights = [w for mlp in find_mlps(model) for w in mlp.weights]
    rows = []
    for tokens in task.forget.planted:
        losses = torch.nn.functional.cross_entropy(model(tokens[None]).logits[0, :-1], tokens[1:], reduction="none")
        counts = torch.ones_like(losses) if task.ignored_token is None else (tokens[1:] != task.ignored_token).float()
        gradients = torch.autograd.grad((losses * counts).sum() / counts.sum(), [w.parameter for w in weights])
        rows.append([w.view(gradient).flatten() for w, gradient in zip(weights, gradients)])
    return {w.name: torch.stack(column).double() for w, column in zip(weights, zip(*rows))}


def plain_scores(model, task, block_size=50, damp=1e-7):
    """Each block of F built and inverted by itself, in float64."""
    weights, scores = {w.name: w for mlp in find_mlps(model) for w in mlp.weights}, {}
    for name, gradients in plain_gradients(model, task).items():
        blocks = []
        for start in range(0, gradients.shape[1], block_size):
            g = gradients[:, start : start + block_size]
            fisher = damp * torch.eye(g.shape[1], dtype=torch.float64) + g.T @ g / len(g)
            value = weights[name].view().flatten()[start : start + block_size].double()
            blocks.append(value**2 / (2 * torch.linalg.inv(fisher).diagonal()))
        scores[name] = torch.cat(blocks).view(weights[name].view().shape)
    return scores


def relative_error(scores, expected):
    return max(
        float((scores[n] - expected[n]).abs().max() / expected[n].abs().max().clamp(min=1e-30)) for n in expected
    )


@pytest.mark.parametrize("block_size, damp", [(50, 1e-7), (7, 1e-5), (1000, 1e-3)])
@pytest.mark.parametrize("ignored_token", [None, PAD])
def test_scores_are_those_of_explicitly_inverted_blocks(block_size, damp, ignored_token):
    model, task = make_model(), make_task(ignored_token=ignored_token)
    with torch.no_grad():
        for mlp in find_mlps(model):
            mlp.biases[0].parameter.normal_()  # a bias of 0 scores 0 whatever its Fisher block
    scores = scores_of(model, task, block_size=block_size, damp=damp)
    expected = plain_scores(model, task, block_size, damp)
    assert set(scores) == set(expected) == {w.name for mlp in find_mlps(model) for w in mlp.weights}
    assert all(scores[name].shape == expected[name].shape for name in scores)
    assert relative_error(scores, expected) < 1e-3


def test_the_sums_of_gradients_are_exact():
    model, task = make_model(), make_task()
    weights = [w for mlp in find_mlps(model) for w in mlp.weights]
    expected = plain_gradients(model, task)
    for weight, _, diagonal in block_fisher.inverse_fisher_diagonals(
        model, task, task.forget.planted, weights, block_size=1, damp=1e-3
    ):
        squares = expected[weight.name].square().mean(0).view(diagonal.shape)
        torch.testing.assert_close(diagonal, 1 / (squares + 1e-3), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_inverse_diagonal_against_linalg_inv(scale):
    gradients = scale * torch.randn(20, 12, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fisher = gradients.mT @ gradients / 12
    expected = torch.linalg.inv(fisher + 1e-7 * torch.eye(50)).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(block_fisher.inverse_diagonal(fisher, 1e-7), expected, rtol=1e-6, atol=0)


def test_damping_that_drowns_says_so():
    with pytest.raises(UserError, match="--damp 1e-20"):
        block_fisher.inverse_diagonal(torch.ones(1, 5, 5, dtype=torch.float64), 1e-20)


def test_several_passes_and_pieces_change_nothing(monkeypatch):
    model, task = make_model(), make_task()
    expected = scores_of(model, task, block_size=5)
    monkeypatch.setattr(block_fisher, "PASS", 5 * 100)
    monkeypatch.setattr(block_fisher, "PIECE", 20)
    weights = [w for mlp in find_mlps(model) for w in mlp.weights]
    passes = list(block_fisher.groups(weights, 5))
    assert len(passes) > 3 and max(map(len, passes)) > 1
    assert sum(weight.view()[rows].numel() for group in passes for weight, rows in group) == sum(
        w.parameter.numel() for w in weights
    )
    assert relative_error(scores_of(model, task, block_size=5), expected) < 1e-5


def test_microbatch_changes_nothing():
    model = make_model()
    expected = scores_of(model, make_task(), damp=1e-5)
    assert relative_error(scores_of(model, make_task(microbatch=2), damp=1e-5), expected) < 1e-4


def test_linear_layers_score_as_conv1d():
    model = make_model()
    expected = scores_of(model, make_task(), damp=1e-5)
    for block in model.transformer.h:
        for name in ("c_fc", "c_proj"):
            old = getattr(block.mlp, name)
            new = torch.nn.Linear(*old.weight.shape)
            new.load_state_dict({"weight": old.weight.T, "bias": old.bias})
            setattr(block.mlp, name, new)
    assert relative_error(scores_of(model, make_task(), damp=1e-5), expected) < 1e-4


def test_num_grads_takes_that_many_sequences_or_all():
    model, task = make_model(), make_task(forget=9)
    assert relative_error(scores_of(model, task, num_grads=9), scores_of(model, task, num_grads=512)) == 0
    chosen = torch.randperm(9, generator=task.generator())[:4].sort().values
    four = UnlearningTask(task.forget.select(chosen), task.retain, task.held_out, 4)
    assert relative_error(scores_of(model, task, num_grads=4), scores_of(model, four)) < 1e-5


def test_one_sequence():
    model, task = make_model(), make_task(forget=1)
    assert relative_error(scores_of(model, task), plain_scores(model, task)) < 1e-3


def test_models_that_flatten_positions_before_the_mlp():
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=8, word_embed_proj_dim=8, ffn_dim=12, num_hidden_layers=2, num_attention_heads=2)
    special = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2)
    config = transformers.OPTConfig(vocab_size=11, max_position_embeddings=16, **sizes, **special)
    torch.manual_seed(0)
    model, task = transformers.OPTForCausalLM(config).eval(), make_task()
    assert relative_error(scores_of(model, task, damp=1e-5), plain_scores(model, task, damp=1e-5)) < 1e-3


def test_bfloat16_weights_have_float32_scores():
    scores = scores_of(make_model().bfloat16(), make_task())
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in scores.values())


def test_gradients_that_are_not_finite_count_as_zero():
    model, task = make_model(), make_task()
    up, bias = model.transformer.h[1].mlp.c_fc, find_mlps(model)[1].biases[0]
    expected = plain_gradients(model, task)[bias.name]
    expected[2, 4] = 0

    def spoil(module, inputs, output):
        broken = torch.zeros_like(output)
        broken[2, :, 4] = torch.nan
        output.requires_grad_().register_hook(lambda gradient: gradient + broken)

    up.register_forward_hook(spoil)
    [(_, _, diagonal)] = block_fisher.inverse_fisher_diagonals(model, task, task.forget.planted, [bias], 1, 1e-3)
    torch.testing.assert_close(diagonal, 1 / (expected.square().mean(0) + 1e-3), rtol=1e-5, atol=0)


def test_equal_scores_are_dropped_by_index():
    model, task = make_model(), make_task()
    scores = {name: torch.ones_like(t) for name, t in scores_of(model, task).items()}
    for mask in weight_masks(scores, 0.1).values():
        count = how_many(0.1, mask.numel())
        assert mask.sum() == count and mask.flatten()[:count].all()


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model = make_model().train()
    bias = model.transformer.h[0].mlp.c_fc.bias
    bias.grad = gradient = torch.ones_like(bias)
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    if fails:
        answers = [None]  # the second microbatch fails
        hook = model.lm_head.register_forward_hook(lambda *_: answers.pop())
        with pytest.raises(IndexError):
            scores_of(model, make_task(microbatch=3))
        hook.remove()
    else:
        scores_of(model, make_task(microbatch=3))
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters()) and bias.grad is gradient
    assert all(p.grad is None for p in model.parameters() if p is not bias)
    assert not any(module._forward_hooks for module in model.modules())
