"""Self-contained HTML pages: one file, no scripts, nothing loaded from elsewhere; light and dark, wide and narrow.

A page is made of `Markup`. Plain strings are text: they are escaped wherever they are put. Texts of our own are given
in the user's language already (`localise`); contents of files are given as they are.
"""

from glmtune.pages.charts import bar_chart
from glmtune.pages.markup import Markup, element, joined
from glmtune.pages.page import figures, note, page, section, table

__all__ = ["Markup", "bar_chart", "element", "figures", "joined", "note", "page", "section", "table"]
