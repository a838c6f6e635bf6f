from tinymem.cli.tables import fitted_table, table

ROWS = [
    {"method": "unedited", "percent_memorized_train": 98.0, "perplexity": 1.05},
    {"method": "good", "ratio": 0.1, "percent_memorized_train": 0.0, "perplexity": 1.5},
    {"method": "mild", "ratio": 0.01, "percent_memorized_train": 50.0, "perplexity": 1.1},
]
COLUMNS = ["method", "ratio", "absent", "percent_memorized_train", "perplexity"]
BETTER = {"percent_memorized_train": "lower", "perplexity": "lower"}


def test_the_best_of_each_column_is_marked_among_rivals_only():
    lines = fitted_table(ROWS, COLUMNS, BETTER, [False, True, True], width=80).splitlines()
    assert lines[0].split() == ["method", "ratio", "mem_train", "ppl"]
    assert [line.split() for line in lines[1:4]] == [
        ["unedited", "-", "98.0000", "1.0500"],
        ["good", "0.1000", "0.0000*", "1.5000"],
        ["mild", "0.0100", "50.0000", "1.1000*"],
    ]
    assert lines[4] == "* best in its column"
    assert len({line.rindex(".") for line in lines[1:4]}) == 1  # digits stay aligned


def test_equal_values_are_not_marked_and_equal_best_ones_all_are():
    same = [{"method": name, "percent_memorized_train": 0.0} for name in "ab"]
    assert "*" not in fitted_table(same, COLUMNS, BETTER, width=80).splitlines()[1]
    rows = [*same, {"method": "c", "percent_memorized_train": 1.0}]
    assert fitted_table(rows, COLUMNS, BETTER, width=80).count("*") == 2 + 1  # and the note


def test_columns_are_left_out_from_the_end_until_it_fits():
    text = fitted_table(ROWS, COLUMNS, BETTER, width=30)
    assert max(map(len, text.splitlines()[:4])) <= 30 and text.splitlines()[0].split() == [
        "method",
        "ratio",
        "mem_train",
    ]
    assert text.splitlines()[-1] == "left out: ppl (--columns all shows them)"
    assert fitted_table(ROWS, COLUMNS, BETTER, width=1).splitlines()[0].split() == ["method"]


def test_a_plain_table():
    assert table([{"a": 1, "b": 0.00001}, {"a": None, "b": "x"}]) == "a      b\n1  1e-05\n-      x"


def test_a_long_text_is_cut_before_a_column_is_left_out():
    rows = [{**row, "setting": "a setting of many words, one after the other, " * 3} for row in ROWS]
    columns = ["method", "setting", "percent_memorized_train", "perplexity"]
    lines = fitted_table(rows, columns, {}, width=80).splitlines()
    assert lines[0].split() == ["method", "setting", "mem_train", "ppl"] and max(map(len, lines)) <= 80
    assert " a setting of many words, one after th... " in lines[1]
    assert "..." not in fitted_table(rows, columns, {}, width=300)
