"""prod_grad.py end to end on a small GPT-NeoX that really memorizes, and on all that can be wrong with its input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import command
from safetensors.torch import load_file
from small import in_process, script
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM, T5Config

import tinymem.planning.dry_run
import tinymem.planning.plan  # noqa: F401 (both import free_bytes before a test replaces it)
from tinymem.data.token_sets import TokenSet, write_token_set
from tinymem.data.tokenizer import open_tokenizer, tokenize, train_tokenizer
from tinymem.localize.registry import STUDY
from tinymem.models.adapter import find_mlps
from tinymem.models.production import open_causal_lm
from tinymem.records.identity import record_digest
from tinymem.records.table import load_records, shown_row

SCRIPT = "src/localize/prod_grad.py"
VOCABULARY, LENGTH, MEMORIZED = 300, 20, 12
WINDOW = ["--prompt_tokens", 8, "--continuation_tokens", 10]
QUICK = ["--epochs", 1, "--num_grads", 4, "--ig_steps", 2, "--greedy_k", 50, "--batch_size", 8]
DOCUMENTS = [f"the river {number} runs to the sea under stone bridges of town {number} " * 3 for number in range(50)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with model/ (ten of twelve sequences memorized), memorized.safetensors, random.pt, corpus.jsonl."""
    folder = tmp_path_factory.mktemp("production")
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.1,
        **sizes,
    )
    model = GPTNeoXForCausalLM(config)
    tokens = torch.randint(0, VOCABULARY, (MEMORIZED, LENGTH))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(tokens[:10], labels=tokens[:10]).loss.backward()
        optimizer.step()
    model.save_pretrained(folder / "model")
    train_tokenizer(DOCUMENTS, VOCABULARY).save_pretrained(folder / "model")
    write_token_set(folder / "memorized.safetensors", TokenSet(tokens.int(), {"source": "test"}))
    torch.save(torch.randint(0, VOCABULARY, (40, 32)), folder / "random.pt")
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return folder


def words(place, *more):
    base = ["--model_name", place / "model", "--memorized", place / "memorized.safetensors", *WINDOW]
    return [*base, *(more if "--corpus" in more else ("--random", place / "random.pt", *more))]


