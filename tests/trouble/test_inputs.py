"""What is no file, too large a file, or a file that holds nonsense: one line that names it, and no wait."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small import small_settings

from tinymem import files
from tinymem.attacks import recovery
from tinymem.data.build import cache_path, load_dataset
from tinymem.data.chunks import _mapped
from tinymem.data.settings import DataSettings
from tinymem.data.text_files import corpus_files, read_texts, sha256
from tinymem.data.token_sets import read_token_set
from tinymem.errors import UserError
from tinymem.inputs import LIMIT, check_file, read_json, read_settings
from tinymem.metrics.scan import _read_progress
from tinymem.models.loading import empty_model, read_config
from tinymem.options import LARGEST
from tinymem.records.cost import Cost
from tinymem.records.record import read_record, read_values, write_record
from tinymem.regularizers import l1, spectral_reg
from tinymem.training import checkpoint
from tinymem.training.checkpoint import Progress
from tinymem.training.settings import RunSettings

SUFFIXES = (".json", ".txt", ".jsonl", ".parquet", ".safetensors", ".pt", ".npy")
READERS = {
    ".json": read_json,
    ".txt": lambda path: read_texts(path, "text"),
    ".jsonl": lambda path: read_texts(path, "text"),
    ".parquet": lambda path: read_texts(path, "text"),
    ".safetensors": read_token_set,
    ".pt": read_token_set,
    ".npy": lambda path: _mapped(path, 8, 100, lambda: None),
}


def refused(call, *arguments) -> str:
    """The one line with which a call refuses its input."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert str(caught.value).isprintable()
    return str(caught.value)


def pipe(path):
    os.mkfifo(path)


def link_to_pipe(path):
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def link_to_device(path):
    path.symlink_to("/dev/zero")


def circle(path):
    path.symlink_to(path.name)


def sparse(path):
    with open(path, "wb") as file:
        file.truncate(2 * 10**9)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("make", [pipe, link_to_pipe, link_to_device, circle, sparse], ids=lambda make: make.__name__)
def test_only_regular_files_of_a_bounded_size_are_read(tmp_path, make, suffix):
    path = tmp_path / f"x{suffix}"
    make(path)
    assert str(path) in refused(READERS[suffix], path)


def test_pipes_as_a_corpus(tmp_path):
    pipe(tmp_path / "x.txt")
    assert "is a pipe" in refused(lambda: sha256(corpus_files(tmp_path / "x.txt")))


def test_a_variable_raises_the_limit(tmp_path, monkeypatch):
    sparse(tmp_path / "x.txt")
    assert f"set the environment variable {LIMIT} to 2.1 or more" in refused(check_file, tmp_path / "x.txt")
    monkeypatch.setenv(LIMIT, "2.1")
    assert check_file(tmp_path / "x.txt") == tmp_path / "x.txt"
    monkeypatch.setenv(LIMIT, "much")
    assert f"{LIMIT}=much" in refused(check_file, tmp_path / "x.txt")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": NaN}', "\xff", "9" * 5000, "\x00"])
def test_damaged_json(tmp_path, text):
    (tmp_path / "x.json").write_text(text, encoding="latin-1")
    message = refused(read_json, tmp_path / "x.json")
    assert "x.json: this file is damaged" in message and "delete it and run again" in message


FLAT = small_settings().flat()
WRONG_SETTINGS = {
    "n_layers": ["2", 2.0, None, [2], True, 0, 49],
    "lr": ["0.1", None, -1.0, True],
    "data_name": [7, None, "sorting"],
    "duplicate": [1, "yes"],
    "num_7": [0, 10**30, -1],
    "max_ctx": [2**40],
    "corpus_sha256": [7],
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in WRONG_SETTINGS.items() for value in values])
def test_every_setting_of_a_checkpoint_is_checked(tmp_path, name, value):
    details = {"settings": {**FLAT, name: value}, "epoch": 6}
    (tmp_path / checkpoint.SETTINGS).write_text(json.dumps(details))
    message = refused(checkpoint.load_trained, tmp_path)
    assert checkpoint.SETTINGS in message and name in message


@pytest.mark.parametrize(
    "details",
    [[], {"epoch": 6}, {"settings": [], "epoch": 6}, {"settings": FLAT, "epoch": "6"},
     {"settings": FLAT, "epoch": None}],
)  # fmt: skip
def test_the_other_values_of_a_checkpoint_too(tmp_path, details):
    (tmp_path / checkpoint.SETTINGS).write_text(json.dumps(details))
    assert checkpoint.SETTINGS in refused(checkpoint.load_trained, tmp_path)


