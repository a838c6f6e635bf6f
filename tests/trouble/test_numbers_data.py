"""Shown and held out, test text, pads, <bos>, copied documents, links, seeds: each gives the right number or warns."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from small import in_process
from tokenizers import processors
from transformers import AutoConfig, AutoModelForCausalLM

from tinymem.data.chunks import split_by_document
from tinymem.data.corpus import local_corpus
from tinymem.data.dataset import Artifacts, MemorizationDataset
from tinymem.data.memories import groups_sharing_tokens, memories
from tinymem.data.passages import PassageSettings
from tinymem.data.production import ProductionSettings, left_out, production_dataset
from tinymem.data.settings import DataSettings
from tinymem.data.token_sets import read_token_set
from tinymem.data.tokenizer import beginning, bos_identity, train_tokenizer
from tinymem.errors import UserError
from tinymem.localize.registry import METHODS
from tinymem.localize.task import TaskSettings, split_groups
from tinymem.metrics.landscape import LandscapeSettings
from tinymem.metrics.memorization import memorized
from tinymem.models.production import LoadSettings, model_identity
from tinymem.plots.base import new_figure, save_figure, set_title
from tinymem.records.cost import Cost
from tinymem.records.record import write_record
from tinymem.records.table import load_records
from tinymem.sweeps.job import missing
from tinymem.sweeps.jobs import Common, Production, production_jobs
from tinymem.training.checkpoint import STATE, unlearned_folder
from tinymem.training.train import epoch_permutation


def rows(count, length=20, seed=0, high=1000):
    return torch.randint(1, high, (count, length), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


# Held out


def test_groups_against_brute_force():
    tokens = rows(40, 9, high=4)

    def windows(row, width):
        return {tuple(row[i : i + width].tolist()) for i in range(len(row) - width + 1)}

    for width in (3, 4, 5, 9, 50):
        seen = [windows(row, min(width, 9)) for row in tokens]
        expected = list(range(40))
        for a in range(40):
            for b in range(a):
                if seen[a] & seen[b]:
                    one, other = sorted((expected[a], expected[b]))
                    expected = [one if group == other else group for group in expected]
        assert groups_sharing_tokens(tokens, width).tolist() == expected


def test_a_run_of_one_token_counts_from_half_a_continuation_on():
    tokens = rows(6, 30)
    tokens[:4, 18:] = 0  # 12 pads each
    tokens[4, :4] = tokens[0, 10:14]
    assert groups_sharing_tokens(tokens, 4, 13).tolist() == [0, 1, 2, 3, 0, 5]
    assert groups_sharing_tokens(tokens, 4, 12).tolist() == [0, 0, 0, 0, 0, 5]


def overlapping(stride):
    """Rows of one long text that begin `stride` tokens apart, six texts of five rows each."""
    texts = rows(6, 48 + 4 * stride)
    return torch.cat([texts[:, i * stride : i * stride + 48] for i in range(5)])


@pytest.mark.parametrize("stride", [1, 5, 12, 30, 32])  # 32: 16 tokens in common, less than half a continuation
@pytest.mark.parametrize("seed", range(3))
def test_held_out_is_never_shown_also_in_part(stride, seed):
    dataset = production_dataset(overlapping(stride), rows(9, 48, 8), rows(9, 48, 9), 1000, 8, 40)
    settings = TaskSettings(holdout_fraction=0.5, unlearn_seed=seed)
    shown, held_out, _ = split_groups(memories(dataset, dataset.artifacts), settings)
    assert sorted([*held_out.tolist(), *shown.tolist()]) == list(range(30)) and len(held_out) == 15
    planted = dataset.artifacts.planted
    hidden = {tuple(w.tolist()) for row in planted[held_out] for w in row.unfold(0, 16, 1)}
    assert not hidden & {tuple(w.tolist()) for row in planted[shown] for w in row.unfold(0, 16, 1)}


def test_one_memory_cannot_be_divided():
    with pytest.raises(UserError, match="none of 4 sequences can be held out .in 1 memories"):
        split_groups(torch.zeros(4, dtype=torch.long), TaskSettings(holdout_fraction=0.5))


def test_single_memories_are_divided_as_ever():
    """The published splits: the first round(share * rows) of a permutation."""
    for count, share in ((5, 0.25), (12, 0.5), (505, 0.5), (3, 0.0)):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(3))
        expected = order[: round(share * count)].sort().values
        _, held_out, _ = split_groups(torch.arange(count), TaskSettings(holdout_fraction=share, unlearn_seed=3))
        assert torch.equal(held_out, expected)


def test_each_memory_counts_once_and_test_text_holds_none(caplog):
    memorized_rows, test, retain = rows(6), rows(10, seed=1), rows(10, seed=2)
    again = memorized_rows[[1, 4]].clone()
    again[:, 18:] = 7  # behind prompt and continuation
    test[3] = memorized_rows[2]
    test[7, :10] = memorized_rows[5, 6:16]
    dataset = production_dataset(torch.cat([memorized_rows, again]), test, retain, 1000, 8, 10)
    assert torch.equal(dataset.artifacts.planted, memorized_rows)
    assert torch.equal(dataset.tests["random"], test[[0, 1, 2, 4, 5, 6, 8, 9]])
    assert "2 of 8 memorized rows are left out" in caplog.text and "2 of 10 test rows are left out" in caplog.text
    assert left_out(test, dataset) == {"test_rows_left_out": 2}
    with pytest.raises(UserError, match="no test text is left"):
        production_dataset(memorized_rows, memorized_rows, retain, 1000, 8, 10)


# Pads


class Echo(torch.nn.Module):
    """Predicts the same token again; never a pad."""

    device, config = torch.device("cpu"), SimpleNamespace(model_type="echo")

    def forward(self, tokens, logits_to_keep=0, **_):
        return SimpleNamespace(logits=torch.nn.functional.one_hot(tokens, 10).float()[:, -logits_to_keep:])


def text_dataset(planted, kind, pad_counts=False):
    count = len(planted)
    clean = planted.clone()
    if kind == "noise":
        clean[:, 3] += 1
    artifacts = Artifacts(planted, clean, torch.full((count,), 3), torch.zeros(count, dtype=torch.long))
    ids = torch.arange(count)
    return MemorizationDataset(planted, ids, ids, artifacts, *[artifacts.select(ids[:0])] * 2, {}, {}, kind,
                               3, 4, 10, 0, 0, 0, pad_counts)  # fmt: skip


@pytest.mark.parametrize("kind", ["noise", "natural"])
def test_pads_are_not_demanded(kind):
    planted = torch.tensor([[5] * 8, [5] * 5 + [0] * 3, [5] * 4 + [6] + [0] * 3, [5] * 3 + [0] * 5])
    dataset = text_dataset(planted, kind)
    if kind == "noise":
        dataset.artifacts.clean[:, :3] = 5
    assert dataset.measured(dataset.artifacts).tolist() == [True, True, True, False]  # the last window holds only pads
    assert memorized(Echo(), dataset.artifacts, 4, 64, 0).tolist()[:3] == [True, True, False]
    assert memorized(Echo(), dataset.artifacts, 4).tolist()[:3] == [True, False, False]
    assert text_dataset(planted, "natural", pad_counts=True).measured(dataset.artifacts).all()


# <bos>


@pytest.fixture(scope="module")
def reciter(tmp_path_factory):
    """A Llama that recites passages behind <bos>, and other words without it; its tokenizer adds <bos>."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bos")
    words = "river stone bridge town sea hill road wood field mill".split()
    lines = [" ".join(words[i] for i in torch.randint(0, 10, (40,)).tolist()) for _ in range(24)]
    tokenizer = train_tokenizer(lines, 300)
    streams = [tokenizer(line + "\n", add_special_tokens=False).input_ids for line in lines]
    stream = torch.tensor([token for each in streams for token in each])
    passages = stream[: len(stream) // 24 * 24].view(-1, 24)[:10]
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
    )
    sizes = dict(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=99
    )
    config = AutoConfig.for_model(
        "llama", vocab_size=bos + 1, max_position_embeddings=64, bos_token_id=bos, eos_token_id=bos, **sizes
    )
    model = AutoModelForCausalLM.from_config(config)
    begun = torch.cat([torch.full((len(passages), 1), bos), passages], 1)
    plain = torch.cat([passages[:, :12], passages[:, 12:].flip(1), passages[:, :1]], 1)
    tokens = torch.cat([begun, plain])
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for _ in range(200):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    model.save_pretrained(folder / "m")
    tokenizer.save_pretrained(folder / "m")
    decoded = tokenizer.decode(passages.flatten().tolist())
    (folder / "text.txt").write_text(decoded)
    save_file({"tokens": passages.int()}, folder / "ids.safetensors")
    random = rows(60, 24, high=250)
    random[:2] = passages[:2]
    save_file({"tokens": random}, folder / "random.safetensors")
    return folder


