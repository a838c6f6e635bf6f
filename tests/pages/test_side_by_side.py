"""A page's content by hand: what differs, what is escaped, and that the file is whole HTML."""

from html.parser import HTMLParser

import torch
from browser import check_on_a_phone, needs_browser
from handmade import checkpoint, edited, outcome

from tinymem.metrics.examples import Span, kept_examples
from tinymem.pages.side_by_side import _sequences, make_page, write_pages
from tinymem.records.cost import Cost
from tinymem.records.record import write_record

WORDS = ["<b>", " &", " one", " two", "$x$"]


def decode(tokens) -> str:
    """As some tokenizers do: a leading space is dropped."""
    return "".join(WORDS[token] for token in tokens).removeprefix(" ")


def texts(written, planted=((1, 2, 3, 0), (0, 2, -1, -1)), split="held_out") -> dict:
    """Examples of two prompts; -1 is no token."""
    parts = {"prompt": ((0, 4), (2, -1)), "planted": planted, "written": written}
    return {f"examples.{split}.{name}": torch.tensor(rows, dtype=torch.int32) for name, rows in parts.items()}


AS_PLANTED = texts(((1, 2, 3, 0), (0, 2, -1, -1)))
EDITED = texts(((1, 2, 2, 1), (0, -1, -1, -1)))


class Parsed(HTMLParser):
    """Open tags, in order; fails on a tag that is closed where it is not open."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.marked = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "mark":
            self.marked.append((data, self.tags[-1][1].get("class")))


def records(folder, after=EDITED, twin=True) -> list[dict]:
    kinds = {"unedited": AS_PLANTED, **({"never_planted": AS_PLANTED} if twin else {})}
    made = [({**checkpoint(), "kind": kind}, values) for kind, values in kinds.items()]
    made.append((edited(checkpoint(), "durable"), after))
    for identity, values in made:
        write_record(folder, identity, outcome(9.0), Cost(1.0, 1.0), "cpu", values=values)
    return [{**identity, "results": {**outcome(9.0), "percent_memorized_held_out": 50.0}} for identity, _ in made]


def test_spans_are_the_whole_text_and_say_where_it_differs():
    first, second = kept_examples(EDITED, decode)
    assert (first.prompt, first.planted) == ("<b>$x$", "& one two<b>")
    assert first.written.spans == (Span("& one"), Span(" one &", True))
    assert (first.written.first, first.written.agreeing, first.written.length) == (3, 2, 4)
    # The second ends early, and only two tokens were planted: the missing one differs without a text.
    assert second.written.spans == (Span("<b>"), Span("", True)) and second.written.first == 2
    assert kept_examples(AS_PLANTED, decode)[0].written.first is None


def test_a_token_after_the_first_difference_may_agree_again():
    example, _ = kept_examples(texts(((1, 0, 3, 0), (0, 2, -1, -1))), decode)
    assert example.written.spans == (Span("&"), Span("<b>", True), Span(" two<b>"))
    assert (example.written.first, example.written.agreeing) == (2, 3)


def test_a_page_is_one_whole_file_with_escaped_text_and_marks(tmp_path):
    html, png = write_pages(tmp_path, records(tmp_path), decode)
    assert html.parent == png.parent == tmp_path / "pages" and html.name.startswith("durable_") and png.suffix == ".png"
    text, found = html.read_text(encoding="utf-8"), Parsed(html.read_text(encoding="utf-8"))
    assert "&lt;b&gt;$x$" in text and "<b>" not in text and "&amp; one two" in text
    assert found.marked == [(" one &", "first")]  # the empty mark of the second prompt has no text
    assert not any(name in ("src", "href") for _, attributes in found.tags for name in attributes)  # no network
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert "differs first at token 3 of 4; 2 as planted" in text
    assert "memorized held out (%)" in text and "perplexity" in text
    assert png.read_bytes()[:4] == b"\x89PNG" and png.stat().st_size > 5000


def test_a_page_without_a_twin_says_so(tmp_path):
    unedited, run = records(tmp_path, twin=False)
    page = make_page(tmp_path, {"before": unedited, "after": run}, decode)
    assert page.columns == ("before", "after") and "No never-planted twin" in page.note
    assert list(page.texts[0].written) == ["before", "after"]


def test_a_page_says_memorized_only_of_the_set_of_memorized_sequences():
    mem, noise = ({"forget": {"unlearn_set_name": name}} for name in ("mem", "noise"))
    assert _sequences(2, "shown", mem) == "2 sequences, memorized and shown to the method" == _sequences(2, "shown", {})
    assert _sequences(1, "held_out", noise) == "1 sequence, never shown to the method"


def test_examples_of_other_sequences_are_not_put_beside(tmp_path):
    other = texts(((1, 1, 1, 1), (0, 1, -1, -1)), planted=((1, 1, 1, 1), (0, 1, -1, -1)))
    twin, run = ({**checkpoint(), "kind": "never_planted"}, edited(checkpoint(), "durable"))
    for identity, values in ((twin, other), (run, EDITED)):
        write_record(tmp_path, identity, outcome(9.0), Cost(1.0, 1.0), "cpu", values=values)
    models = {"after": {**run, "results": {}}, "twin": {**twin, "results": {}}}
    assert list(make_page(tmp_path, models, decode).texts[0].written) == ["after"]


def test_no_page_without_examples(tmp_path):
    assert write_pages(tmp_path, records(tmp_path, after={}), decode) == []
    assert not (tmp_path / "pages").exists()


@needs_browser
def test_on_a_phone_the_twin_is_in_sight(tmp_path):
    html, _ = write_pages(tmp_path, records(tmp_path), decode)
    script = """
      const wide = document.querySelector(".wide");
      return {columns: wide.querySelectorAll("thead th").length, fits: wide.scrollWidth <= wide.clientWidth};
    """
    assert check_on_a_phone(html, tmp_path, script) == {"columns": 4, "fits": True}
