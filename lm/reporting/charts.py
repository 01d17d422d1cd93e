"""Pages with charts that work without a network: the door of plotly.

The library's script lies in the page. What a page shows is in one block of
JSON, which lm/reporting/charts.js draws and programs can read.
"""

from collections.abc import Mapping
from importlib import resources
from typing import Any

from plotly import offline

from lm.reporting import html

DATA = 'data'  # the id of the block of JSON


def page(title: str, body: str, data: Mapping[str, Any]) -> str:
  """Puts a body of HTML and the data of its charts into a page.

  Args:
    title: escaped.
    body: what is shown. An element with `data-chart` gets the chart of that
      number of `data['charts']`; see charts.js.
    data: of JSON.
  """
  folder = resources.files('lm.reporting')
  read = {
    name: folder.joinpath(name).read_text(encoding='utf-8')
    for name in ('charts.css', 'charts.js')
  }
  return html.page(
    title,
    f'{body}\n{html.json_block(DATA, data)}',
    style=read['charts.css'],
    scripts=(offline.get_plotlyjs(), read['charts.js']),
  )