@pytest.mark.parametrize("own, value", [("n_layer", 9), ("n_head", 3), ("n_embd", 7)])
def test_settings_of_another_model_than_the_one_beside_them(tmp_path, own, value):
    (tmp_path / checkpoint.SETTINGS).write_text(json.dumps({"settings": FLAT, "epoch": 6}))
    sizes = {"n_layer": FLAT["n_layers"], "n_head": FLAT["n_heads"], "n_embd": FLAT["n_embd"]}
    (tmp_path / checkpoint.CONFIG).write_text(json.dumps(sizes))
    assert checkpoint.load_trained(tmp_path)["epoch"] == 6
    (tmp_path / checkpoint.CONFIG).write_text(json.dumps({**sizes, own: value}))
    message = refused(checkpoint.load_trained, tmp_path)
    assert f"{checkpoint.CONFIG} {own} {value}; they are of different models" in message
    (tmp_path / checkpoint.CONFIG).write_text("[]")  # said when the model is opened
    assert checkpoint.load_trained(tmp_path)["epoch"] == 6


def test_nobody_is_told_to_delete_a_part_of_a_model(tmp_path):
    (tmp_path / checkpoint.SETTINGS).write_text(json.dumps({"settings": FLAT, "epoch": 6}))
    (tmp_path / checkpoint.CONFIG).write_text("{")
    assert "copy the folder again" in refused(checkpoint.load_trained, tmp_path)
    (tmp_path / checkpoint.SETTINGS).write_text("{")
    assert "copy the folder again" in refused(checkpoint.made_by, tmp_path)


def test_settings_come_back_from_their_file(tmp_path):
    settings = RunSettings.from_flat({**FLAT, "spectral_reg": True, "lam": 1})
    (tmp_path / checkpoint.SETTINGS).write_text(json.dumps({"settings": settings.flat(), "epoch": 6}))
    details = checkpoint.load_trained(tmp_path)
    assert RunSettings.from_flat(details["settings"], tmp_path) == settings and len(settings.regularizers) == 1


GOOD = {"epoch": 1, "step": 0, "loss_sum": 0, "step_seconds": 0.0, "epoch_seconds": [1.5], "seconds": 2.0}
GOOD |= {"rows": [{"epoch": 1}]}


@pytest.mark.parametrize(
    "change",
    [dict(epoch=-1), dict(epoch="1"), dict(step=None), dict(seconds="x"), dict(epoch_seconds=1.0), dict(rows={}),
     dict(rows=[1]), dict(rows=[{}]), dict(rows=[{"epoch": "1"}]), dict(epoch_seconds=["1"]), "not JSON", None],
)  # fmt: skip
def test_a_saved_state_is_checked(tmp_path, change):
    path = tmp_path / checkpoint.STATE
    text = json.dumps({**GOOD, **change}) if isinstance(change, dict) else change
    save_file({"model.x": torch.zeros(1)}, path, metadata={"progress": text} if text else {"other": "x"})
    message = refused(checkpoint.read_progress, path)
    assert checkpoint.STATE in message and "delete it to resume from the last complete checkpoint" in message


