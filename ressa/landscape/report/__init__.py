"""The report: one page that holds a sweep, needs no network, and may be kept fresh while it runs.

`gather` reads the store, `page` makes the page, `serving` shows it to this machine's browser.
"""

from ressa.landscape.report.gather import gather
from ressa.landscape.report.page import page, write_page
from ressa.landscape.report.serving import Served, serve

__all__ = ["Served", "gather", "page", "serve", "write_page"]
