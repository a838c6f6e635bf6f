"""Loss landscapes of several models side by side, on one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tinymem.errors import UserError

Grid = Sequence[Sequence["float | None"]]
LEVELS = 14  # of the contours
TICKS = [mantissa * 10.0**power for power in range(-6, 7) for mantissa in (1, 2, 5)]
COLOURS = "viridis"  # its lightness rises monotonically, so it is readable in grey


def draw_landscapes(coordinates: Sequence[float], grids: Mapping[str, Grid]):
    """Draw surfaces above and contours below, one column per model. Height and colour are the logarithm of the loss.

    coordinates: those of the grid along either direction. grids: title -> losses in nats, [first direction][second];
    None (a loss that is not finite) leaves a hole. Return the figure. Raise UserError if no loss is finite.
    """
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    filled = {title: np.maximum(np.array(grid, dtype=float), TICKS[0]) for title, grid in grids.items()}
    known = np.concatenate([grid[np.isfinite(grid)] for grid in filled.values()])
    if not known.size:
        raise UserError("no loss on these grids is a finite number; a smaller --distance may help")
    norm = LogNorm(known.min(), max(known.max(), 1.01 * known.min()))
    figure = Figure(figsize=(4.0 * len(grids), 7.6), layout="constrained")
    flat = []
    for column, (title, grid) in enumerate(filled.items(), start=1):
        surface = figure.add_subplot(2, len(grids), column, projection="3d")
        _surface(surface, coordinates, grid, norm)
        surface.set_title(title, fontsize=11)
        flat.append(figure.add_subplot(2, len(grids), len(grids) + column))
        contours = _contours(flat[-1], coordinates, grid, norm)
    flat[0].set_ylabel("second direction")
    bar = figure.colorbar(contours, ax=flat, label="loss (nats per token)", ticks=_ticks(norm), shrink=0.9)
    bar.ax.minorticks_off()
    bar.ax.set_yticklabels([f"{tick:g}" for tick in _ticks(norm)])
    return figure


def _ticks(norm) -> list[float]:
    return [tick for tick in TICKS if norm.vmin <= tick <= norm.vmax]


def _surface(axis, coordinates, grid, norm) -> None:
    import numpy as np

    low, high = np.log10([norm.vmin, norm.vmax])
    x, y = np.meshgrid(coordinates, coordinates, indexing="ij")
    axis.plot_surface(
        x, y, np.log10(grid), cmap=COLOURS, vmin=low, vmax=high, rstride=1, cstride=1, linewidth=0.2, edgecolor="0.3"
    )
    axis.set_zticks(np.log10(_ticks(norm)), [f"{tick:g}" for tick in _ticks(norm)])
    axis.set(zlim=(low, high), xlabel="first direction", ylabel="second direction")
    ends = (coordinates[0], 0, coordinates[-1])
    axis.set(xticks=ends, yticks=ends)
    axis.set_zlabel("loss", labelpad=1)
    axis.tick_params(labelsize=8, pad=0)
    axis.view_init(elev=25, azim=-55)
    axis.set_box_aspect((1, 1, 0.8), zoom=0.88)


def _contours(axis, coordinates, grid, norm):
    import numpy as np

    levels = np.geomspace(norm.vmin, norm.vmax, LEVELS + 1)
    levels[[0, -1]] = norm.vmin * (1 - 1e-9), norm.vmax * (1 + 1e-9)  # otherwise rounding would exclude the extremes
    filled = axis.contourf(coordinates, coordinates, grid.T, levels, norm=norm, cmap=COLOURS)
    axis.contour(coordinates, coordinates, grid.T, levels, colors="black", linewidths=0.4)
    axis.plot(0, 0, "P", color="white", markeredgecolor="black", markersize=8)
    middle = grid[len(grid) // 2][len(grid) // 2]
    ends = (coordinates[0], 0, coordinates[-1])
    axis.set(xlabel="first direction", aspect="equal", xticks=ends, yticks=ends)
    axis.set_title(f"loss of the model itself: {middle:.3g}", fontsize=9)
    return filled
