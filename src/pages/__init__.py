"""Pages: one self-contained HTML file each, with one style, that needs neither a server nor a network.

`side_by_side` shows what models write before and after an edit, `report` what a folder of records says, `leaderboard`
how methods compare. jinja2 and bokeh are imported when a page is made.
"""
