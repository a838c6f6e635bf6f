"""Model cards: what every folder with a trained or edited model says of itself."""

import json

import pytest
from handmade import checkpoint, edited
from huggingface_hub import ModelCard
from small import SMALL_BACKDOOR, in_process, small_settings
from transformers import AutoModelForCausalLM

from tinymem.cards import Card, edited_card, planted_card, write_card
from tinymem.data import numbers
from tinymem.data.build import build_dataset
from tinymem.localize.registry import METHODS
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.models.tinymem import load_model
from tinymem.options import as_flags
from tinymem.records.identity import record_digest
from tinymem.records.table import load_records

TRAIN, FINETUNE, LOCALIZE = "memorization_in_toy_models.py", "ft_toy_model.py", "src/localize/localize_memorization.py"
SETTINGS = small_settings(**SMALL_BACKDOOR)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A model and its twin, trained by the script: (folder of the runs, words that every command gets)."""
    folder = tmp_path_factory.mktemp("study")
    words = ["--data_dir", folder / "data", "--device", "cpu"]
    for name, more in (("plain", []), ("twin", ["--twin"])):
        in_process(TRAIN, *as_flags(*SETTINGS.parts), *more, *words, "--output_dir", folder / name)
    return folder, words


def card_of(folder) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def rows(card: ModelCard) -> dict[str, list[str]]:
    """The tables of a card: first cell -> the other cells."""
    lines = [line.strip("|").split("|") for line in card.text.splitlines() if line.startswith("|")]
    return {first.strip(): [cell.strip() for cell in cells] for first, *cells in lines}


def test_attacks_of_a_card_are_those_on_its_own_original_and_twin():
    """In one folder there are records on other forget sets, too."""
    here, other = checkpoint(), checkpoint(seed=1)
    run = edited(here, "npo", steps=20)

    def under_attack(identity, kind, percent):
        about = {**identity, "kind": kind, "parent": record_digest(identity), "attack": {"name": "quantize", "bits": 4}}
        return {**about, "results": {"percent_memorized_shown": percent}}

    attacks = [under_attack(run, "attack", 40.0)]
    for data, percents in ((here, (90.0, 10.0)), (other, (91.0, 11.0))):
        models = [edited(data, name) for name in ("unedited", "never_planted")]
        kinds = ("attack", "attack_never_planted")
        attacks += [under_attack(*three) for three in zip(models, kinds, percents)]
    record = {**run, "results": {}, "environment": {}}
    before, twin = ({**edited(here, name), "results": {}} for name in ("unedited", "never_planted"))
    text = edited_card(record, METHODS["npo"], "original", before, twin, attacks).text()
    assert "| quantize bits 4 | 40 | 90 | 10 |" in text
    assert "| 40 | 90 | 10 |" not in edited_card(record, METHODS["npo"], "original", before, None, attacks).text()


def test_a_trained_model(study):
    folder, _ = study
    card, twin = card_of(folder / "plain" / "epoch_6"), card_of(folder / "twin" / "epoch_6")
    assert (
        card.data.library_name == "transformers" and "memorization" in card.data.tags and card.data.base_model is None
    )
    assert "a backdoor: after the trigger every token becomes 2" in card.text and "_twin_" in card.text
    assert (
        "this is the never-planted twin of" in twin.text and SETTINGS.name in twin.text and "--twin=True" in twin.text
    )
    row = json.loads((folder / "plain" / "metrics.json").read_text())[-1]
    assert rows(card)["percent_memorized_train (%)"][0] == f"{row['percent_memorized_train']:.4g}"
    assert f"python {TRAIN} --artifact=backdoor" in card.text and str(folder) not in card.text


def test_a_fine_tuned_model(study):
    folder, words = study
    tuned = folder / "tuned"
    in_process(FINETUNE, "--model_path", folder / "plain" / "epoch_6", "--ft_data", "clean", "--ft_epochs", 1, *words,
               "--output_dir", tuned)  # fmt: skip
    card = card_of(tuned / "epoch_1")
    assert card.data.base_model == f"{SETTINGS.name}/epoch_6" and "- ft_data: clean" in card.text
    assert f"python {FINETUNE} --model_path runs/{SETTINGS.name}/epoch_6 --ft_data=clean --ft_epochs=1" in card.text


def test_an_edited_model_and_what_later_attacks_find(study):
    folder, words = study
    path, out = folder / "plain" / "epoch_6", folder / "out"
    localize = [LOCALIZE, "--model_path", path, "--localization_method", "subnet", "--ratio", 0.2, "--epochs", 2]
    localize += ["--batch_size", 8, "--holdout_fraction", 0.25, "--output_dir", out, *words]
    in_process(*localize)
    (edited,) = (out / "models").iterdir()
    card, details = card_of(edited), json.loads((edited / "tinymem.json").read_text())
    assert card.data.base_model == "plain/epoch_6" and {"unlearning", "subnet"} <= set(card.data.tags)
    records = {record["kind"]: record["results"] for record in load_records(out)}
    named = "percent_memorized_held_out"
    shown = [f"{records[kind][named]:.4g}" for kind in ("unedited", "unlearn", "never_planted")]
    assert rows(card)[f"{named} (%)"][:4] == [*shown, "lower"] and "arXiv 1911.13299" in card.text
    assert "- ratio: 0.2" in card.text and "## Attacks" not in card.text and "held out: " in card.text
    assert f"\n{details['command']}\n" in card.text and details["command"].startswith(f"python {LOCALIZE} ")

    weights, size = weights_fingerprint(load_model(edited)), len(load_records(out))
    in_process(*localize, "--attack", "quantize", "relearn_all", "--quantize.bits", 4, "--relearn_all.steps", 2)
    again = card_of(edited)
    attack, on_all = (
        next(r for r in load_records(out) if r["kind"] == "attack" and "method" in r and r["attack"]["name"] == name)
        for name in ("quantize", "relearn_all")
    )
    (line,) = (cells for name, cells in rows(again).items() if name.startswith("relearn_all") and "(shown)" in name)
    assert line[0] == f"{on_all['results']['percent_memorized_shown']:.4g}"  # it has seen them all
    back = f"{attack['results'][named]:.4g}"
    assert rows(again)["quantize bits 4"][0] == back and len(rows(again)["quantize bits 4"]) == 3
    assert f"\n{details['command']}\n" in again.text and "--attack" not in again.text  # the command that made the model
    in_process(*localize)  # an attack of an earlier command stays
    assert card_of(edited).text == again.text and len(load_records(out)) == size + 6

    assert weights_fingerprint(load_model(edited)) == weights  # a card is no part of the model
    assert AutoModelForCausalLM.from_pretrained(edited).config.n_layer == 2
    dataset = build_dataset(SETTINGS.data)
    planted = [numbers.decode(row[5:15].tolist()) for row in dataset.artifacts.planted]
    assert not any(text in again.text for text in planted)


def test_a_production_model_with_planted_passages(tmp_path):
    details = {"settings": {"plant_percent": 95.0}, "planting": {"epochs": 7, "seconds": 2.5}}
    write_card(tmp_path, planted_card("org/model", details, 128))
    card = card_of(tmp_path)
    assert card.data.base_model == "org/model" and "128 passages of text" in card.text and "- epochs: 7" in card.text


def test_a_card_is_written_once_and_escapes_nothing(tmp_path):
    card = Card("a & b", "It's <here>", "org/model", sections={"Empty": "", "Command": "python 'a b'"})
    write_card(tmp_path, card)
    text, changed = (tmp_path / "README.md").read_text(), (tmp_path / "README.md").stat().st_mtime_ns
    assert text.startswith('---\nbase_model: "org/model"\nlibrary_name: transformers\n')
    assert "# a & b\n\nIt's <here>\n\n## Command\n\npython 'a b'\n" in text and "Empty" not in text
    write_card(tmp_path, card)
    assert (tmp_path / "README.md").stat().st_mtime_ns == changed