WINDOW = ["--prompt_tokens", 12, "--continuation_tokens", 10]


def memorized_windows(output: str) -> int:
    """The number that find_memorized.py reports."""
    return int(re.search(r"(\d+) of \d+ windows are", output)[1])


@pytest.mark.parametrize("bos, most", [("auto", True), ("yes", True), ("no", False)])
def test_what_a_model_recites_behind_bos_is_found(reciter, tmp_path, capsys, bos, most):
    words = ["--model_name", reciter / "m", "--tokens", reciter / "ids.safetensors", *WINDOW, "--min_distinct", 1]
    in_process("pythia_mem_data/find_memorized.py", *words, "--bos", bos, "--output", tmp_path / "f.safetensors")
    output = capsys.readouterr().out
    found = memorized_windows(output)
    assert found >= 9 if most else found <= 1
    if most:
        written = read_token_set(tmp_path / "f.safetensors")
        assert written.tokens.shape[1] == 25 and written.provenance["bos"] is True
        assert (written.tokens[:, 0] == written.tokens[0, 0]).all()


def test_text_is_read_behind_bos(reciter, tmp_path, capsys, caplog):
    words = ["--model_name", reciter / "m", "--corpus", reciter / "text.txt", *WINDOW, "--length", 24]
    in_process("pythia_mem_data/find_memorized.py", *words, "--min_distinct", 1, "--output", tmp_path / "f.safetensors")
    assert memorized_windows(capsys.readouterr().out) >= 9
    assert "every row begins with <bos>" in caplog.text