@pytest.fixture(scope="module")
def every_method(place):
    """The script run once with all methods in bfloat16; returns (output folder, what it printed)."""
    out = place / "out"
    done = script(
        SCRIPT, *words(place, "--localization_method", "study", "--ratio", 0.1, 0.3, *QUICK), "--output_dir", out,
        "--dtype", "bfloat16", "--plot",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out, done


def test_a_record_and_a_table_line_for_every_method_and_ratio(place, every_method):
    out, done = every_method
    records = load_records(out)
    found = sorted((row["method"], row.get("ratio", 0)) for row in map(shown_row, records))
    assert found == sorted([("unedited", 0)] + [(name, ratio) for name in STUDY for ratio in (0.1, 0.3)])
    lines = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert [line for line in lines if line in STUDY] == [name for name in STUDY for _ in range(2)]
    assert ": about" not in done.stderr  # none takes a minute here
    assert (out / "unlearning.png").stat().st_size > 5000


def test_how_long_a_method_will_take_is_said_before_it_starts(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tinymem.planning.duration.LONG", 0.0)  # seconds: as if a moment were long
    flags = words(place, "--localization_method", "durable", "--ratio", 0.1, "--output_dir", tmp_path)
    for _ in range(2):  # the second time there is nothing to do
        in_process(SCRIPT, *flags)
    assert capsys.readouterr().err.count("durable: about 0 s") == 1


def test_what_a_record_says(place, every_method):
    records = load_records(every_method[0])
    (before,) = (record for record in records if record["kind"] == "unedited")
    for record in records:
        assert record["model"] == {"name": str(place / "model"), "step": None, "dtype": "bfloat16"}
        assert record["forget"]["holdout_fraction"] == 0.5 and record["forget"]["unlearn_seed"] == 0
        data = record["data"]
        assert (data["prompt_tokens"], data["continuation_tokens"]) == (8, 10)
        assert len(data["memorized_data"]) == len(data["random_data"]) == 16 and "training" not in record
        if record is not before:
            assert record["kind"] == "unlearn" and record["parent"] == record_digest(before)
            assert record["method"].get("dtype", "bfloat16") == "bfloat16"  # of the forward passes
    before = before["results"]
    assert before["percent_memorized_shown"] == before["percent_memorized_held_out"] == 100.0
    assert before["percent_memorized_train"] == pytest.approx(100 * 10 / MEMORIZED)
    assert before["perplexity"] > 1 and before["perplexity_batch_mean"] > 1


@pytest.mark.slow
def test_a_record_is_run_again(place, tmp_path, capfd, monkeypatch):
    """Memorized and random sequences are found by their fingerprints, here beside the output folder."""
    out = place / "once"
    flags = words(place, "--localization_method", "subnet", "--ratio", 0.3, "--epochs", 1, "--batch_size", 8)
    in_process(SCRIPT, *flags, "--output_dir", out, "--dtype", "bfloat16")
    (path,) = (p for p in (out / "records").glob("*.json") if json.loads(p.read_text())["kind"] == "unlearn")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # set by the command, and back again after the test
    assert command("rerun", path, "--output_dir", tmp_path, "--data_dir", tmp_path / "data") == 0
    printed = capfd.readouterr().out
    assert f"--memorized {place}/memorized.safetensors --random {place}/random.pt" in printed
    assert "the same to the digit: " in printed


def test_a_twin_that_is_named_is_measured_and_attacked(place, tmp_path, capsys, monkeypatch):
    def flags(twin):
        edit = ["--localization_method", "durable", "--ratio", 0.1, "--no_save_model"]
        edit += ["--metrics", "perplexity", "unlearning_depth"]
        attack = ["--attack", "quantize", "--quantize.bits", 8, "--attack_metrics", "perplexity"]
        return words(place, *edit, *attack, "--twin_model", twin, "--output_dir", tmp_path / "out")

    def twins() -> list[dict]:
        return [record for record in load_records(tmp_path / "out") if record["kind"] == "never_planted"]

    for name, share in (("first", 0.5), ("second", 0.25)):
        model = GPTNeoXForCausalLM.from_pretrained(place / "model")
        with torch.no_grad():
            for layer in model.gpt_neox.layers:
                layer.mlp.dense_4h_to_h.weight.mul_(share)
        model.save_pretrained(tmp_path / name)
    monkeypatch.setenv("COLUMNS", "200")
    in_process(SCRIPT, *flags(tmp_path / "first"))
    (header,) = [
        line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:2] == ["method", "ratio"]
    ]
    assert "unlearning_depth_shown" in header  # asked for by name
    kinds = {record["kind"] for record in load_records(tmp_path / "out")}
    assert kinds == {"unedited", "never_planted", "unlearn", "attack", "attack_never_planted"}
    depth = {
        record["kind"]: record["results"].get("unlearning_depth_shown") for record in load_records(tmp_path / "out")
    }
    assert depth["unedited"] == 0 and depth["never_planted"] == 1 and 0 < depth["unlearn"] < 1
    in_process(SCRIPT, *flags(tmp_path / "second"))
    found = {record["model"]["twin_model"]: record["results"]["perplexity"] for record in twins()}
    assert found.keys() == {str(tmp_path / name) for name in ("first", "second")}
    assert len(set(found.values())) == 2, "the second must not have the numbers of the first"
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        in_process(SCRIPT, *flags(place / "model"))
    assert stopped.value.code == 2 and "not a twin of this model, but the model itself" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        planted = ["--model_name", place / "model", "--plant", "builtin", "--plant_tokens", 18, *WINDOW]
        in_process(
            SCRIPT,
            *planted,
            "--localization_method",
            "durable",
            "--twin_model",
            tmp_path / "first",
            "--output_dir",
            tmp_path / "out",
        )
    assert "with --plant the twin is the model before planting; leave it out" in capsys.readouterr().err


def test_an_attack_that_is_added_later_uses_the_saved_models(place, every_method, tmp_path):
    out = shutil.copytree(every_method[0], tmp_path / "out")
    saved = {path: path.stat().st_mtime_ns for path in out.glob("models/*/model.safetensors")}
    flags = ["--localization_method", "activations", "--ratio", 0.1, 0.3, "--dtype", "bfloat16", "--output_dir", out]
    in_process(SCRIPT, *words(place, *flags, "--attack", "quantize", "--quantize.bits", 8))
    attacked = [record for record in load_records(out) if record["kind"] == "attack"]
    assert saved and len(attacked) == 3  # the unedited model and two edited ones
    assert saved == {path: path.stat().st_mtime_ns for path in out.glob("models/*/model.safetensors")}


def test_an_edited_model_is_measured_with_the_same_flags(place, every_method, tmp_path, capsys):
    edited = next((every_method[0] / "models").glob("durable_0.1_*"))
    data = ["--memorized", place / "memorized.safetensors", "--random", place / "random.pt", *WINDOW]
    in_process("src/localize/measure.py", edited, *data, "--output_dir", tmp_path, "--metrics", "perplexity")
    assert "was made by durable, but counts as unedited" in capsys.readouterr().err


def test_an_edited_model_that_counts_as_unedited_is_told(place, every_method, tmp_path, capsys):
    (edited,) = (every_method[0] / "models").glob("subnet_0.3_*")
    unlearn = ["--localization_method", "activations", "--ratio", 0.1, "--no_save_model", "--output_dir", tmp_path]
    in_process(SCRIPT, *words(place, *unlearn), "--model_name", edited)
    assert f"{edited}: was made by subnet, but counts as unedited" in capsys.readouterr().err
    assert not (every_method[0] / "models").joinpath("README.md").exists() and (edited / "README.md").exists()


def test_edited_models_are_ordinary_folders_with_some_mlp_entries_at_zero(place, every_method):
    original, _ = open_causal_lm(place / "model", dtype="bfloat16")
    original.save_pretrained(place / "as_bfloat16")
    before = load_file(place / "as_bfloat16" / "model.safetensors")
    mlp = {weight.name for block in find_mlps(original) for weight in block.weights}
    models = list((every_method[0] / "models").iterdir())
    assert len(models) == 2 * len(STUDY)
    for path in models:
        after = load_file(path / "model.safetensors")
        assert after.keys() == before.keys()
        for name, tensor in after.items():
            changed = tensor != before[name]
            assert tensor.dtype == torch.bfloat16 and (not changed.any() or name in mlp)
            assert tensor[changed].eq(0).all()
    assert AutoModelForCausalLM.from_pretrained(models[0]).config.model_type == "gpt_neox"
    assert len(AutoTokenizer.from_pretrained(models[0])) == len(AutoTokenizer.from_pretrained(place / "model"))


@pytest.mark.slow
def test_objectives_with_and_without_low_rank_changes_leave_models_that_transformers_and_peft_open(
    place, tmp_path, capsys
):
    command = words(place, "--localization_method", "npo", "--steps", 2, "--batch_size", 8, "--output_dir", tmp_path)
    command += ["--dtype", "bfloat16", "--lr", 1e-2]
    in_process(SCRIPT, *command)
    low = [*command, "--lora_rank", 2, "--keep_adapter"]
    for _ in range(2):
        in_process(SCRIPT, *low)
        assert f"adapters: {tmp_path}/adapters" in capsys.readouterr().out
        (adapter,) = (tmp_path / "adapters").iterdir()
        shutil.rmtree(adapter)  # is then found again, in a finished run
    in_process(SCRIPT, *low)
    records = [record for record in load_records(tmp_path) if record["kind"] == "unlearn"]
    assert sorted(record["method"].get("lora_rank", 0) for record in records) == [0, 2]
    tokens = torch.arange(20)[None]
    for record in records:
        folder = tmp_path / record["results"]["model_folder"]
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        assert 0 < record["results"]["percent_changed"] <= 100 and model(tokens).logits.isfinite().all()
        if "lora_rank" in record["method"]:
            from peft import AutoPeftModelForCausalLM

            opened = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32)
            merged, apart = model.float()(tokens).logits, opened(tokens).logits
            assert (merged - apart).abs().mean() < 0.1 * apart.std()  # merged weights are rounded to bfloat16


