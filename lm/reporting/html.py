"""Pages of HTML that load nothing: text, tables and figures in one file.

Styles, pictures and scripts lie in the page itself, and a policy in its head
keeps browsers from loading anything else, and from running a script that this
program did not put there. Names of runs and tasks are never trusted: `text`
and `json_block` escape them.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
import contextlib
import hashlib
import html
import json
import math
import os
from pathlib import Path
import re
from typing import Any

from lm import errors

_STYLE = """
:root { color-scheme: light dark; --page: light-dark(#fff, #14161a);
  --ink: light-dark(#1b1d22, #e6e8ec); --soft: light-dark(#5b616e, #a2a9b6);
  --rule: light-dark(#d9dce3, #363b45);
  --c0: light-dark(#0067b1, #5cb3f5); --c1: light-dark(#c44900, #ff9a5c);
  --c2: light-dark(#00795a, #45c9a0); --c3: light-dark(#a93c83, #ec8fc8);
  --c4: light-dark(#7a5c00, #dfbe4f); --c5: light-dark(#5a4fcf, #a99ff8); }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2.5rem 1.5rem 4rem;
  background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, 'Segoe UI', 'Noto Sans', sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .3rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; }
.soft, small { color: var(--soft); }
code { font: .86em/1.4 ui-monospace, 'DejaVu Sans Mono', monospace;
  unicode-bidi: isolate; overflow-wrap: anywhere; }
.hash { white-space: nowrap; }
.wide { overflow-x: auto; margin: .6rem 0 1rem; }
table { border-collapse: collapse; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .9rem .4rem 0; text-align: left; vertical-align: top; }
thead th { font-weight: 600; vertical-align: bottom;
  border-bottom: 2px solid var(--ink); }
tbody th { font-weight: 400; }
tbody tr > * { border-bottom: 1px solid var(--rule); }
.numbers td, .numbers thead th + th { text-align: right; white-space: nowrap; }
small { display: block; font-size: .8rem; font-weight: 400; }
.key { display: inline-block; margin-right: 1.2rem; }
figure { margin: 0; break-inside: avoid; }
figcaption { font-size: .88rem; font-weight: 600; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-family: inherit !important; }
.grid { display: grid; gap: 1.4rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); }
ul { font-size: .88rem; padding-left: 1.2rem; overflow-wrap: anywhere; }
@media print { :root { color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .wide { overflow: visible; } h2 { break-after: avoid; }
  tr { break-inside: avoid; } .grid { grid-template-columns: 1fr 1fr; } }
"""


def page(
  title: str, body: str, *, style: str = '', scripts: Sequence[str] = ()
) -> str:
  """Puts a body of HTML into a page.

  Args:
    title: escaped.
    body: what is shown.
    style: rules of CSS beside those of every page.
    scripts: the text of each script, which runs after the body is there. No
      other script runs.
  """
  # The hash of a script is that of its text as a browser reads it.
  codes = [
    f'\n{x}\n'.replace('\r\n', '\n').replace('\r', '\n') for x in scripts
  ]
  assert not any('</script' in x or '\0' in x for x in codes)
  policy = "default-src 'none'; style-src 'unsafe-inline'; "
  policy += "base-uri 'none'; form-action 'none'"
  if codes:
    # Charts draw heat maps as pictures that lie in their own address.
    policy += f'; img-src data: blob:; script-src {" ".join(map(_hash, codes))}'
  parts = ''.join(f'<script>{x}</script>\n' for x in codes)
  return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{_STYLE}{style}</style></head><body>
{body}
{parts}</body></html>
"""


def _hash(script: str) -> str:
  """Names a script in a policy; W3C, Content Security Policy 3, 2.3.1."""
  digest = hashlib.sha256(script.encode()).digest()
  return f"'sha256-{base64.b64encode(digest).decode()}'"


def json_block(name: str, value: Any) -> str:
  """Puts data into a page, for its scripts and for programs.

  Args:
    name: the id of the element.
    value: of JSON; numbers that are not finite become null.
  """
  text = json.dumps(_finite(value), separators=(',', ':'), allow_nan=False)
  # Nothing in a text may end the element, or begin a comment in it.
  for mark in '<>&':
    text = text.replace(mark, f'\\u{ord(mark):04x}')
  return f'<script type="application/json" id="{name}">{text}</script>'


def _finite(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {str(k): _finite(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def write(path: Path, content: str, flag: str = '--html') -> None:
  """Writes a page as a whole or not at all.

  Args:
    path: of the file.
    content: of the page.
    flag: that named the path, for the message.

  Raises:
    errors.Storage: it cannot be written there.
  """
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  try:
    with part.open('wb') as file:
      file.write(content.encode('utf-8', 'replace'))
      file.flush()
      os.fsync(file.fileno())
    part.replace(path)
  except OSError as error:
    raise errors.Storage(
      f'{flag}: {errors.refusal(error)}: give another file'
    ) from error
  finally:
    with contextlib.suppress(OSError):
      part.unlink(missing_ok=True)


def text(value: Any) -> str:
  """Escapes what others have named."""
  # Control characters could turn or hide a line.
  return html.escape(re.sub(r'[\x00-\x1f\x7f-\x9f]', '\ufffd', str(value)))


def code(value: Any) -> str:
  """Shows a name as code."""
  return f'<code>{text(value)}</code>'


def digest(value: str) -> str:
  """Shows the beginning of a hash."""
  return f'<code class="hash">{text(value[:12])}</code>'


def number(value: float | None) -> str:
  """Shows a number with four digits, or all digits of a whole one."""
  if value is None:
    return '—'
  whole = isinstance(value, int) or (value.is_integer() and abs(value) < 1e9)
  shown = f'{int(value):,}' if whole else f'{value:.4g}'
  return shown.replace('-', '−')


def count(n: int, noun: str) -> str:
  """Shows a number of things, such as '2 runs'."""
  return f'{n} {noun}{"" if n == 1 else "s"}'


def few(words: Sequence[str], most: int) -> list[str]:
  """Lists at most so many words, and how many more there are."""
  rest = len(words) - most
  return [*words[:most], *([f'and {rest} more'] if rest > 0 else [])]


def table(
  head: Iterable[str], rows: Iterable[Sequence[str]], kind: str = 'words'
) -> str:
  """Lays out a table of HTML; the first cell of a row is its heading.

  Args:
    head: of the columns.
    rows: as many cells each as there are columns.
    kind: 'numbers' aligns cells to the right.
  """
  top = ''.join(f'<th scope="col">{cell}</th>' for cell in head)
  lines = [
    f'<tr><th scope="row">{first}</th><td>{"</td><td>".join(rest)}</td></tr>\n'
    for first, *rest in rows
  ]
  return (
    f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead>\n'
    f'<tbody>{"".join(lines)}</tbody></table></div>'
  )
