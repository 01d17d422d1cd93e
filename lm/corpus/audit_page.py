"""The audit of a build for people: a page of HTML, and a dataset card."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.reporting import html, progress

PAGE, CARD = 'audit.html', 'card.md'

_ABOUT_REASONS = """<p class="soft">The first rule that a document breaks drops
it. Rules about one text come before duplicates: see the order of the stages in
the config. The witness of a duplicate is the earlier document that it is a
duplicate of.</p>"""
_ABOUT_CHANGES = """<p class="soft">How many documents a stage changed, and how
often. Of <code>contamination</code>, the name of a set counts its items that
were cut out, and <code>passages</code> the cuts.</p>"""
_ABOUT_EXAMPLES = """<p class="soft">Up to ten documents a rule, chosen by a
hash. The value is what broke the rule, the similarity to the witness, or the
number of the evaluation item. Personal data is masked.</p>"""


def write(folder: Path, audit: Mapping[str, Any], name: str) -> None:
  """Writes the page and the card.

  Args:
    folder: of the build.
    audit: see `audit.make`.
    name: of the build.

  Raises:
    errors.Storage: they cannot be written.
  """
  html.write(folder / PAGE, render(audit, name))
  (folder / CARD).write_text(card(audit, name), encoding='utf-8')


def render(audit: Mapping[str, Any], name: str) -> str:
  """Lays an audit out as a page of HTML."""
  sources = audit['sources']
  total = sum(x['documents'] for x in sources.values())
  kept = sum(x['kept']['documents'] for x in sources.values())
  read = sum(map(_bytes_read, sources.values()))
  body = f"""<h1>Audit of {html.text(name)}</h1>