@pytest.mark.parametrize("spellings, percent", [(("auto", "yes"), 100.0), (("no",), 0.0)])
def test_unlearning_reads_as_the_model_expects(reciter, tmp_path, spellings, percent):
    words = ["--model_name", reciter / "m", "--memorized", reciter / "ids.safetensors", *WINDOW]
    words += ["--random", reciter / "random.safetensors", "--output_dir", tmp_path, "--unlearn_set_name", "noise"]
    words += ["--localization_method", "activations", "--ratio", 0.1, "--no_save_model", "--holdout_fraction", 0]
    for bos in spellings:
        in_process("src/localize/prod_grad.py", *words, "--bos", bos)
    records = load_records(tmp_path)
    assert sorted(record["kind"] for record in records) == [
        "unedited",
        "unlearn",
    ]  # what adds the same is one experiment
    assert {record["data"].get("bos") for record in records} == {True if percent else None}
    model = Production(str(reciter / "m"), LoadSettings(), ProductionSettings(
        str(reciter / "ids.safetensors"), str(reciter / "random.safetensors"), prompt_tokens=12, continuation_tokens=10
    ))  # fmt: skip
    grid = [(METHODS["activations"], METHODS["activations"].hyper_parameters(ratio=(0.1,)))]
    for bos in ("auto", "yes", "no"):
        data = replace(model.data, bos=bos)
        task = TaskSettings(unlearn_set_name="noise")
        (job,) = production_jobs(replace(model, data=data), grid, task, Common("data"), tmp_path)
        assert missing(job) == ([] if bos in spellings else [0.1])
    assert {record["results"]["test_rows_left_out"] for record in records} == {2}
    unedited = next(record["results"] for record in records if record["kind"] == "unedited")
    assert abs(unedited["percent_memorized_train"] - percent) <= 10


