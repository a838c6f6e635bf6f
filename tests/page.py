"""A written page taken apart: tags, tables, charts."""

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path

VOID = ("meta", "input")


class Page(HTMLParser):
    """A page taken apart: open tags with their attributes, and the text of table cells, row by row."""

    def __init__(self, path: Path):
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags, self.open, self.rows, self.ids = [], [], [], []
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "table" in self.open and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip() + " "

    def charts(self) -> dict:
        """The charts by name, unpacked."""
        packed = re.search(r'id="charts">([^<]*)<', self.html)
        return json.loads(gzip.decompress(base64.b64decode(packed[1]))) if packed else {}


def points(chart: dict) -> dict[str, list]:
    """The data of a chart's series, by name: (x, y), without what marks are moved aside by."""
    found = {}
    text = json.dumps(chart)
    for start in re.finditer(r'"data": {"type": "map", "entries": ', text):
        columns = dict(json.JSONDecoder().raw_decode(text, start.end())[0])
        if columns.get("series"):
            found[columns["series"][0]] = list(zip(columns.get("place", columns["x"]), columns["y"]))
    return found