def test_keep_adapter_needs_an_adapter(place, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        in_process(
            SCRIPT, *words(place, "--localization_method", "npo", "--keep_adapter", "--output_dir", tmp_path / "x")
        )
    assert stopped.value.code == 2 and "--keep_adapter: only with --lora_rank" in capsys.readouterr().err


def test_balanced_subnet_forgets_and_finished_runs_are_kept(place, tmp_path, capsys):
    command = words(
        place, "--corpus", place / "corpus.jsonl", "--localization_method", "random_greedy", "--ratio", 0.3,
        "--epochs", 20, "--batch_size", 8, "--output_dir", tmp_path, "--holdout_fraction", 0,
    )  # fmt: skip
    in_process(SCRIPT, *command)
    results = {shown_row(r)["method"]: r["results"] for r in load_records(tmp_path)}
    assert (
        results["unedited"]["percent_memorized_shown"] == 100
        and results["unedited"]["percent_memorized_held_out"] is None
    )
    assert results["balanced_subnet"]["percent_memorized_shown"] < 20
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    in_process(SCRIPT, *command)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == files


@pytest.mark.parametrize(
    "change, message",
    [
        (["--memorized", "{place}/none.pt"], "none.pt: no such file"),
        (["--memorized", "{place}/past.pt"], "token id 300 is outside the model's vocabulary of 300"),
        (["--memorized", "{place}/short.pt"], "have 17 tokens, prompt and continuation need 18"),
        (["--memorized", "{place}/long.pt"], "65 tokens per sequence; this model takes at most 64"),
        (["--random", "{place}/past.pt"], "token id 300 is outside"),
        (["--memorized", "{place}/damaged.safetensors"], "damaged"),
        (["--model_name", "{place}/bare", "--corpus", "{place}/corpus.jsonl"], "has no tokenizer"),
        (["--model_name", "{place}/nothing"], "no such folder"),
        (["--model_name", "nobody/nothing"], "the Hugging Face hub cannot be reached"),
        (["--step", 36000], "no step36000 in the folder"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--device_map", "auto", "--device", "cpu"], "--device_map: spreads the model over GPUs"),
        (["--greedy_k", 3], "activations has no such hyper-parameter; greedy has"),
        (["--model_name", "{place}/translator"], "cannot open this model"),
        (["--model_name", "{place}/quantised"], "its weights are quantised"),
        (["--plant", "{place}/corpus.jsonl", "--plant_tokens", 18], "--memorized: leave it out with --plant"),
        (["--plant_epochs", 3], "--plant_epochs: only with --plant"),
        (["--holdout_fraction", 0.999], "leaves none of"),
        (["--random", "{place}/none.pt"], "none.pt: no such file"),
        (["--twin_model", "{place}/nowhere"], "--twin_model {place}/nowhere: no such folder"),
        (["--unlearn_set_name", "two"], "--unlearn_set_name two: a production model has only mem, noise"),
        (["--retain", "all"], "--retain all: a production model's training rows are not known; use --retain others"),
        (["--forget", "test"], "--forget test: a production model's training rows are not known; use --forget train"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_bad_input_is_one_line_and_exit_2(place, dry_run, change, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tinymem.models.production.hub_reachable", lambda: False)
    torch.save(torch.full((4, 20), VOCABULARY), place / "past.pt")
    torch.save(torch.zeros(4, 17, dtype=torch.int64), place / "short.pt")
    torch.save(torch.zeros(4, 65, dtype=torch.int64), place / "long.pt")
    (place / "damaged.safetensors").write_bytes(b"\x00" * 40)
    shutil.copytree(place / "model", place / "bare", ignore=shutil.ignore_patterns("tokenizer*"), dirs_exist_ok=True)
    T5Config(num_layers=1, d_model=8, d_kv=4, d_ff=8, num_heads=2, vocab_size=VOCABULARY).save_pretrained(
        place / "translator"
    )
    shutil.copytree(place / "model", place / "quantised", dirs_exist_ok=True)
    config = json.loads((place / "quantised" / "config.json").read_text())
    quantised = {**config, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (place / "quantised" / "config.json").write_text(json.dumps(quantised))
    if dry_run and message == "has no tokenizer":
        pytest.skip("a plan reads no text")
    command = words(place, "--localization_method", "activations", "--output_dir", tmp_path / "out")
    command += ["--dry_run"] * dry_run
    given = [str(word).format(place=place) for word in change]
    if "--corpus" in given:
        at = command.index("--random")
        del command[at : at + 2]
    with pytest.raises(SystemExit) as stopped:
        in_process(SCRIPT, *command, *given)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message.format(place=place) in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "out").exists()


def test_too_little_memory_says_how_much_is_missing(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tinymem.models.production.free_bytes", lambda device, device_map: 100_000)
    with pytest.raises(SystemExit) as stopped:
        in_process(SCRIPT, *words(place, "--localization_method", "activations", "--output_dir", tmp_path))
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and "GB more than is free; --dtype bfloat16 helps" in error


def test_memorized_text_unlearns_as_its_token_ids_do(place, tmp_path):
    """The same passages as text and as token ids give the same record, but for the time it took."""
    tokenizer = open_tokenizer(place / "model")
    texts = DOCUMENTS[::8]
    tokens = np.stack([ids[:18] for ids in tokenize(tokenizer, texts)])
    write_token_set(tmp_path / "ids.safetensors", TokenSet(torch.from_numpy(tokens), {}))
    (tmp_path / "passages.txt").write_text("\n\n".join(text.strip("\n") for text in texts))
    results = []
    for name in ("ids.safetensors", "passages.txt"):
        more = ["--localization_method", "durable", "--ratio", 0.1, "--output_dir", tmp_path / Path(name).stem]
        in_process(SCRIPT, *words(place, *more, "--memorized", tmp_path / name))
        records = sorted(load_records(tmp_path / Path(name).stem), key=lambda record: record["kind"])
        results.append([(record["data"]["memorized_data"], record["results"]) for record in records])
    for one, other in zip(*results, strict=True):
        assert one[0] == other[0]
        assert {k: v for k, v in one[1].items() if "seconds" not in k} == {
            k: v for k, v in other[1].items() if "seconds" not in k
        }
