"""prod_grad.py in two processes on the CPU: what it writes is what one process writes."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
import torch
from small import ROOT, script
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from tinymem.data.token_sets import TokenSet, write_token_set
from tinymem.records.table import load_records
from tinymem.training.checkpoint import read_progress

SCRIPT = "src/localize/prod_grad.py"
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", 2],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--main_process_port", 0],
}
QUICK = ["--batch_size", 8, "--lr", 1e-3, "--warm_up", 0, "--device", "cpu"]
pytestmark = pytest.mark.slow  # a process of its own takes seconds to load its libraries


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with model/, which has memorized eight sequences, memorized.safetensors and random.pt."""
    folder = tmp_path_factory.mktemp("processes")
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=100, max_position_embeddings=32, **sizes))
    tokens = torch.randint(0, 100, (8, 20))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    model.save_pretrained(folder / "model")
    write_token_set(folder / "memorized.safetensors", TokenSet(tokens.int(), {"source": "test"}))
    torch.save(torch.randint(0, 100, (40, 20)), folder / "random.pt")
    return folder


def words(place, out, *more):
    base = ["--model_name", place / "model", "--memorized", place / "memorized.safetensors", "--random"]
    base += [place / "random.pt", "--prompt_tokens", 8, "--continuation_tokens", 10, "--num_test", 16]
    return [SCRIPT, *base, "--holdout_fraction", 0, "--output_dir", out, *QUICK, *more]


