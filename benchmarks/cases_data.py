"""Building data."""

from __future__ import annotations

from functools import partial

from case import CONTEXT, Builder, Case, Sizes
from recipe import data as recipe

from tinymem.data.build import build_dataset
from tinymem.data.settings import DataSettings


def data_cases(sizes: Sizes) -> dict[str, Builder]:
    """Return name -> builder."""
    return {"building_data": partial(_building, sizes=sizes)}


def _building(sizes: Sizes) -> Case:
    extra, test = sizes.extra, sizes.extra // 3
    settings = DataSettings(num_7=sizes.main, num_2=extra, num_3=extra, num_4=extra, num_5=extra, num_test=test)
    rows = sizes.main + 4 * extra
    return Case(
        work=f"building {rows} sequences of numbers",
        variants={
            "recipe": partial(recipe.build, sizes.main, extra, test),
            "ours": partial(build_dataset, settings),
        },
        bytes=rows * CONTEXT,
        goal=100.0,
    )
