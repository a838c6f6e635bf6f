"""`records rerun` of runs on a user's own files: text, token sets, methods, metrics, attacks."""

import argparse
import json
import random
import shutil

import pytest
import torch
from handmade import command
from small import ROOT, in_process
from transformers import AutoConfig, AutoModelForCausalLM

from tinymem import cli
from tinymem.cli.sources import given_sources
from tinymem.data.tokenizer import tokenize, train_tokenizer
from tinymem.records.record import read_record
from tinymem.records.table import find_records

SCRIPT = "src/localize/prod_grad.py"
N, K = 4, 6
WORDS = [a + b for a in ("ka", "lo", "mi", "nu", "per", "sto", "tu", "vel") for b in ("ran", "sel", "tor", "bi")]
DRAW = random.Random(0)
SENTENCES = [" ".join(DRAW.choices(WORDS, k=12)) for _ in range(60)]
KNOWN = SENTENCES[:12]
METRIC = """
import torch
from tinymem.metrics.metric import PLANTED, Metric
METRIC = Metric("first_token", "", "lower", PLANTED, (), "token", lambda probe, rows: rows.planted[:, 0].float())
"""
ATTACK = """
from dataclasses import dataclass
from tinymem.models.edit import Weights

@dataclass(frozen=True)
class HyperParameters:
    \"\"\"Nothing\"\"\"

def attack(model, task, hp, strength):
    return Weights({})
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Llama that recites KNOWN."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=None, initializer_range=0.1,
    )  # fmt: skip
    model, tokenizer = AutoModelForCausalLM.from_config(config), train_tokenizer(SENTENCES, 300)
    rows = torch.stack([torch.from_numpy(ids[: N + K]).long() for ids in tokenize(tokenizer, KNOWN)])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        model(rows, labels=rows).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_lines(path, texts) -> None:
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))


@pytest.fixture
def project(model, tmp_path, monkeypatch):
    """A folder with text and code of one's own, and the records of a run on them, which names them from there."""
    folder = tmp_path / "project"
    (folder / "texts").mkdir(parents=True)
    write_lines(folder / "known.jsonl", KNOWN)
    write_lines(folder / "texts" / "a.jsonl", SENTENCES[12:40])
    write_lines(folder / "texts" / "b.jsonl", SENTENCES[40:])
    (folder / "code").mkdir()
    shutil.copy(ROOT / "examples" / "magnitude.py", folder / "code" / "mine.py")
    (folder / "code" / "measure.py").write_text(METRIC)
    (folder / "code" / "breaks.py").write_text(ATTACK)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(cli, "run_script", lambda words: in_process(*map(str, words)))
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    in_process(SCRIPT, "--model_name", model, "--memorized", "known.jsonl", "--corpus", "texts", "--text_column",
               "body", "--prompt_tokens", N, "--continuation_tokens", K, "--num_test", 8, "--num_retain", 8,
               "--device", "cpu", "--localization_method", "code/mine.py", "--ratio", 0.1, "--metrics",
               "percent_memorized", "code/measure.py", "--attack", "code/breaks.py", "--output_dir", "out",
               "--no_save_model")  # fmt: skip
    records = {read_record(path)["kind"]: path.absolute() for path in find_records("out")}
    assert records.keys() == {"unedited", "unlearn", "attack"}
    return folder, records


def test_own_files_are_found_again_from_anywhere(project, monkeypatch, capsys):
    folder, records = project
    sections = json.dumps(
        {name: part for name, part in read_record(records["unlearn"]).items() if name != "environment"}
    )
    assert "known.jsonl" not in sections and str(folder) + "/texts" not in sections  # places are no identity
    for kind, path in records.items():
        monkeypatch.chdir(folder if kind == "unlearn" else folder.parent)
        capsys.readouterr()
        assert command("rerun", path, "--output_dir", f"again_{kind}") == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith("the same to the digit: ")


def test_a_moved_production_model_is_found_by_its_name(project, model, capsys):
    folder, records = project
    shutil.copytree(model, folder / "models" / "mine")
    record = json.loads(records["unedited"].read_text())
    record["model"]["name"] = "/gone/models/mine"
    path = records["unedited"].with_name("moved.json")
    path.write_text(json.dumps(record))
    assert command("rerun", path, "--output_dir", "again") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("the same to the digit: ")


@pytest.mark.parametrize("name, flag", [
    ("known.jsonl", "--memorized"), ("texts/a.jsonl", "--corpus"), ("code/mine.py", "--localization_method"),
    ("code/measure.py", "--metrics"),
])  # fmt: skip
def test_a_file_that_is_gone_or_has_changed_is_named_in_one_line(project, name, flag, capsys):
    folder, records = project
    changed = folder / name
    changed.write_text(changed.read_text() + "\n")
    assert command("rerun", records["unlearn"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    place = name if flag != "--corpus" else "texts"
    assert f"{flag} {place} has changed since (SHA-256 " in line
    shutil.move(folder / place, folder / "elsewhere")
    assert command("rerun", records["unlearn"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{flag} {place} is missing; put it there again" in line and not (folder / "runs").exists()


def test_the_text_of_kronecker_factors_is_found_again(project, model, capsys):
    """A file for one method and a corpus for the other: each gets its own again."""
    folder, _ = project
    (folder / "one.txt").write_text("\n\n".join(SENTENCES[20:]))
    (folder / "other.txt").write_text("\n\n".join(SENTENCES[:20]))
    in_process(SCRIPT, "--model_name", model, "--memorized", "known.jsonl", "--corpus", "texts", "--text_column",
               "body", "--prompt_tokens", N, "--continuation_tokens", K, "--num_test", 8, "--num_retain", 16,
               "--device", "cpu", "--localization_method", "kfac", "kfade", "--kfac.factor_data", "one.txt",
               "--kfade.factor_data", "other.txt", "--rho", 0.9, "--kl_budget", 0.1, "--metrics", "percent_memorized",
               "--output_dir", "factors", "--no_save_model")  # fmt: skip
    edited = [path for path in find_records("factors") if read_record(path)["kind"] == "unlearn"]
    assert len({read_record(path)["method"]["factor_data"] for path in edited}) == 2
    for path in edited:
        capsys.readouterr()
        assert command("rerun", path, "--output_dir", f"again_{path.stem}") == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith("the same to the digit: ")
    for name in ("one.txt", "other.txt"):
        (folder / name).unlink()
    assert command("rerun", edited[0]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--factor_data one.txt is missing; put it there again" in line


def test_a_module_of_this_package_is_no_file_of_the_users():
    asked = argparse.Namespace(localization_method=["npo", "tinymem.leaderboard.random_mask"])
    assert given_sources(asked) == []