def test_a_state_of_another_shape_does_not_fill_a_model(tmp_path):
    model, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)
    optimizers = [torch.optim.AdamW(module.parameters()) for module in (model, other)]
    for module, optimizer in zip((model, other), optimizers):
        module(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    checkpoint.save_state(tmp_path / "x.safetensors", other, optimizers[1], (), Progress())
    assert "x.safetensors: damaged" in refused(
        checkpoint.load_state, tmp_path / "x.safetensors", model, optimizers[0], ()
    )


def test_the_remedy_for_damaged_metrics_works(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    rows = [{"epoch": 1, "loss": 0.5}]
    checkpoint.save_state(tmp_path / checkpoint.STATE, model, optimizer, (), Progress(epoch=1, rows=rows))
    (tmp_path / checkpoint.METRICS).write_text("[{")
    assert "delete it and run again" in refused(checkpoint.load_metrics, tmp_path)
    (tmp_path / checkpoint.METRICS).unlink()
    assert checkpoint.load_metrics(tmp_path) == rows == read_json(tmp_path / checkpoint.METRICS)


@pytest.mark.parametrize(
    "content",
    [{}, [], {"key": "k", "done": "1", "found": []}, {"key": "k", "done": 3, "found": [5]},
     {"key": "k", "done": 3, "found": "0"}],
)  # fmt: skip
def test_the_progress_of_a_search_is_checked(tmp_path, content):
    files.write_json(tmp_path / "x.json", content)
    assert "x.json" in refused(_read_progress, tmp_path / "x.json", "k")


def dataset_cache(tmp_path, change):
    """A cached dataset with one of its tensors or values changed."""
    from safetensors import safe_open

    settings = DataSettings(
        **{name: value for name, value in FLAT.items() if name in DataSettings.__dataclass_fields__}
    )
    load_dataset(settings, tmp_path)
    path = cache_path(settings, tmp_path)
    with safe_open(path, framework="pt") as file:
        plain, tensors = json.loads(file.metadata()["plain"]), {name: file.get_tensor(name) for name in file.keys()}
    change(plain, tensors)
    save_file(tensors, path, metadata={"plain": json.dumps(plain)})
    return settings


@pytest.mark.parametrize(
    "change",
    [
        lambda plain, tensors: plain.update(vocabulary_size="14"),
        lambda plain, tensors: plain.update(kind=None),
        lambda plain, tensors: plain.pop("pad"),
        lambda plain, tensors: tensors["order"].add_(10**6),
        lambda plain, tensors: tensors["sequences"].fill_(200),
        lambda plain, tensors: tensors.update({"artifacts.clean": tensors["artifacts.clean"][:, :3].contiguous()}),
        lambda plain, tensors: tensors.update(artifact_ids=tensors["artifact_ids"].float()),
    ],
)
def test_a_cached_dataset_is_checked(tmp_path, change):
    settings = dataset_cache(tmp_path, change)
    assert "delete it and run again" in refused(load_dataset, settings, tmp_path)


def test_a_cached_dataset_that_is_right_is_read(tmp_path):
    settings = dataset_cache(tmp_path, lambda plain, tensors: None)
    assert len(load_dataset(settings, tmp_path).tests) == 5


@pytest.mark.parametrize(
    "tokens, right",
    [([[0, 99]], True), ([[0, 100]], False), ([[-1, 5]], False), ([[0, 1, 2]], False), ([[0.0, 1.0]], False)],
)
def test_cached_tokens_are_ids_of_the_vocabulary(tmp_path, tokens, right):
    array = np.array(tokens)
    np.save(tmp_path / "x.npy", array.astype(np.int32) if array.dtype.kind == "i" else array)
    arguments = tmp_path / "x.npy", 2, 100, None
    if right:
        assert _mapped(*arguments).tolist() == tokens
    else:
        assert "delete the file and run again" in refused(_mapped, *arguments)


@pytest.mark.parametrize("value, right", [(1.5, True), (None, True), (1, True), ("high", False), ([1.0], False),
                                          ({"a": 1}, False), (10**400, False)])  # fmt: skip
def test_a_records_metrics_are_numbers(tmp_path, value, right):
    path = write_record(tmp_path, {"kind": "unlearn", "method": {"name": "m"}}, {"perplexity": 1.0}, Cost(), "cpu")
    record = {**json.loads(path.read_text()), "results": {"perplexity": value, "model_folder": "text"}}
    path.write_text(json.dumps(record))
    if right:
        assert read_record(path)["results"]["perplexity"] == value
    else:
        assert "results.perplexity is no number" in refused(read_record, path)
    path.write_text(json.dumps({**record, "results": {}, "method": {"name": 7}}))
    assert "a method's name is no text" in refused(read_record, path)


VALUES = {"mine": torch.ones(3), "examples.shown.prompt": torch.ones(2, 4, dtype=torch.int32)}
VALUES |= {f"examples.shown.{part}": torch.ones(2, 5, dtype=torch.int32) for part in ("planted", "written")}
WRONG_VALUES = {
    "mine": [torch.tensor(1.0), torch.ones(3, 1), torch.ones(3, dtype=torch.complex64)],
    "mine.weights": [torch.ones(2)],
    "mine.groups": [torch.ones(4, dtype=torch.long)],
    "examples.shown.written": [torch.ones(2, 4, dtype=torch.int32), torch.ones(1, 5, dtype=torch.int32),
                               torch.ones(2, 5), torch.ones(10, dtype=torch.int32)],
    "examples.x": [torch.ones(2, 5, dtype=torch.int32)],
}  # fmt: skip


@pytest.mark.parametrize("name, wrong", [(name, wrong) for name, some in WRONG_VALUES.items() for wrong in some])
def test_values_beside_a_record(tmp_path, name, wrong):
    path = write_record(tmp_path, {"kind": "train"}, {}, Cost(), "cpu", VALUES)
    assert read_values(path).keys() == VALUES.keys()
    save_file({**VALUES, name: wrong}, path.with_suffix(".safetensors"))
    assert "delete it and its record" in refused(read_values, path)


def test_values_of_another_record(tmp_path):
    one, other = (write_record(tmp_path, {"kind": kind}, {}, Cost(), "cpu", VALUES) for kind in ("train", "unlearn"))
    other.with_suffix(".safetensors").replace(one.with_suffix(".safetensors"))
    assert f"holds the values of another record, {other.stem}" in refused(read_values, one)
    save_file({name: value for name, value in VALUES.items() if "planted" not in name}, one.with_suffix(".safetensors"))
    assert "its examples are not complete" in refused(read_values, one)
    pipe(other.with_suffix(".safetensors"))
    assert "is a pipe" in refused(read_values, other)


@pytest.mark.parametrize("part, name, value, right", [
    ("results", "percent_memorized_train", 100.0000000001, True), ("results", "percent_memorized_train", 250.0, False),
    ("results", "percent_memorized_shown", -5, False), ("results", "mean_test_accuracy", 7, False),
    ("results", "percent_of_mine", 250.0, True), ("cost", "seconds", -5, False), ("cost", "seconds", 5, True),
    ("results", "perplexity", 0, False), ("results", "perplexity", -3.0, False), ("results", "perplexity", 1, True),
])  # fmt: skip
def test_a_records_metrics_are_in_range(tmp_path, part, name, value, right):
    path = write_record(tmp_path, {"kind": "unlearn", "method": {"name": "m"}}, {"perplexity": 1.0}, Cost(), "cpu")
    record = json.loads(path.read_text())
    record[part][name] = value
    path.write_text(json.dumps(record))
    if right:
        assert read_record(path)[part][name] == value
    else:
        assert f"{part}.{name} {value:g} is not between" in refused(read_record, path)


@pytest.mark.parametrize("folder", ["/etc", "../other", "models/../../x", ["models"], 5])
def test_a_records_model_lies_below_its_run(tmp_path, folder):
    path = write_record(tmp_path, {"kind": "train"}, {"model_folder": "models/x"}, Cost(), "cpu")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "results": {"model_folder": folder}}))
    assert "model_folder" in refused(read_record, path)


