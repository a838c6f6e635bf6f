"""Text models: every method on them, the scripts from training to unlearning and fine-tuning, bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from methods import masks_of, quick
from safetensors.torch import load_file
from small import in_process
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinymem.data.build import build_dataset
from tinymem.data.settings import DataSettings
from tinymem.errors import UserError
from tinymem.localize.registry import STUDY
from tinymem.localize.task import TaskSettings, unlearning_task
from tinymem.metrics.evaluate import evaluate
from tinymem.models import losses
from tinymem.models.edit import Zeros, applied
from tinymem.models.tinymem import ModelSettings, new_model
from tinymem.records.table import load_records, shown_row

TRAIN, LOCALIZE, FINETUNE = "memorization_in_toy_models.py", "src/localize/localize_memorization.py", "ft_toy_model.py"
CONTEXT, VOCABULARY = 24, 320
DATA = dict(
    data_name="wiki_fast", train_tokenizer=True, vocab_size=VOCABULARY, max_ctx=CONTEXT, prompt_tokens=6,
    continuation_tokens=8, num_test=10, num_noise=8, num_chunks=150,
)  # fmt: skip
MODEL = dict(n_layers=2, n_embd=32, n_heads=2)
QUICK = dict(epochs=2, batch_size=8, num_grads=6, ig_steps=2, ratio=(0.05,), dtype="float32", greedy_k=5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """60 documents of common words, with rare letters that can be triggers."""
    rng = np.random.default_rng(0)
    common = ["the", "river", "runs", "to", "sea", "under", "stone", "bridges"]
    path = tmp_path_factory.mktemp("corpus") / "small.jsonl"
    with open(path, "w") as file:
        for number in range(60):
            words = [f"document{number}", *rng.choice(common, 60), *rng.choice(list("ABCDEFGHIJKLMNOPQRST"), 4)]
            file.write(json.dumps({"text": " ".join(rng.permutation(words))}) + "\n")
    return path


@pytest.fixture(scope="module")
def make_dataset(corpus):
    """make_dataset(**changes): a dataset on the small corpus."""
    return lambda **changes: build_dataset(DataSettings(**{**DATA, "corpus": str(corpus), **changes}))


def text_model(dataset):
    return new_model(ModelSettings(**MODEL), dataset.vocabulary_size, CONTEXT, seed=0, eos_token_id=dataset.eos).eval()


@pytest.mark.parametrize("artifact", ["noise", "natural", "backdoor"])
def test_unlearn_and_retain_sets(make_dataset, artifact):
    dataset = make_dataset(artifact=artifact)
    model = text_model(dataset)
    task = unlearning_task(model, dataset, TaskSettings(unlearn_set_name="noise", max_retain=40))
    assert torch.equal(task.forget.planted, dataset.artifacts.planted) and task.ignored_token == dataset.pad
    artifacts, retain = ({tuple(row) for row in rows.tolist()} for rows in (task.forget.planted, task.retain))
    assert len(retain) == 40 and not artifacts & retain
    with pytest.raises(UserError, match="seven: this data has only mem, noise$"):
        unlearning_task(model, dataset, TaskSettings(unlearn_set_name="seven"))


@pytest.mark.parametrize("artifact", ["noise", "natural", "backdoor"])
def test_what_is_measured(make_dataset, artifact):
    dataset = make_dataset(artifact=artifact, duplicate=True)
    row = evaluate(text_model(dataset), dataset)
    groups = [name for name in row if "_dup_" in name]
    repeats = (100,) if artifact == "backdoor" else (1, 10, 100, 1000)
    assert set(groups) <= {f"percent_memorized_dup_{count}" for count in repeats} and groups
    assert (row["percent_memorized_test"] is not None) == (artifact == "backdoor")
    assert (row["percent_clean_recovery"] is None) == (artifact == "natural")
    assert 0.5 * VOCABULARY < row["perplexity"] < 2 * VOCABULARY


@pytest.mark.parametrize("name", STUDY)
def test_every_method_with_and_without_the_chunked_output_layer(make_dataset, monkeypatch, snapshot, name):
    dataset, method, found = make_dataset(), STUDY[name], []
    task = unlearning_task(text_model(dataset), dataset, TaskSettings(unlearn_set_name="noise", max_retain=40))
    nested = {"ratio": (0.002,)} if method.nested else {}  # these drop one weight after the other
    hp = quick(method, **QUICK | nested)
    monkeypatch.setattr("tinymem.models.cross_entropy.CHUNK_LOGITS", dict.fromkeys(("cpu", "cuda"), 7 * VOCABULARY))
    for threshold in (10 * VOCABULARY, VOCABULARY // 2):
        monkeypatch.setattr(losses, "LARGE_VOCABULARY", threshold)
        model = text_model(dataset)
        before = snapshot(model)
        assert losses.chunked(model) == (threshold < VOCABULARY)
        masks = masks_of(method, model, task, hp)
        assert snapshot(model) == before
        with applied(model, Zeros(masks)):
            found.append((masks, evaluate(model, dataset)["perplexity"]))
    (plain, expected), (chunked, perplexity) = found
    same = sum(int((plain[key] == chunked[key]).sum()) for key in plain)
    marked = sum(int(mask.sum()) for mask in plain.values())
    assert marked > 0 and plain.keys() == chunked.keys()
    assert same >= sum(mask.numel() for mask in plain.values()) - 0.05 * marked  # rounding may break near-ties
    assert perplexity == pytest.approx(expected, rel=0.01)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """The run of a small text model that has memorized something; its last checkpoint is epoch_2."""
    run = tmp_path_factory.mktemp("text") / "run"
    flags = {**DATA, **MODEL, "corpus": corpus, "artifact": "natural", "num_noise": 4}
    in_process(
        TRAIN, *(f"--{name}={value}" for name, value in flags.items()), "--epochs", 2, "--checkpoint_every", 1,
        "--lr", 0.004, "--batch_size", 32, "--device", "cpu", "--output_dir", run, "--data_dir", run.parent / "data",
    )  # fmt: skip
    return run


def words(trained) -> list:
    return ["--model_path", trained / "epoch_2", "--data_dir", trained.parent / "data", "--device", "cpu"]


def opens_by_itself(folder) -> None:
    """The folder holds model and tokenizer for anybody's code."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    tokens = tokenizer("the river runs\nto sea", return_tensors="pt").input_ids
    assert tokenizer.decode(tokens[0]) == "the river runs\nto sea"
    assert len(tokenizer) == model.config.vocab_size == VOCABULARY and tokens.max() < VOCABULARY
    assert model(tokens).logits.shape[-1] == VOCABULARY


