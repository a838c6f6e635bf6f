import pytest
from known_rows import PAD, artifacts, free_run, known_in_part

from tinymem.errors import UserError
from tinymem.metrics.prefix import PREFIX_AREA, areas, exact_after, variant
from tinymem.metrics.probe import Probe


class Third:
    """Writes the token three places back, and 0 where there is none."""

    from torch import device

    device = device("cpu")

    def __call__(self, tokens, use_cache=False, logits_to_keep=0, **more):
        from torch.nn.functional import one_hot, pad

        return type("Output", (), {"logits": one_hot(pad(tokens, (2, 0))[:, :-2], 14).float()[:, -logits_to_keep:]})


def test_a_prefix_that_no_prompt_has_is_said(caplog):
    rows = artifacts([[9, 7, 8, 9, 7, 8, 9], [1, 0, 0, 1, 0, 0, 1]], [4, 3])
    exact_after(Probe(Third(), 3), rows, 4)
    assert not caplog.records
    exact_after(Probe(Third(), 3), rows, 5)
    (line,) = [record.message for record in caplog.records]
    assert line == "percent_memorized_prefix5: no prompt has so many tokens; the longest has 4"


def test_by_hand():
    # What follows is three places back, so that a prompt of 1 or 2 tokens is too short for the first row.
    rows = artifacts([[9, 7, 8, 9, 7, 8, 9], [1, 0, 0, 1, 0, 0, 1], [1, 2, 3, 4, 5, 6, 7]], [4, 3, 2])
    probe = Probe(Third(), 3)
    assert [exact_after(probe, rows, m)[0].item() for m in (1, 2, 3, 4)] == [0, 0, 1, 1]
    assert areas(probe, rows).tolist() == [pytest.approx(1 / 3), 0, 0]  # of 1, 2, 4; of 1, 2; of 1, 2
    assert exact_after(probe, rows, 3).isnan().tolist() == [False, False, True]  # the last prompt has two tokens
    assert exact_after(probe, rows, 99).isnan().all() and len(areas(probe, rows.select([]))) == 0


def test_against_free_running_generation_after_cut_prompts():
    probe, rows = known_in_part(30)
    probe.ignored_token = PAD
    found = {m: exact_after(probe, rows, m).tolist() for m in (1, 2, 4, 8)}
    area, seen = areas(probe, rows).tolist(), set()
    for number, end in enumerate(rows.prompt_end.tolist()[:-1]):
        wanted = rows.planted[number, end : end + probe.continuation].tolist()
        values = []
        for m in (1, 2, 4, 8):
            if m > end:
                assert found[m][number] != found[m][number]
                continue
            written = free_run(probe.model, rows.clean[number, end - m : end].tolist(), len(wanted))
            values.append(all(a == b or b == PAD for a, b in zip(written, wanted)))
            assert found[m][number] == values[-1]
        assert area[number] == pytest.approx(sum(values) / len(values))
        seen |= {*values}
    assert seen == {True, False} and area[-1] != area[-1]


def test_names():
    metric = variant("percent_memorized_prefix16")
    assert metric is variant("percent_memorized_prefix16") and metric.values.keywords == {"length": 16}
    assert "prefixes" in metric.needs and "prefixes" in PREFIX_AREA.needs
    assert variant("percent_memorized") is None and variant("percent_memorized_prefix") is None
    with pytest.raises(
        UserError, match="--metrics percent_memorized_prefix0: a prefix of 0 tokens; allowed: at least 1"
    ):
        variant("percent_memorized_prefix0")