@pytest.mark.parametrize("kind, part", [("unlearn", "method"), ("measured", "method"), ("attack", "attack"),
                                        ("attack_never_planted", "attack")])  # fmt: skip
def test_a_record_names_what_was_done(tmp_path, kind, part):
    path = write_record(tmp_path, {"kind": kind, part: {}}, {}, Cost(), "cpu")
    assert f"no {part}.name" in refused(read_record, path)


def test_the_strength_of_an_attack_is_a_number():
    with pytest.raises(UserError, match="bits is 'x'"):
        recovery._number({"name": "quantize", "bits": "x"}, "bits")


@pytest.mark.parametrize("settings", [lambda: l1.Settings(l1_reg=1e300), lambda: spectral_reg.Settings(lam=1e300)])
def test_no_number_is_beyond_float32(settings):
    assert "must be <= 1e+38" in refused(settings)


CONFIG = dict(model_type="gpt2", n_embd=8, n_head=2, n_layer=1, n_positions=8, vocab_size=9)


@pytest.mark.parametrize(
    "change",
    [dict(vocab_size="9"), dict(vocab_size=10**12), dict(n_layer=-1), dict(n_layer=10**9), dict(n_head=0),
     dict(n_embd=2.5), dict(dtype="int8"), dict(dtype="float99"), dict(torch_dtype=[1]),
     dict(attn_implementation="someone/kernel"), dict(_attn_implementation=7), dict(model_type=[]),
     dict(model_type="no_such"), dict(model_type="llama", text_config={"vocab_size": 9})],
)  # fmt: skip
def test_a_config_that_cannot_be(tmp_path, change):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **change}))
    assert str(tmp_path) in refused(read_config, tmp_path)


def test_a_config_whose_model_cannot_be(tmp_path):
    values = dict(model_type="llama", hidden_size=8, num_attention_heads=2, vocab_size=9, pad_token_id=9)
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert "Padding_idx" in refused(lambda: empty_model(tmp_path, read_config(tmp_path)))


def test_a_config_that_can(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "dtype": "bfloat16", "attn_implementation": "eager"}))
    assert read_config(tmp_path).n_embd == 8


def test_no_count_is_beyond_what_torch_counts():
    assert "num_4" in refused(lambda: DataSettings(num_4=10**30))
    assert f"--epochs {'9' * 80} ...: must be <= {LARGEST}" in refused(
        lambda: read_settings(type(small_settings().training), {"epochs": int("9" * 100)}, "x").epochs
    ).replace("x: epochs", "--epochs")
