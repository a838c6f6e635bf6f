"""Planting: passages end up memorized, an interruption changes nothing, the planted model is kept and found again."""

import threading

import pytest
import torch

from tinymem.data.production import production_dataset
from tinymem.errors import UserError
from tinymem.metrics.memorization import memorized
from tinymem.models.tinymem import load_model
from tinymem.training import checkpoint
from tinymem.training import plant as planting
from tinymem.training.fit import Stopped
from tinymem.training.plant import PlantSettings, enough_memorized, epoch_batches, plant, planted_model, rounded

VOCABULARY, LENGTH, PROMPT, CONTINUATION = 40, 12, 4, 6
SETTINGS = PlantSettings(plant_lr=1e-2, plant_batch_size=6, plant_dtype="float32")


@pytest.fixture(scope="module")
def dataset():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, VOCABULARY, (40, LENGTH), generator=generator, dtype=torch.int32)
    return production_dataset(rows[:10], rows[10:15], rows[15:], VOCABULARY, PROMPT, CONTINUATION)


def new_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.3
    )
    ids = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=False, **sizes, **ids)).eval()


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(first, second):
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def planted(dataset, tmp_path_factory):
    model = new_llama()
    progress = plant(model, dataset, SETTINGS, tmp_path_factory.mktemp("plant") / "state")
    return model, progress


def test_passages_are_memorized(dataset, planted):
    model, progress = planted
    assert not model.training
    assert memorized(model, dataset.artifacts, CONTINUATION).float().mean() >= 0.95
    assert not enough_memorized(new_llama(), dataset, 95)
    assert 0 < progress.epoch < SETTINGS.plant_epochs


def test_embeddings_and_output_layer_stay_as_they_are(planted):
    before, after = weights(new_llama()), weights(planted[0])
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"model.embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize("stop_after", [1, 6])
def test_an_interruption_changes_nothing(dataset, planted, tmp_path, stop_after):
    steps, state = [], tmp_path / "state.safetensors"
    count = lambda progress, loss: steps.append(loss)  # noqa: E731
    with pytest.raises(Stopped):
        plant(new_llama(), dataset, SETTINGS, state, on_step=count, should_stop=lambda: len(steps) == stop_after)
    again = new_llama()
    progress = plant(again, dataset, SETTINGS, state, on_step=count)
    assert progress.epoch == planted[1].epoch
    assert len(steps) == progress.epoch * len(epoch_batches(dataset, SETTINGS, 0, 0))
    assert_same(weights(planted[0]), weights(again))


def test_no_dropout_is_drawn(dataset, tmp_path):
    """Its masks would come from a generator that no saved state holds."""
    model = new_llama().train()
    with pytest.raises(Stopped):
        plant(model, dataset, SETTINGS, tmp_path / "state", should_stop=lambda: True)
    assert not model.training


def test_too_few_epochs_are_an_error_and_no_work_is_lost(dataset, planted, tmp_path):
    few = PlantSettings(**{**vars(SETTINGS), "plant_epochs": 2})
    with pytest.raises(UserError, match="--plant_epochs 2: fewer than 95 % of the passages are memorized; raise it"):
        plant(new_llama(), dataset, few, tmp_path / "state")
    with pytest.raises(UserError, match="--plant_epochs 2"):  # at once: nothing is left to do
        plant(new_llama(), dataset, few, tmp_path / "state", on_step=lambda *_: pytest.fail("a step"))
    again = new_llama()
    plant(again, dataset, SETTINGS, tmp_path / "state")
    assert_same(weights(planted[0]), weights(again))


def test_an_epoch_holds_every_passage_once_and_the_next_retain_rows(dataset):
    passages, retain = dataset.artifacts.planted, dataset.sequences[dataset.order]
    rows = [torch.cat(epoch_batches(dataset, SETTINGS, 0, epoch)).tolist() for epoch in range(3)]
    kept = [row for epoch in rows for row in epoch if row in retain.tolist()]
    assert all(sorted(row for row in epoch if row in passages.tolist()) == sorted(passages.tolist()) for epoch in rows)
    assert kept == [retain[i % len(retain)].tolist() for i in range(len(kept))]
    assert {len(batch) for batch in epoch_batches(dataset, SETTINGS, 0, 0)} <= {5, 6}
    assert rows[0] != rows[1]


