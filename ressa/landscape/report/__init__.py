"""The report: one page that holds a sweep, needs no network, and may be kept fresh while it runs.

`gather` reads the store (`gather_map` what a page of the map alone needs), `page` makes the page,
`serving` shows it to this machine's browser.
"""

from ressa.landscape.report.gather import gather, gather_map
from ressa.landscape.report.page import page, write_page
from ressa.landscape.report.serving import serve

__all__ = ["gather", "gather_map", "page", "serve", "write_page"]
