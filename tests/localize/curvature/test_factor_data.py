"""`--factor_data`: other text than the retain set gives the factors."""

from dataclasses import replace

import pytest
import torch
from small import in_process
from tiny import LENGTH, VOCABULARY, new_model

from tinymem.data.token_sets import TokenSet, write_token_set
from tinymem.errors import UserError
from tinymem.localize.cache import Cache
from tinymem.localize.curvature import factors
from tinymem.localize.curvature.factors import FactorSettings, bases
from tinymem.localize.curvature.layers import chosen_weights
from tinymem.records.identity import record_digest
from tinymem.records.table import load_records

SCRIPT = "src/localize/localize_memorization.py"
KFAC = {"layers": "all", "projections": "both", "labels": "gold", "factor_sequences": 20000, "cut": "mass", "rho": 0.7}


@pytest.fixture
def token_file(tmp_path):
    """token_file(rows, name="ids"): the name of a file of these token ids."""

    def write(rows, name="ids"):
        return str(write_token_set(tmp_path / f"{name}.safetensors", TokenSet(rows.int(), {})))

    return write


def other_rows(count=30):
    return torch.randint(0, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("name", ["kfac", "kfade"])
@pytest.mark.parametrize("more", [{}, {"factor_sequences": 9}, {"labels": "sampled"}])
def test_a_file_of_the_retain_set_changes_nothing(name, more, curvature, tiny_model, tiny_task, token_file, edits_of):
    method, task = curvature[name], tiny_task()
    usual, from_file = (
        edits_of(method, tiny_model(), task, method.hyper_parameters(factor_data=file, **more))
        for file in (None, token_file(task.retain))
    )
    assert all(torch.equal(usual[s][name], from_file[s][name]) for s in usual for name in usual[s])


def test_other_text_gives_its_own_factors(tiny_model, tiny_task, token_file):
    model, task, other = tiny_model(), tiny_task(), other_rows()
    weights, hp = chosen_weights(model, FactorSettings()), FactorSettings(factor_data=token_file(other))
    usual = bases(model, task, weights, FactorSettings())
    expected = bases(model, replace(task, retain=other), weights, FactorSettings())
    for (_, own), (_, found), (_, of_retain) in zip(bases(model, task, weights, hp), expected, usual, strict=True):
        assert torch.equal(own.inputs, found.inputs) and torch.equal(own.output_values, found.output_values)
        assert not torch.allclose(own.input_values, of_retain.input_values)


def test_the_cache_is_keyed_by_the_text(tiny_model, tiny_task, token_file, tmp_path):
    model, cached = tiny_model(), tiny_task(cache=Cache(tmp_path / "cache", {"weights": "w"}))
    weights = chosen_weights(model, FactorSettings())
    one, same, other = token_file(other_rows(), "a"), token_file(other_rows(), "b"), token_file(other_rows() // 2, "c")
    for file, count in ((None, 1), (one, 2), (same, 2), (other, 3)):
        found, _ = (list(bases(model, cached, weights, FactorSettings(factor_data=file))) for _ in range(2))
        again = list(bases(model, tiny_task(), weights, FactorSettings(factor_data=file)))
        assert all(torch.equal(a.inputs, b.inputs) for (_, a), (_, b) in zip(found, again, strict=True))
        assert len(list((tmp_path / "cache").iterdir())) == count


def test_records_name_the_text_by_its_content(curvature, token_file):
    method = curvature["kfac"]
    sections = {
        name: method.settings(method.hyper_parameters(factor_data=file), 0.7)
        for name, file in {
            "usual": None,
            "one": token_file(other_rows(), "a"),
            "moved": token_file(other_rows(), "b"),
            "other": token_file(other_rows() // 2, "c"),
        }.items()
    }
    assert sections["usual"] == {"name": "kfac", **KFAC}  # as before there was this setting
    assert sections["one"] == {**sections["usual"], "factor_data": TokenSet(other_rows().int(), {}).fingerprint}
    assert sections["one"] == sections["moved"]
    assert len({record_digest({"kind": "unlearn", "method": section}) for section in sections.values()}) == 3


def test_too_little_text_says_how_much_is_needed(tiny_model, tiny_task, token_file):
    model, file = tiny_model(), token_file(other_rows(2))
    with pytest.raises(UserError) as error:
        next(bases(model, tiny_task(), chosen_weights(model, FactorSettings()), FactorSettings(factor_data=file)))
    assert str(error.value) == (
        f"--factor_sequences: 2 sequences of --factor_data {file} have 22 tokens, and a factor of 32 x 32 needs at "
        "least 32; raise it, or give more text"
    )


def test_plans_take_other_text_to_be_as_long_as_asked_for(tiny_model, tiny_task):
    task, model = tiny_task(microbatch=5), tiny_model()
    weights = chosen_weights(model, FactorSettings())
    hp = FactorSettings(factor_data="text.txt", factor_sequences=12)
    assert factors.factor_passes(task, weights, hp) == (3, 3)
    model.planned_for = "cpu"
    assert len(list(bases(model, task, weights, hp))) == len(weights)  # of retain sequences: the text is not there


@pytest.mark.parametrize("name", ["kfac", "kfade"])
def test_plans_refuse_what_a_run_must(name, curvature, tiny_model, tiny_task, token_file):
    """32 tokens are needed. A row of 12 tokens has 11 that are predicted, or 12 if its <bos> comes on top."""
    method, model = curvature[name], tiny_model()
    model.planned_for = "cpu"
    two, three = token_file(other_rows(2), "two"), token_file(other_rows(3), "three")
    ways = "--max_retain, or the number of retain sequences"
    for retain, changes, message in (
        (
            2,
            {},
            f"2 retain sequences have at most 24 tokens, and a factor of 32 x 32 needs at least 32; raise it, {ways}",
        ),
        (24, {"factor_sequences": 2}, "2 retain sequences have at most 24 tokens"),
        (24, {"factor_data": two}, f"2 sequences of --factor_data {two} have at most 24 tokens"),
        (
            24,
            {"factor_data": three, "factor_sequences": 2},
            f"2 sequences of --factor_data {three} have at most 24 tokens",
        ),
        (3, {}, None),
        (2, {"factor_data": three}, None),
        (2, {"factor_data": "not_there.txt"}, None),  # how many tokens a text has, its tokenizer alone knows
    ):
        work = model, tiny_task(retain=retain, microbatch=5), method.hyper_parameters(**changes)
        if message is None:
            assert method.passes(*work)[0] > 0
        else:
            with pytest.raises(UserError, match=f"^--factor_sequences: {message}"):
                method.passes(*work)


def test_the_script_takes_a_file_and_says_where_it_lay(memorizing_backdoor, tmp_path, capsys):
    dataset, text = memorizing_backdoor.dataset, tmp_path / "ids.safetensors"
    write_token_set(text, TokenSet(dataset.tests["seven"].int(), {}))
    words = ["--model_path", memorizing_backdoor.checkpoint, "--localization_method", "kfac", "--rho", 0.9]
    words += ["--projections", "out", "--metrics", "percent_memorized", "--no_save_model", "--output_dir", tmp_path]
    in_process(SCRIPT, *words, "--kfac.factor_data", text)
    in_process(SCRIPT, *words)
    own, usual = sorted(
        (record for record in load_records(tmp_path) if record["kind"] == "unlearn"),
        key=lambda record: "factor_data" not in record["method"],
    )
    assert own["method"]["factor_data"] == TokenSet(dataset.tests["seven"].int(), {}).fingerprint
    assert [(each["flag"], each["path"]) for each in own["environment"]["sources"]] == [("--factor_data", str(text))]
    assert "factor_data" not in usual["method"] and "sources" not in usual["environment"]
    assert own["results"]["relative_change"] != usual["results"]["relative_change"]


def test_every_row_begins_as_the_retain_rows_do(token_file, tmp_path):
    """Rows without <bos> get it, and rows that have it are taken as they are: the same edit."""
    new_model("llama").save_pretrained(tmp_path / "model")
    memorized, random, plain = other_rows(9)[:, :11], other_rows(90)[9:, :11], other_rows(120)[90:, :11]
    begun = torch.cat([torch.full((len(plain), 1), 10), plain], 1)
    words = ["--model_name", tmp_path / "model", "--bos", "yes", "--prompt_tokens", 4, "--continuation_tokens", 6]
    words += ["--memorized", token_file(memorized, "memorized"), "--random", token_file(random, "random")]
    words += ["--unlearn_set_name", "noise", "--localization_method", "kfac", "--rho", 0.9, "--no_save_model"]
    words += ["--metrics", "percent_memorized", "--output_dir", tmp_path / "out"]
    for file in (token_file(plain, "plain"), token_file(begun, "begun")):
        in_process("src/localize/prod_grad.py", *words, "--factor_data", file)
    one, other = (record for record in load_records(tmp_path / "out") if record["kind"] == "unlearn")
    assert one["results"] == other["results"] and one["results"]["relative_change"] > 0
    assert one["data"]["bos"] and one["method"]["factor_data"] != other["method"]["factor_data"]


@pytest.mark.parametrize(
    "place, message",
    [
        ("missing.pt", "missing.pt: no such file"),
        ("missing.txt", "--factor_data missing.txt: no such file or folder"),
    ],
)
def test_a_missing_file_is_refused_before_anything_is_loaded(place, message, tmp_path, capsys):
    words = ["--model_path", "no_model", "--localization_method", "kfade", "--output_dir", tmp_path / "out"]
    with pytest.raises(SystemExit) as stopped:
        in_process(SCRIPT, *words, "--factor_data", place)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
