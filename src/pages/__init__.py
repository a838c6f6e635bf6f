"""Pages: self-contained HTML files in one style that need neither a server nor a network.

`side_by_side` shows what models write before and after an edit, `report` shows the results in a folder of records, and
`leaderboard` compares methods. jinja2 and bokeh are imported when a page is made.
"""
