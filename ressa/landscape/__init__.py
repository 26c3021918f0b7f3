"""The map: what a sweep found, as tables, in the terminal and as a picture.

matplotlib is imported when a picture is drawn, scipy and scikit-learn when a map is fitted, pandas
when a table is made.
"""

from ressa.landscape.best import best_table
from ressa.landscape.compare import compare
from ressa.landscape.heatmap import heatmap
from ressa.landscape.lines import line_table
from ressa.landscape.order import orders, rank_correlation, repair_order
from ressa.landscape.render import json_lines, json_rows, latex_table, plain_table, render_table
from ressa.landscape.saving import plot
from ressa.landscape.standing import (
    SWEEP_COLUMNS,
    best_words,
    failures,
    short_row,
    sweep_row,
)
from ressa.landscape.tables import About, chosen, results_table
from ressa.landscape.together import results_of
from ressa.landscape.verdicts import (
    Allocated,
    Verdict,
    allocation_rows,
    confirmed,
    judge,
)

__all__ = [
    "SWEEP_COLUMNS",
    "About",
    "Allocated",
    "Verdict",
    "allocation_rows",
    "best_table",
    "best_words",
    "chosen",
    "compare",
    "confirmed",
    "failures",
    "heatmap",
    "json_lines",
    "json_rows",
    "judge",
    "latex_table",
    "line_table",
    "orders",
    "plain_table",
    "plot",
    "rank_correlation",
    "render_table",
    "repair_order",
    "results_of",
    "results_table",
    "short_row",
    "sweep_row",
]