def launch(arguments, launcher="torchrun", fsdp=False):
    command = [sys.executable, "-m", *LAUNCHERS[launcher], *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_FSDP": str(fsdp).lower()}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def done(process):
    output, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def results(folder):
    return {
        json.dumps([record["kind"], record.get("method")], sort_keys=True): record["results"]
        for record in load_records(folder)
    }


def weights(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def check_same(place, one, other, share):
    """Weights differ by a share of the way from the unedited ones: Adam makes whole steps of rounding errors."""
    first, second = results(one), results(other)
    assert first.keys() == second.keys() and len(first) > 1
    for key, row in first.items():
        for name, value in row.items():
            if name in ("forget_loss", "retain_loss", "perplexity", "relative_change"):
                assert second[key][name] == pytest.approx(value, rel=2e-2, abs=1e-3), (key, name)
    start, names = weights(place / "model"), sorted(path.name for path in (one / "models").iterdir())
    assert names == sorted(path.name for path in (other / "models").iterdir()) and names
    for name in names:
        found, again = (weights(folder / "models" / name) for folder in (one, other))
        assert (found - again).norm() < share * (found - start).norm()


METHODS = ["--localization_method", "npo", "pdu", "--steps", 1, 4]


def test_two_processes_write_what_one_writes(place, tmp_path):
    alone = script(*words(place, tmp_path / "one", *METHODS))
    assert alone.returncode == 0, alone.stderr
    together = done(launch(words(place, tmp_path / "two", *METHODS)))
    assert together.returncode == 0, together.stderr
    assert together.stdout.count("unedited") == 1  # one process prints
    check_same(place, tmp_path / "one", tmp_path / "two", 0.1)


@pytest.mark.parametrize("flags, share", [(["--lora_rank", 2, "--keep_adapter"], 0.1)])
@pytest.mark.nightly
def test_low_rank_changes_and_masters(place, tmp_path, flags, share):
    more = ["--localization_method", "npo", "--steps", 4, *flags]
    assert script(*words(place, tmp_path / "one", *more)).returncode == 0
    together = done(launch(words(place, tmp_path / "two", *more), "accelerate"))
    assert together.returncode == 0, together.stderr
    check_same(place, tmp_path / "one", tmp_path / "two", share)
    assert len(list((tmp_path / "two").glob("adapters/*/adapter_model.safetensors"))) == ("--lora_rank" in flags)


@pytest.mark.parametrize("dtype, share", [("bfloat16", 0.5)])
@pytest.mark.nightly
def test_weights_divided_among_processes(place, tmp_path, dtype, share):
    more = ["--localization_method", "npo", "--steps", 1, 4, "--dtype", dtype]
    assert script(*words(place, tmp_path / "one", *more)).returncode == 0
    together = done(launch(words(place, tmp_path / "two", *more), fsdp=True))
    assert together.returncode == 0, together.stderr
    check_same(place, tmp_path / "one", tmp_path / "two", share)


@pytest.mark.nightly
def test_killed_and_resumed(place, tmp_path):
    more = ["--localization_method", "npo", "--steps", 2, 60]
    straight = done(launch(words(place, tmp_path / "straight", *more)))
    assert straight.returncode == 0, straight.stderr
    process, folder = launch(words(place, tmp_path / "killed", *more)), tmp_path / "killed" / "records"
    while process.poll() is None and len(list(folder.glob("*.json"))) < 2:  # the unedited model, and the first edit
        time.sleep(0.05)
    assert process.poll() is None
    for each in [
        process,
        *psutil.Process(process.pid).children(recursive=True),
    ]:  # the launcher's are in groups of their own
        each.kill()
    process.communicate()
    assert len(load_records(tmp_path / "killed")) in (2, 3)
    again = done(launch(words(place, tmp_path / "killed", *more)))
    assert again.returncode == 0, again.stderr
    check_same(place, tmp_path / "straight", tmp_path / "killed", 1e-3)


def test_stopped_and_resumed(place, tmp_path):
    """The dual weight of pdu moves with every step, and the state has it."""
    more, last = ["--localization_method", "pdu", "--dual_warm_up", 0, "--steps", 2, 150], 150
    straight = done(launch(words(place, tmp_path / "straight", *more)))
    assert straight.returncode == 0, straight.stderr
    log = tmp_path / "log.jsonl"
    process = launch(words(place, tmp_path / "stopped", *more, "--log_jsonl", log))
    while process.poll() is None and (not log.exists() or not 2 < max(steps_in(log), default=0)):
        time.sleep(0.02)
    for each in psutil.Process(process.pid).children():
        each.terminate()  # Ctrl-C and a launcher that is told to end do this, too
    stopped = done(process)
    assert stopped.returncode and "run the same command again to resume" in stopped.stderr, stopped.stderr
    (state,) = (tmp_path / "stopped" / "scores").glob("pdu_*.state.safetensors")
    at = read_progress(state).epoch + 1
    assert 2 < at < last and len(load_records(tmp_path / "stopped")) == 2
    log.unlink()
    again = done(launch(words(place, tmp_path / "stopped", *more, "--log_jsonl", log)))
    assert again.returncode == 0, again.stderr
    assert min(steps_in(log)) > at and not state.exists()
    check_same(place, tmp_path / "straight", tmp_path / "stopped", 1e-6)


def steps_in(log):
    """The steps of trainings in a log."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line["step"] for line in lines if "tokens_per_second" in line]


@pytest.mark.parametrize("more, message", [
    (["--localization_method", "npo", "--batch_size", 6], "2 processes cannot share 3 and 3 rows of a step equally"),
    (["--localization_method", "npo", "durable"],
     "durable: runs in one process; start it without a launcher, with --device_map"),
    (["--localization_method", "npo", "--device_map", "auto"], "--device_map: spreads the model of one process"),
    (["--localization_method", "npo", "--beta", 0], "--beta 0.0: must be > 0"),
])  # fmt: skip
def test_what_cannot_be_is_said_once(place, tmp_path, more, message):
    """The launcher adds a report of its own, and has its own exit code."""
    refused = done(launch(words(place, tmp_path / "out", *more)))
    assert refused.returncode != 0 and not (tmp_path / "out").exists()
    lines = [line for line in refused.stderr.splitlines() if line.startswith("prod_grad.py: error")]
    assert len(lines) == 1 and message in lines[0] and "exitcode  : 2" in refused.stderr
