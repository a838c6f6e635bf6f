"""Shapes of models, and what running on their fake tensors counts."""

import torch
from architectures import SIZES, build
from tiny import new_model

from tinymem.localize.neuron.hidden import measured_positions
from tinymem.models.known_configs import known_config, known_shapes
from tinymem.planning.memory import shape_of
from tinymem.planning.plan import Sizes


def test_published_parameter_counts():
    counts = {
        "pythia-70m": 70426624, "EleutherAI/pythia-160m-deduped": 162322944, "pythia-410m": 405334016,
        "OLMo-2-0425-1B": 1484916736,
    }  # fmt: skip
    for name, count in counts.items():
        assert shape_of(known_config(name), torch.bfloat16).parameters == count
    variants = {
        "EleutherAI/pythia-2.8b-deduped-v0": "pythia-2.8b", "EleutherAI/pythia-1.4b-v0": "pythia-1.4b",
        "meta-llama/Llama-3.1-8B-Instruct": "Llama-3.1-8B", "Llama-3-8B": "Meta-Llama-3-8B",
        "allenai/OLMo-2-1124-7B-Instruct": "OLMo-2-1124-7B",
    }  # fmt: skip
    for name, known in variants.items():
        assert known_config(name).to_dict() == known_config(known).to_dict()
    assert known_config("no-such-model") is None and known_config("pythia-1") is None and len(known_shapes()) >= 10


def test_the_peak_is_of_living_tensors():
    def run(model):
        first = torch.empty(1000, dtype=torch.float32)
        second = torch.empty(500, dtype=torch.float64)
        del first
        torch.empty(100, dtype=torch.int8)
        return second[:10] + 1

    assert shape_of(new_model("gpt2").config, torch.float32).peak(run) == 8000


def test_masks_of_weights_are_true_in_a_share_of_their_places_and_ties_are_few():
    shape = shape_of(new_model("gpt2").config, torch.float32)

    def places(model):
        weight = model.lm_head.weight
        finite = weight.isfinite()
        answers = [
            finite.all(),
            finite.logical_not_().all(),
            weight.isnan().any(),
            weight.isfinite().logical_not_().any(),
        ]
        return [len(mask.nonzero()) for mask in (weight > 0.3, weight == 0.3)], [bool(answer) for answer in answers]

    found = []
    shape.peak(lambda model: found.append(places(model)), share=0.25)
    assert found == [([29, 1], [True, False, False, False])]  # 14 * 8 entries


def test_token_ids_are_real():
    """So that a method's batches and measured positions are those of a run."""
    shape = shape_of(new_model("gpt2").config, torch.float32)
    sizes = Sizes(forget=3, retain=3, length=12, prompt=5, microbatch=2)
    assert shape.run(lambda model: int(measured_positions(sizes.task()).sum(1).max())) == 7


def test_a_shape_can_be_cut_to_its_first_blocks():
    shape = shape_of(known_config("pythia-70m"), torch.bfloat16, "cuda")
    assert [len(cut.mlps) for cut in (*shape.cuts, shape)] == [1, 2, 6]
    assert all(cut.device == "cuda" and cut.model.dtype == torch.bfloat16 for cut in shape.cuts)
    one, two = (cut.parameters for cut in shape.cuts)
    assert one + 5 * (two - one) == shape.parameters


def test_a_model_of_one_block_can_be_planned():
    """Its lists of one entry per block, such as layer_types, get one for a second block."""
    config = build("qwen3", SIZES | dict(num_hidden_layers=1)).config
    assert len(config.layer_types) == 1
    assert [len(cut.mlps) for cut in shape_of(config, torch.float32).cuts] == [1, 2]
