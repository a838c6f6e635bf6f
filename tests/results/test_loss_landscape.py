"""The landscape script end to end: figure and data, killed and resumed, any causal LM, bad input."""

import json
import shutil
import time

import pytest
import torch
from small import in_process, start
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from tinymem import plots
from tinymem.errors import UserError
from tinymem.metrics import landscape as library
from tinymem.metrics.landscape import LandscapeSettings, landscape, new_survey
from tinymem.metrics.quality import quality

SCRIPT = "results/vis/loss_landscape.py"


@pytest.fixture
def survey(memorizing_backdoor, tmp_path):
    settings = LandscapeSettings(points=3, num_sequences=8)
    tokens = memorizing_backdoor.dataset.tests["seven"]
    return new_survey(memorizing_backdoor.model, settings, tokens, None, 8, tmp_path / "grids")


@pytest.mark.slow
def test_original_and_edited_models_on_one_plane(memorizing_backdoor, tmp_path, monkeypatch, capsys):
    checkpoint = shutil.copytree(memorizing_backdoor.checkpoint, tmp_path / "run" / "epoch_6")
    monkeypatch.chdir(tmp_path)
    in_process(SCRIPT, "--model_path", checkpoint, "--points", 3, "--num_sequences", 20)
    output = tmp_path / "runs" / "landscapes" / "epoch_6"
    content = json.loads((output / "loss_landscape.json").read_text())
    panels = content["models"]
    assert list(panels) == ["original", "well edited", "badly edited"] and content["coordinates"] == [-1.0, 0.0, 1.0]
    assert all((output / f"loss_landscape.{kind}").stat().st_size > 5000 for kind in ("png", "pdf"))
    middles = {label: panel["losses"][1][1] for label, panel in panels.items()}
    assert middles["original"] == min(middles.values()) and len(set(middles.values())) == 3
    assert panels["original"]["percent_memorized_train"] > 50
    printed = capsys.readouterr().out
    assert "badly edited" in printed and str(output.relative_to(tmp_path)) in printed
    assert not (tmp_path / "run" / "unlearned").exists()


def test_the_loss_of_the_model_itself_stands_in_the_middle(survey, memorizing_backdoor):
    losses = landscape(memorizing_backdoor.model, survey)["losses"]
    assert losses[1][1] == quality(memorizing_backdoor.model, survey.tokens, -1, True, 8).mean_loss


def test_interrupted_it_goes_on_with_the_same_numbers(survey, memorizing_backdoor, tmp_path, monkeypatch):
    undisturbed = landscape(memorizing_backdoor.model, survey)["losses"]
    monkeypatch.setattr(library, "SAVE_SECONDS", 0.0)
    shutil.rmtree(survey.folder)
    points = []

    def stop_after_four(count):
        points.append(count)
        if len(points) == 6:  # the first call tells of those known before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        landscape(memorizing_backdoor.model, survey, stop_after_four)
    known = []
    assert landscape(memorizing_backdoor.model, survey, known.append)["losses"] == undisturbed
    assert known == [4, 1, 1, 1, 1, 1]
    assert landscape(memorizing_backdoor.model, survey, known.append)["losses"] == undisturbed and known[-1] == 9


@pytest.mark.slow
def test_killed_it_goes_on(memorizing_backdoor, tmp_path):
    words = ["--model_path", memorizing_backdoor.checkpoint, "--edited", "--points", 21, "--num_sequences", 50]
    words += ["--data_dir", tmp_path / "data", "--output_dir", tmp_path]
    slowly = [*words, "--batch_size", 1, "--grid_dir", tmp_path / "grids"]
    process, waited = start(SCRIPT, *slowly), time.monotonic()
    while not list(tmp_path.glob("grids/*.json")) and time.monotonic() - waited < 300:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.kill()
    process.communicate()
    (grid,) = tmp_path.glob("grids/*.json")
    before = json.loads(grid.read_text())["losses"]
    assert 0 < len(before) < 441
    in_process(SCRIPT, *words, "--grid_dir", tmp_path / "grids")
    after = json.loads(grid.read_text())["losses"]
    in_process(SCRIPT, *words, "--grid_dir", tmp_path / "undisturbed")
    (grid,) = tmp_path.glob("undisturbed/*.json")
    assert len(after) == 441 and after[: len(before)] == before
    assert after == pytest.approx(json.loads(grid.read_text())["losses"], rel=1e-5)  # another batch size


def test_any_causal_lm_and_a_file_of_tokens(tmp_path, capsys):
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=40)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(max_position_embeddings=24, bos_token_id=0, eos_token_id=0, **sizes))
    model.save_pretrained(tmp_path / "model")
    torch.save(torch.randint(0, 40, (10, 12)), tmp_path / "tokens.pt")
    words = ["--model_name", tmp_path / "model", "--tokens", tmp_path / "tokens.pt", "--points", 3]
    words += ["--grid_dir", tmp_path / "grids", "--output_dir", tmp_path / "out"]
    in_process(SCRIPT, *words, "--num_sequences", 10, "--edited", f"same={tmp_path / 'model'}")
    panels = json.loads((tmp_path / "out" / "loss_landscape.json").read_text())["models"]
    assert panels["original"]["losses"] == panels["same"]["losses"] and "percent" not in str(panels)
    torch.save(torch.randint(0, 40, (10, 30)), tmp_path / "tokens.pt")
    with pytest.raises(SystemExit):
        in_process(SCRIPT, *words, "--num_sequences", 10)
    assert "30 tokens per sequence; this model takes at most 24" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (["--points", 4], "--points 4: must be odd"),
        (["--edited", "well"], "--edited well: write LABEL=FOLDER"),
        (["--edited", "original=x"], "none of them original"),
        (["--model_name", "x"], "--model_path and --model_name"),
        (["--batch_size", 0], "--batch_size: '0' is not a whole number >= 1"),
        (["--num_sequences", 5000], "--num_sequences 5000: there are only"),
        (["--edited", "other=results/models/increment_backdoor_2layers"], "other shapes"),
    ],
)
def test_bad_input(memorizing_backdoor, tmp_path, capsys, words, message):
    first = ["--model_path", memorizing_backdoor.checkpoint, "--num_sequences", 5, "--points", 3]
    places = ["--output_dir", tmp_path, "--grid_dir", tmp_path / "grids", "--data_dir", tmp_path / "data"]
    with pytest.raises(SystemExit) as end:
        in_process(SCRIPT, *first, *places, *words)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_figure_with_a_hole_and_one_that_is_flat():
    figure = plots.draw_landscapes([-1.0, 0.0, 1.0], {"hole": [[1.0, None, 2.0]] * 3, "flat": [[0.0] * 3] * 3})
    assert len(figure.axes) == 5  # two columns of surface and contours, the colour bar
    plots.draw_landscapes([-1.0, 0.0, 1.0], {"flat": [[1.0] * 3] * 3}).canvas.draw()
    with pytest.raises(UserError, match="finite"):
        plots.draw_landscapes([-1.0, 0.0, 1.0], {"nothing": [[None] * 3] * 3})