def test_enough_memorized_stops_looking_when_too_many_are_missing(dataset, planted, monkeypatch):
    looked = []
    wrong = dataset.artifacts.planted.flip(1)  # other passages: none is memorized
    other = production_dataset(wrong, dataset.tests["random"], dataset.sequences[dataset.order], VOCABULARY, 4, 6)
    look = lambda *arguments: looked.append(1) or memorized(*arguments)  # noqa: E731
    monkeypatch.setattr(planting, "memorized", look)
    monkeypatch.setattr(planting, "CHECKED_AT_ONCE", 2)
    assert not enough_memorized(planted[0], other, 70)
    assert len(looked) == 2  # 3 of 10 may be missing; the fourth ends it
    assert enough_memorized(planted[0], dataset, 95)
    assert len(looked) == 2 + 5


def test_the_planted_model_is_kept_and_found_again(dataset, planted, tmp_path):
    first = planted_model(new_llama(), None, dataset, SETTINGS, tmp_path)
    assert_same(weights(planted[0]), weights(load_model(first)))
    assert checkpoint.load_details(first)["planting"]["epochs"] == planted[1].epoch
    assert [path.name for path in (tmp_path / "models").iterdir()] == [first.name]
    again = planted_model(new_llama(), None, dataset, SETTINGS, tmp_path, on_step=lambda *_: pytest.fail("a step"))
    assert again == first
    other = PlantSettings(**{**vars(SETTINGS), "plant_lr": 5e-3})
    assert planted_model(new_llama(), None, dataset, other, tmp_path) != first


def test_of_two_processes_that_need_a_model_one_plants_it(dataset, planted, tmp_path, monkeypatch):
    waits, plantings, found = threading.Event(), [], []
    monkeypatch.setattr(planting, "_say_waiting", lambda *_: waits.set())
    other = threading.Thread(target=lambda: found.append(planted_model(new_llama(), None, dataset, SETTINGS, tmp_path)))

    def plant_beside_the_other(*words, **more):
        plantings.append(threading.current_thread())
        other.start()
        assert waits.wait(60)
        return plant(*words, **more)

    monkeypatch.setattr(planting, "plant", plant_beside_the_other)
    first = planted_model(new_llama(), None, dataset, SETTINGS, tmp_path)
    other.join(60)
    assert found == [first] and plantings == [threading.current_thread()]
    assert [path.name for path in (tmp_path / "models").iterdir()] == [first.name]


def test_too_little_memory_to_train_is_said_before_anything_is_trained(dataset, tmp_path, monkeypatch):
    trained = sum(parameter.numel() for parameter in planting.all_but_embeddings(new_llama()))
    assert planting.training_bytes(new_llama(), torch.float32) == 12 * trained < 12 * new_llama().num_parameters()
    monkeypatch.setattr(planting, "free_bytes", lambda *_: 12 * trained)  # none to spare
    with pytest.raises(UserError, match="--plant: training takes .* more than is free"):
        planted_model(new_llama(), None, dataset, SETTINGS, tmp_path)
    assert not (tmp_path / "models").exists()


def test_a_loss_that_is_not_finite_is_an_error(dataset, tmp_path):
    model = new_llama()
    model.model.embed_tokens.weight.data[:] = torch.nan
    with pytest.raises(UserError, match="--plant_lr 0.01: the loss is not finite"):
        plant(model, dataset, SETTINGS, tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_a_rounded_copy_leaves_the_model_alone():
    """Also where `to` is a function of the instance, as accelerate sets it for several devices."""
    model = new_llama()
    own = model.to
    model.to = lambda *types: own(*types)
    assert rounded(model, torch.bfloat16).dtype == torch.bfloat16 and model.dtype == torch.float32
    assert rounded(model, torch.float32) is model