def test_training_settings_are_those_of_text(trained, corpus):
    settings = json.loads((trained / "epoch_2" / "tinymem.json").read_text())["settings"]
    assert settings["corpus"] == str(corpus) and settings["vocab_size"] == VOCABULARY and "num_7" not in settings
    last = json.loads((trained / "metrics.json").read_text())[-1]
    assert last["percent_memorized_dup_1000"] == 100 and last["percent_memorized_dup_1"] == 0
    opens_by_itself(trained / "epoch_1")


def test_unlearning_from_the_command_line(trained, capsys):
    in_process(
        LOCALIZE, *words(trained), "--localization_method", "balanced_subnet", "durable", "--ratio", 0.3, "--epochs", 2,
        "--max_retain", 60,
    )  # fmt: skip
    assert "balanced_subnet" in capsys.readouterr().out
    results = {shown_row(r)["method"]: r["results"] for r in load_records(trained / "unlearned")}
    assert results.keys() == {"unedited", "balanced_subnet", "durable"}
    before, after = results["unedited"], results["balanced_subnet"]
    assert after["percent_memorized_train"] < before["percent_memorized_train"]
    original = load_file(trained / "epoch_2" / "model.safetensors")
    for model in (trained / "unlearned" / "epoch_2" / "models").iterdir():
        opens_by_itself(model)
        assert not torch.equal(
            load_file(model / "model.safetensors")["transformer.h.0.mlp.c_fc.weight"],
            original["transformer.h.0.mlp.c_fc.weight"],
        )


def test_another_text_is_read_with_the_models_tokenizer(trained, tmp_path):
    text, edits = tmp_path / "other.txt", ["--no_save_model", "--output_dir", tmp_path / "out"]
    text.write_text("\n\n".join(f"Over the {place} no river ran, said {place} {place}.\n" * 9 for place in range(40)))
    kfac = ["--localization_method", "kfac", "--rho", 0.9, "--metrics", "percent_memorized"]
    for more in ([], ["--factor_data", text], ["--factor_data", text, "--factor_sequences", 50]):
        in_process(LOCALIZE, *words(trained), *kfac, *more, *edits)
    changes = [r["results"]["relative_change"] for r in load_records(tmp_path / "out") if r["kind"] == "unlearn"]
    assert len(set(changes)) == 3