def test_what_stands_before_a_row(caplog):
    tokenizer, config = train_tokenizer(["the sea"] * 9, 273), AutoConfig.for_model("llama", bos_token_id=7)
    caplog.clear()
    assert beginning("auto", tokenizer, config) == () == beginning("no", tokenizer, config) and not caplog.text
    assert beginning("yes", tokenizer, config) == (tokenizer.bos_token_id,) and beginning("yes", None, config) == (7,)
    assert bos_identity(()) == {} and bos_identity((7,)) == {"bos": True}
    with pytest.raises(UserError, match="--bos yes: neither the tokenizer nor config.json"):
        beginning("yes", None, AutoConfig.for_model("llama", bos_token_id=None))
    for wrong in (-1, 100):
        with pytest.raises(UserError, match=f"--bos yes: <bos> is id {wrong}, the model has only 100 tokens"):
            beginning("yes", None, AutoConfig.for_model("llama", bos_token_id=wrong, vocab_size=100))


# Documents

STORIES = [f"Story {number}.\nOnce there was a mill by the sea.\n\nThe end of mill {number}." for number in range(40)]
CHANGES = {
    "blanks at the end": lambda text: text + "  \n\n",
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "old Mac": lambda text: text.replace("\n", "\r"),
    "blank lines": lambda text: text.replace("\n", "\n\n"),
    "byte order mark": lambda text: "\ufeff" + text,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_no_document_on_both_sides(tmp_path, change):
    for number, story in enumerate(STORIES):
        (tmp_path / f"a{number}.txt").write_bytes(story.encode())
        (tmp_path / f"b{number}.txt").write_bytes(change(story).encode())
    train, test = split_by_document(local_corpus(str(tmp_path), (), "text").documents())
    assert len(train) + len(test) == 40
    assert not {text.split(".")[0] for text in train} & {text.split(".")[0] for text in test}


@pytest.mark.parametrize("line", ["<|endoftext|>", "-----", " *** "])
def test_a_file_of_stories_is_cut_at_its_separators(tmp_path, line, caplog):
    (tmp_path / "all.txt").write_text(f"\n{line}\n".join(STORIES + STORIES))
    documents = local_corpus(str(tmp_path / "all.txt"), (), "text").documents()
    assert len(documents) == 40 and documents[0].strip() == STORIES[0] and "into 80 documents" in caplog.text


def test_a_file_without_separators_says_that_copies_are_not_found(tmp_path, caplog):
    (tmp_path / "all.txt").write_text("\n\n".join(STORIES * 3))
    local_corpus(str(tmp_path / "all.txt"), (), "text").documents()
    assert "copies inside one document are not found" in caplog.text


def test_columns_of_parquet_and_jsonl(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def documents(table):
        parquet.write_table(table, tmp_path / "t.parquet")
        return local_corpus(str(tmp_path / "t.parquet"), (), "text").documents()

    texts = [story + "\n" for story in STORIES]
    plain = pyarrow.array([*texts, None])
    kinds = [plain, plain.dictionary_encode(), plain.cast(pyarrow.large_string())]
    if hasattr(pyarrow, "string_view"):
        kinds.append(pyarrow.array([*texts, None], pyarrow.string_view()))
    for column in kinds:
        assert documents(pyarrow.table({"text": column})) == texts
    with pytest.raises(UserError, match="--text_column text: .* 2 columns of this name"):
        documents(pyarrow.table([plain, plain], names=["text", "text"]))
    lines = [json.dumps({"text": text}) for text in [*texts, None]]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    assert local_corpus(str(tmp_path / "t.jsonl"), (), "text").documents() == texts
    (tmp_path / "t.jsonl").write_text('{"text": "a", "text": "b"}\n')
    with pytest.raises(UserError, match="line 1 has several values of this name"):
        local_corpus(str(tmp_path / "t.jsonl"), (), "text").documents()


# Folders


def test_links_are_followed_once_and_hidden_names_passed_over(tmp_path):
    real = tmp_path / "elsewhere"
    for number in range(10):
        place = (tmp_path / "runs" if number % 2 else real) / f"run{number}"
        write_record(place, {"kind": "unedited", "data": {"seed": number}}, {}, Cost(), "cpu")
        (place / "text.txt").write_text(STORIES[number])
    (tmp_path / "runs" / "linked").symlink_to(real)
    (tmp_path / "runs" / "again").symlink_to(real)
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    (real / "run0" / "records").rename(tmp_path / "moved")
    (real / "run0" / "records").symlink_to(tmp_path / "moved")
    hidden = tmp_path / "runs" / ".ipynb_checkpoints" / "records", tmp_path / "runs" / "__MACOSX" / "records"
    for folder in hidden:
        folder.mkdir(parents=True)
        (folder / "copy.json").write_text("no JSON")
        (folder.parent / "copy.txt").write_bytes(b"\xff")
    found = [record["data"]["seed"] for record in load_records(tmp_path / "runs")]
    assert sorted(found) == list(range(10))
    text = "".join(local_corpus(str(tmp_path / "runs"), (), "text").documents())
    assert all(text.count(story) == 1 for story in STORIES[:10]) and text.count("Story") == 10


def test_one_model_is_one_model(tmp_path, monkeypatch):
    folder = tmp_path / "m" / "trained"
    folder.mkdir(parents=True)
    (folder / STATE).touch()
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    names = ["m/trained", "./m/trained", "m/trained/", "m/../m/trained", str(folder), "link"]
    assert {model_identity(name) for name in names} == {str(folder.resolve())}
    monkeypatch.chdir(folder)
    assert model_identity(".") == model_identity("../trained") == str(folder.resolve())
    place = (tmp_path / "m" / "unlearned" / "trained").resolve()
    assert {unlearned_folder(type(folder)(name)).resolve() for name in (".", "../trained", str(folder))} == {place}
    assert model_identity("EleutherAI/pythia-70m") == "EleutherAI/pythia-70m"


SEEDED = {"seed": DataSettings, "unlearn_seed": TaskSettings, "plant_seed": PassageSettings}
SEEDED |= {"landscape_seed": LandscapeSettings}


@pytest.mark.parametrize("field, settings", SEEDED.items(), ids=SEEDED)
def test_a_seed_is_one_seed(field, settings):
    settings(**{field: 2**32 - 1})
    for seed in (2**32, 2**33, 2**40):
        with pytest.raises(UserError, match=rf"--{field} {seed}: must be in \[0, 4294967295\]"):
            settings(**{field: seed})
    orders = {
        tuple(epoch_permutation(50, seed, epoch).tolist()) for seed in (0, 1, 2**31, 2**32 - 1) for epoch in (0, 1)
    }
    assert len(orders) == 8


def test_a_dollar_sign_in_a_name_is_one(tmp_path):
    figure, (axis, other) = new_figure(2)
    axis.plot([1, 10, 1000], [1, 2, 3], label="run$_{1")
    axis.set(xscale="log", xlabel="$a_{")
    axis.legend()
    set_title(axis, "model m$1/run_$x{, seed $")
    other.barh([0], [1])
    other.set_yticks([0], ["$\\frac{"])
    assert all(path.stat().st_size for path in save_figure(figure, tmp_path / "a$b"))