<p class="soft">{total:,} documents read, {kept:,} kept ·
{progress.short(read)}B of text read</p>
<h2>Sources</h2>
{_sources(sources)}
<h2>Dropped, by reason</h2>
{_ABOUT_REASONS}
{_by_code(sources, _dropped, ('documents', 'bytes'))}
{_witnesses(audit['witnesses_dropped'])}
<h2>Changed</h2>
{_ABOUT_CHANGES}
{_by_code(sources, lambda x: x['changes'], ('documents', 'times'))}
<h2>Counted</h2>
{_by_code(sources, lambda x: x['counts'], ('documents', 'times'))}
<h2>Languages of what was kept</h2>
{_by_code(sources, lambda x: x['languages'], ('documents', 'bytes'))}
<h2>Lengths</h2>
<div class="grid">{_lengths(sources)}</div>
<h2>Not read as documents</h2>
{_by_code(sources, _left_out, ('times',))}
<h2>Examples</h2>
{_ABOUT_EXAMPLES}
{''.join(_examples(*x) for x in audit['examples'].items())}"""
  return html.page(f'Audit of {html.text(name)}', body)


def _sources(sources: Mapping[str, Any]) -> str:
  rows = []
  for name, x in sources.items():
    share = x['kept']['documents'] / max(1, x['documents'])
    tokens = sum(x['tokens'].values())
    rows.append(
      [
        f'{html.code(name)}<small>{html.text(x["licence"] or "")}</small>',
        f'{x["documents"]:,}',
        f'{x["kept"]["documents"]:,}',
        f'{share:.1%}',
        f'{_bytes_read(x):,}',
        f'{x["kept"]["bytes"]:,}',
        f'{tokens:,}',
      ]
    )
  head = ('source', 'documents', 'kept', '', 'bytes read', 'kept', 'tokens')
  return html.table(head, rows, 'numbers')


def _bytes_read(source: Mapping[str, Any]) -> int:
  """Returns the bytes of texts before any stage changed them."""
  return source.get('read', source).get('bytes', 0)


def _dropped(source: Mapping[str, Any]) -> Mapping[str, Any]:
  return source['dropped']


def _left_out(source: Mapping[str, Any]) -> Mapping[str, Any]:
  """Lists what could not be read, as the other counts are given."""
  usual = ('files', 'documents', 'bytes')
  read = source.get('read', {})
  return {x: {'times': n} for x, n in read.items() if x not in usual}


def _by_code(
  sources: Mapping[str, Any],
  select: Callable[[Mapping[str, Any]], Mapping[str, Any]],
  columns: Sequence[str],
) -> str:
  """Makes a table with a row a code, and its counts in all sources."""
  codes = sorted({code for x in sources.values() for code in select(x)})
  if not codes:
    return '<p>none</p>'
  rows = []
  for code in codes:
    found = {name: select(x).get(code) for name, x in sources.items()}
    totals = [sum(x[c] for x in found.values() if x) for c in columns]
    first = [f'{x[columns[0]]:,}' if x else '' for x in found.values()]
    rows.append([html.code(code), *(f'{x:,}' for x in totals), *first])
  head = ['', *columns, *(f'in {html.code(name)}' for name in sources)]
  return html.table(head, rows, 'numbers')


def _witnesses(counts: Mapping[str, int]) -> str:
  """Says how many duplicates have a witness that was dropped itself."""
  if not counts:
    return ''
  found = ', '.join(f'{html.code(x)} {n:,}' for x, n in counts.items())
  return f'<p>Dropped though the witness was dropped, too: {found}.</p>'


def _lengths(sources: Mapping[str, Any]) -> str:
  """Draws how many documents of each source have which length."""
  drawn = []
  for name, x in sources.items():
    powers = sorted({int(p) for y in x['lengths'].values() for p in y})
    bars = []
    for power in powers:
      counts = {r: y.get(str(power), 0) for r, y in x['lengths'].items()}
      kept = counts.pop('kept', 0)
      bars.append((progress.short(power), kept, sum(counts.values())))
    drawn.append(
      f'<figure><figcaption>{html.code(name)}: documents by characters, '
      'from the number below the bar to its double; kept, and above it '
      f'dropped</figcaption>{_bars(bars)}</figure>'
    )
  return ''.join(drawn)


def _bars(bars: Sequence[tuple[str, int, int]]) -> str:
  """Draws bars of two counts, one on the other.

  It writes SVG itself: to load matplotlib and draw a figure takes a second and
  50 MB, which is as much as the rest of a small build.

  Args:
    bars: (label, count of the lower part, count of the upper part).
  """
  most = max([1, *(a + b for _, a, b in bars)])
  step, height = 20, 110  # of a bar with its gap, and of the highest one
  drawn = []
  for n, (label, *counts) in enumerate(bars):
    x, y = n * step, float(height)
    said = f'{label}: {counts[0]:,} kept, {counts[1]:,} dropped'
    drawn.append(f'<g><title>{html.text(said)}</title>')
    for colour, count in enumerate(counts):
      size = height * count / most
      y -= size
      drawn.append(
        f'<rect x="{x}" y="{y:.2f}" width="{step - 4}" height="{size:.2f}" '
        f'fill="var(--c{colour})"/>'
      )
    drawn.append(
      f'<text x="{x + step / 2 - 2}" y="{height + 10}" text-anchor="middle" '
      f'font-size="7" fill="currentColor">{html.text(label)}</text></g>'
    )
  return (
    f'<svg viewBox="0 -10 {max(260, len(bars) * step)} {height + 25}" '
    f'role="img"><text y="-3" font-size="7" fill="currentColor">most: '
    f'{most:,}</text>{"".join(drawn)}</svg>'
  )


def _examples(reason: str, listed: Iterable[Mapping[str, Any]]) -> str:
  rows = []
  for x in listed:
    value = html.number(x['value'])
    text = _excerpt(x['text'])
    if 'witness_text' in x:
      text += f'<small>witness: {_excerpt(x["witness_text"])}</small>'
    rows.append([html.code(x['source']), value, text])
  head = ('source', 'value', 'how the document begins')
  return f'<h3>{html.code(reason)}</h3>{html.table(head, rows)}'


def _excerpt(text: str) -> str:
  return html.text(' '.join(text.split()))


def card(audit: Mapping[str, Any], name: str) -> str:
  """Writes the card of a dataset: sources, licences and what was dropped."""
  lines = [f'# {name}', '', '## Sources', '']
  lines += [
    '| source | licence | about | documents | kept | bytes kept | tokens |',
    '|---|---|---|---:|---:|---:|---:|',
  ]
  for source, x in audit['sources'].items():
    cells = (
      source,
      x['licence'] or 'not stated',
      x['about'] or '',
      f'{x["documents"]:,}',
      f'{x["kept"]["documents"]:,}',
      f'{x["kept"]["bytes"]:,}',
      f'{sum(x["tokens"].values()):,}',
    )
    lines.append(f'| {" | ".join(map(_cell, cells))} |')
  for title, key, column in (
    ('Dropped', 'dropped', 'documents'),
    ('Changed', 'changes', 'documents'),
  ):
    lines += ['', f'## {title}', '']
    found: dict[str, dict[str, int]] = {}
    for source, x in audit['sources'].items():
      for code, counts in x[key].items():
        found.setdefault(code, {})[source] = counts[column]
    for code, counts in sorted(found.items()):
      said = ', '.join(f'{n:,} in {x}' for x, n in counts.items())
      lines.append(f'- {code}: {said}')
    if not found:
      lines.append('Nothing.')
  return '\n'.join([*lines, ''])


def _cell(text: str) -> str:
  """Makes a text fit for a cell of a table of Markdown."""
  return ' '.join(text.split()).replace('|', r'\|').replace('<', '&lt;')