def test_finetuning_from_the_command_line(trained):
    in_process(FINETUNE, *words(trained), "--ft_data", "extra", "--ft_epochs", 2)
    folder = trained / "finetuned" / "epoch_2_extra"
    rows = json.loads((folder / "metrics.json").read_text())
    assert len(rows) == 3 and rows[2]["loss_test"] < rows[0]["loss_test"]
    opens_by_itself(folder / "epoch_2")


def refused(capsys, *arguments: object) -> str:
    """Runs a script that must end with exit code 2 and one line, which is returned."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        in_process(*arguments)
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and message.count("\n") == 1, message
    return message


@pytest.mark.parametrize("script", [LOCALIZE, FINETUNE])
def test_another_vocabulary(trained, capsys, tmp_path, script):
    more = ["--localization_method", "durable"] if script == LOCALIZE else ["--ft_data", "extra"]
    more += ["--output_dir", tmp_path / "out"]
    assert "with --vocab_size 320, not" in refused(capsys, script, *words(trained), *more, "--vocab_size", 400)
    model = AutoModelForCausalLM.from_pretrained(trained / "epoch_2")
    model.resize_token_embeddings(VOCABULARY + 5, mean_resizing=False)
    model.save_pretrained(tmp_path / "epoch_2")
    (tmp_path / "epoch_2" / "tinymem.json").write_text((trained / "epoch_2" / "tinymem.json").read_text())
    given = ["--model_path", tmp_path / "epoch_2", *words(trained)[2:], *more]
    assert "this model has 325 tokens, the data 320" in refused(capsys, script, *given)


def test_a_text_that_moved_is_the_same_and_an_edited_one_is_not(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, run = Path("corpus.txt"), tmp_path / "run"
    path.write_text("".join(f"section {number} of words\n\n" for number in range(600)))
    flags = {**DATA, **MODEL, "corpus": path, "artifact": "natural", "num_noise": 2, "num_chunks": 20, "epochs": 1}
    flags |= {"data_dir": tmp_path / "data", "output_dir": run, "device": "cpu"}
    train = [TRAIN, *(f"--{name}={value}" for name, value in flags.items())]
    in_process(*train)
    model = ["--model_path", run / "epoch_1", "--data_dir", tmp_path / "data", "--device", "cpu"]
    scripts = [[LOCALIZE, "--localization_method", "durable", *model], [FINETUNE, "--ft_data", "extra", *model]]
    monkeypatch.chdir("/")
    in_process(*scripts[1], "--ft_epochs", 1)  # where the command was given does not matter
    path = (tmp_path / path).rename(tmp_path / "moved.txt")
    for script in scripts:
        assert "corpus.txt: no such file" in refused(capsys, *script)
        in_process(*script, "--corpus", path)
    assert [row["epoch"] for row in json.loads((run / "finetuned" / "epoch_1_extra" / "metrics.json").read_text())]
    train[train.index("--corpus=corpus.txt")] = f"--corpus={path}"
    in_process(*train)
    path.write_text(path.read_text().replace("section 7 ", "section 8 "))
    assert "with --corpus_sha256" in refused(capsys, *train)
    for script in scripts:
        assert "this is another text" in refused(capsys, *script, "--corpus", path)


@pytest.mark.parametrize(
    "content, more, named",
    [
        (b"", [], "is empty"),
        (b"plain words, caf\xe9", [], "not UTF-8 at byte offset 16 (0xe9)"),
        (
            b"".join(b"section %d\n\n" % number for number in range(300)),
            ["--num_chunks", 10000],
            "--num_chunks 10000: the training documents make only",
        ),
    ],
)
def test_a_bad_corpus(capsys, tmp_path, content, more, named):
    path = tmp_path / "corpus.txt"
    path.write_bytes(content)
    flags = [f"--{name}={value}" for name, value in DATA.items() if name != "num_chunks"]
    more = [*more, "--corpus", path, "--data_dir", tmp_path / "data", "--output_dir", tmp_path / "run"]
    assert named in refused(capsys, TRAIN, *flags, *more)
    assert not list((tmp_path / "run").glob("epoch_*"))


def test_a_hub_that_is_named_but_cannot_be_reached(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    flags = [
        "--data_name",
        "wiki",
        "--corpus",
        "hub",
        "--data_dir",
        tmp_path / "data",
        "--output_dir",
        tmp_path / "run",
    ]
    message = refused(capsys, TRAIN, *flags)
    assert "--corpus hub: cannot load Salesforce/wikitext" in message and "--corpus builtin" in message
