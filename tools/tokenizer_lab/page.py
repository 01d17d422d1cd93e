"""Lays what was measured of tokenizers out as tables and as a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from lm.reporting import charts, html, metrics_log

# Columns of the table: keys of a row, and what a reader sees.
COLUMNS = {
  'language': 'text',
  'tokenizer': 'tokenizer',
  'tokens_per_word': 'tokens/word',
  'tokens_per_character': 'tokens/char',
  'tokens_per_sentence': 'tokens/line',
  'premium': 'premium',
  'bytes_per_token': 'bytes/token',
  'bits_per_byte': 'bits/byte',
  'split_words': 'split',
  'fallback': 'fallback',
  'used': 'used',
  'lost_bytes': 'lost',
}
GLITCHES = {
  'unreachable': 'unreachable',
  'partial': 'partial UTF-8',
  'never': 'never seen',
  'hardly': 'hardly seen',
  'special_like': 'look special',
}
_NEAREST = 'nearest to the vectors of untrained ids (distance)'
_SHARES = ('split_words', 'fallback', 'used')
_EXAMPLES = 8  # pieces of each kind on the terminal
_MORE_EXAMPLES = 40  # and on the page

_ABOUT = """<p class="soft">A line is a sentence. <b>premium</b>: tokens, by
those of the translation into {base} (Petrov et al. 2023); 1 is fair.
<b>bits/byte</b>: of an adaptive code of single tokens, which pays for its
vocabulary; left out where text is lost, as it would then be that of less text.
<b>split</b>: words that several tokens spell, where words are written apart.
<b>fallback</b>: tokens that are unknown or a part of a character. <b>used</b>:
pieces that occur. <b>lost</b>: bytes of text that do not come back.</p>"""
_ABOUT_GLITCHES = """<p class="soft">Pieces that a model hardly learns (Land and
Bartolo 2024). A piece is listed under the first kind that holds. Unreachable:
its own text is encoded otherwise. Partial: it begins or ends inside a
character. Never and hardly seen: {seen}. Beside that, pieces of ordinary text
that look like special tokens.</p>"""


def table(report: Mapping[str, Any]) -> str:
  """Lays a report out for a terminal."""
  lines = [_table(report['rows'], COLUMNS), '']
  for row in report['rows']:
    if row['lost'] is not None:
      before, after = map(repr, row['lost'])
      lines.append(
        f'{row["tokenizer"]}, {row["language"]}: loses {before}, gives {after}'
      )
  glitches = [
    {
      'tokenizer': x['tokenizer'],
      'ids': x['ids'],
      **{GLITCHES[k]: len(x[k]) for k in GLITCHES},
    }
    for x in report['glitches']
  ]
  lines += ['', _seen(report), '']
  lines.append(metrics_log.table(glitches, list(glitches[0])))
  for x in report['glitches']:
    lines += ['', x['tokenizer']]
    scripts = [f'{k} {a}/{b}' for k, (a, b) in x['scripts'].items()]
    lines.append(f'  used by script: {", ".join(html.few(scripts, 12))}')
    for kind, title in GLITCHES.items():
      if x[kind]:
        shown = [repr(piece['piece']) for piece in x[kind]]
        lines.append(f'  {title}: {" ".join(html.few(shown, _EXAMPLES))}')
    if x['nearest']:
      shown = [_near(piece) for piece in x['nearest']]
      lines.append(f'  {_NEAREST}: {" ".join(html.few(shown, 20))}')
  return '\n'.join(lines)


def render(report: Mapping[str, Any]) -> str:
  """Lays a report out as a page of HTML."""
  rows = report['rows']
  names = list(dict.fromkeys(row['tokenizer'] for row in rows))
  title = f'{html.count(len(names), "tokenizer")}'
  languages = list(dict.fromkeys(row['language'] for row in rows))
  title += f', {html.count(len(languages), "text")}'
  place, drawn = _premiums(report, names)
  body = f"""<h1>Tokenizers: {title}</h1>
{place}
<h2>By text</h2>
{_ABOUT.format(base=html.text(report['base'] or 'English'))}
{html.table(COLUMNS.values(), [_cells(row) for row in rows], 'numbers')}
<h2>What is lost</h2>
{_losses(rows)}
<h2>Use of the vocabulary</h2>
{_scripts(report)}
<h2>Pieces that are hardly learnt</h2>
{_ABOUT_GLITCHES.format(seen=html.text(_seen(report)))}
{_glitches(report)}"""
  return charts.page(f'Tokenizers: {title}', body, {'charts': drawn})


def _table(
  rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]
) -> str:
  shown = [
    {title: _plain(key, row[key]) for key, title in columns.items()}
    for row in rows
  ]
  return metrics_log.table(shown, list(columns.values()))


def _near(entry: Mapping[str, Any]) -> str:
  return f'{entry["piece"]!r} ({entry["distance"]:.2f})'


def _plain(key: str, value: Any) -> Any:
  return round(value, 4) if key in _SHARES and value is not None else value


def _seen(report: Mapping[str, Any]) -> str:
  where = 'training texts' if report['trained'] else 'texts above'
  return (
    f'never in, or at most {report["rare"]} times in, the'
    f' {report["bytes"]:,} bytes of the {where}'
  )


def _cells(row: Mapping[str, Any]) -> list[str]:
  cells = []
  for key in COLUMNS:
    value = row[key]
    if key in ('tokenizer', 'language'):
      cells.append(html.text(value))
    elif key in _SHARES and value is not None:
      cells.append(f'{value:.1%}')
    else:
      cells.append(html.number(value))
  return cells


def _losses(rows: Sequence[Mapping[str, Any]]) -> str:
  lossy = [row for row in rows if row['lost'] is not None]
  if not lossy:
    return '<p>Nothing: every text comes back exactly.</p>'
  cells = [
    [
      html.text(row['tokenizer']),
      html.text(row['language']),
      html.number(row['lost_bytes']),
      *(html.code(repr(part)) for part in row['lost']),
    ]
    for row in lossy
  ]
  head = ['tokenizer', 'text', 'bytes', 'the first loss', 'comes back as']
  return html.table(head, cells)


def _scripts(report: Mapping[str, Any]) -> str:
  head = ['script', *(html.text(x['tokenizer']) for x in report['glitches'])]
  names = dict.fromkeys(
    name for x in report['glitches'] for name in x['scripts']
  )
  rows = []
  for name in names:
    row = [html.text(name)]
    for x in report['glitches']:
      used, total = x['scripts'].get(name, (0, 0))
      row.append(f'{used:,} of {total:,}' if total else '—')
    rows.append(row)
  return html.table(head, rows, 'numbers')


def _glitches(report: Mapping[str, Any]) -> str:
  head = ['tokenizer', 'ids', *GLITCHES.values()]
  rows = [
    [html.text(x['tokenizer']), html.number(x['ids'])]
    + [html.number(len(x[kind])) for kind in GLITCHES]
    for x in report['glitches']
  ]
  parts = [html.table(head, rows, 'numbers')]
  for x in report['glitches']:
    rows = []
    for kind, title in GLITCHES.items():
      if x[kind]:
        shown = [html.code(repr(piece['piece'])) for piece in x[kind]]
        rows.append([title, ' '.join(html.few(shown, _MORE_EXAMPLES))])
    if x['nearest']:
      shown = [html.code(_near(piece)) for piece in x['nearest']]
      rows.append([_NEAREST, ' '.join(html.few(shown, _MORE_EXAMPLES))])
    if rows:
      parts.append(f'<h3>{html.text(x["tokenizer"])}</h3>')
      parts.append(html.table(['kind', 'pieces'], rows))
  return '\n'.join(parts)


def _premiums(
  report: Mapping[str, Any], names: Sequence[str]
) -> tuple[str, list[dict[str, Any]]]:
  """Makes the place and the chart of the premiums of each language."""
  of = {(x['tokenizer'], x['language']): x['premium'] for x in report['rows']}
  languages = list(
    dict.fromkeys(
      x['language'] for x in report['rows'] if x['premium'] is not None
    )
  )
  if len(languages) < 2:
    return '', []
  keys = ''.join(
    f'<span class="key">{_sign(n)} {html.text(name)}</span>'
    for n, name in enumerate(names)
  )
  caption = f'Tokens, by those of {html.text(report["base"])}'
  series = [
    {'name': name, 'values': [of[name, x] for x in languages]} for name in names
  ]
  chart = {'kind': 'rows', 'rows': languages, 'series': series, 'line': 1}
  place = (
    f'<p>{keys}</p><figure><figcaption>{caption}</figcaption><div class="chart"'
    f' data-chart="0" role="img" aria-label="{caption}"></div></figure>'
  )
  return place, [chart]


def _sign(n: int) -> str:
  """Shows the mark of a tokenizer in its colour, as charts.js draws it."""
  mark = '●■▲◆▼✚'[n % 6]
  return f'<span style="color: var(--c{n % 6})">{mark}</span>'
