"""The map: what a sweep found, as tables, in the terminal and as a picture.

matplotlib and scipy are imported when a picture is drawn, pandas when a table is made.
"""

from ressa.landscape.heatmap import heatmap
from ressa.landscape.picture import plot
from ressa.landscape.render import plain_table, render_table
from ressa.landscape.tables import About, failures, results_table

__all__ = ["About", "failures", "heatmap", "plain_table", "plot", "render_table", "results_table"]
