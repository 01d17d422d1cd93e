"""Figures of matplotlib in pages of HTML, in the colours of the page."""

import contextlib
import io
import re

import matplotlib
from matplotlib import figure

# Stand-ins that matplotlib draws with; `svg` puts the page's own colours there.
INK = '#0a0bff'  # the colour of text
COLOURS = tuple(f'#0a0b0{n}' for n in range(6))  # --c0 to --c5 of `html.page`


@contextlib.contextmanager
def style():
  """Sets what matplotlib must know before a figure of a page is drawn."""
  with matplotlib.rc_context(
    {
      'axes.formatter.useoffset': False,
      'svg.fonttype': 'none',  # text stays text: searched, in the page's font
      'svg.hashsalt': 'lm',  # equal figures give equal bytes
    }
  ):
    yield


def svg(drawn: figure.Figure, prefix: str) -> str:
  """Turns a figure into an element with the page's colours and font.

  Args:
    drawn: with the colours `INK` and `COLOURS`, under `style`.
    prefix: of the ids in the figure, another one for each figure of a page.
  """
  out = io.StringIO()
  drawn.savefig(out, format='svg', transparent=True)
  result = out.getvalue()
  result = result[result.index('<svg') :].strip()
  for old, new in (
    (r' xmlns(:xlink)?="[^"]*"', ''),  # HTML knows them
    (r'xlink:href', 'href'),
    (r'(?s)<metadata>.*?</metadata>', ''),
    (r'( id="|href="#|url\(#)', rf'\g<1>{prefix}'),  # each id once on a page
    (r'\s*\n\s*', ' '),
    (INK, 'currentColor'),
    *((colour, f'var(--c{n})') for n, colour in enumerate(COLOURS)),
  ):
    result = re.sub(old, new, result)
  return result
