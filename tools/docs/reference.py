"""Writes the pages of the API reference, and turns docstrings into reST.

Sphinx calls both from docs/conf.py. The modules are found by walking lm/, so
that a new one has its place in the reference without an edit here. Docstrings
are plain text with single backticks, sections such as `Args:` and indented
commands; everything else that reST would take for markup is escaped, so that no
docstring can break the build.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
import re
import shutil

ROOT = Path(__file__).resolve().parents[2]

# What no user of the package calls.
EXCLUDED = (
  'lm.runtime.faults',  # failures that tests plant
)
SECTIONS = ('Args', 'Attributes', 'Returns', 'Yields', 'Raises')
TITLES = {
  'programs': 'Programs',
  'words': 'Types and arithmetic',
}
_WORDS = ('types', 'tree', 'errors', 'metrics', 'loss', 'sharding')


def modules(root: Path = ROOT) -> dict[str, list[str]]:
  """Finds the modules of the reference.

  A package whose `__init__` has an `__all__` is shown by these names alone.

  Returns:
    Names of modules by room. `programs` and `words` are the files at the top.
  """
  rooms: dict[str, list[str]] = {'programs': [], 'words': []}
  doors: list[str] = []
  for path in sorted((root / 'lm').rglob('*.py')):
    parts = path.relative_to(root).with_suffix('').parts
    package = parts[-1] == '__init__'
    name = '.'.join(parts[:-1] if package else parts)
    if name == 'lm' or name in EXCLUDED:
      continue
    if any(name.startswith(f'{door}.') for door in doors):
      continue
    if package:
      text = path.read_text(encoding='utf-8')
      if not text.strip():
        continue
      if '__all__' in text:
        doors.append(name)
    if len(parts) == 2:
      room = 'words' if parts[1] in _WORDS else 'programs'
    else:
      room = parts[1]
    rooms.setdefault(room, []).append(name)
  return {k: v for k, v in rooms.items() if v}


def write(folder: Path, root: Path = ROOT) -> None:
  """Writes a page for each room into an empty folder."""
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  for room, names in modules(root).items():
    lines = [f'# {TITLES.get(room, f"lm.{room}")}', '']
    for name in names:
      lines += [
        f'## {name}',
        '',
        '```{eval-rst}',
        f'.. automodule:: {name}',
        '   :members:',
        '```',
        '',
      ]
    (folder / f'{room}.md').write_text('\n'.join(lines), encoding='utf-8')


def documented(root: Path = ROOT) -> list[str]:
  """Lists all modules of the reference."""
  return [name for names in modules(root).values() for name in names]


_ITEM = re.compile(r'\s*(- |\(?\d+[.)] )')


def inline(text: str) -> str:
  """Turns a line of a docstring into reST: `code` and **bold**, no more."""
  out = []
  for part in re.split(r'(``[^`]+``|`[^`]+`|\*\*[^*]+\*\*)', text):
    if part.startswith('`') and len(part) > 2:
      # The blanks are escaped: they separate, and are not shown.
      out.append(f'\\ ``{part.strip("`").strip()}``\\ ')
    elif part.startswith('**') and len(part) > 4:
      out.append(f'\\ **{_escape(part[2:-2].strip())}**\\ ')
    else:
      out.append(_escape(part))
  line = ''.join(out)
  line = re.sub(r'^\\ |\\ $', '', line)
  return line


def _escape(text: str) -> str:
  return re.sub(r'([\\*`|]|_(?!\w)|:(?=:$))', r'\\\1', text)


def _indent(line: str) -> int:
  return len(line) - len(line.lstrip(' '))


def _blocks(lines: Iterable[str]) -> Iterator[list[str]]:
  """Parts lines at blank ones, and where text starts or ends to be indented."""
  block: list[str] = []
  for line in [*lines, '']:
    deeper = bool(block) and bool(line.strip())
    deeper = deeper and (_indent(line) > 0) != (_indent(block[0]) > 0)
    deeper = deeper and not _ITEM.match(block[0])
    if block and (deeper or not line.strip()):
      yield block
      block = []
    if line.strip():
      block.append(line)


def _items(block: list[str]) -> list[str]:
  """Renders a list; what continues an item is laid under its text."""
  rows: list[str] = []
  for line in block:
    if match := _ITEM.match(line):
      rows += ['', f'- {inline(_number(match[1]) + line[match.end() :])}']
    else:
      rows.append(f'  {inline(line.strip())}')
  return rows


def _number(mark: str) -> str:
  return '' if mark == '- ' else mark


def _section(name: str, lines: list[str]) -> list[str]:
  """Renders a section such as `Args:` as a definition list, or as text."""
  rows = [f'**{name}**', '']
  body = [line for line in lines if line.strip()]
  if not body:
    return rows
  base = min(map(_indent, body))
  if name in ('Returns', 'Yields'):
    return [*rows, *(f'  {inline(line.strip())}' for line in body), '']
  for line in body:
    text = line.strip()
    match = re.match(r'([\w*`.,/ \[\]:-]+?): (.*)|([\w*.]+):$', text)
    if _indent(line) == base and match:
      term = (match[1] or match[3]).replace('`', '')
      rows += ['', f'  ``{term}``', f'    {inline(match[2] or "")}']
    else:
      # A line that names nothing belongs to the entry above, if there is one.
      entry = any(row.startswith('  ``') for row in rows)
      rows.append(f'{"    " if entry else "  "}{inline(text)}')
  return [*rows, '']


def rst(lines: Iterable[str]) -> list[str]:
  """Turns a docstring, already dedented, into reST."""
  body: list[str] = []
  sections: list[tuple[str, list[str]]] = []
  for line in lines:
    if re.fullmatch(rf'({"|".join(SECTIONS)}):', line):
      sections.append((line[:-1], []))
    elif sections and (not line.strip() or _indent(line)):
      sections[-1][1].append(line)
    else:
      body.append(line)
  rows: list[str] = []
  for block in _blocks(body):
    if _ITEM.match(block[0]):
      rows += _items(block)
    elif _indent(block[0]):
      rows += ['::', '', *(f'  {line}' for line in block)]
    else:
      rows += [inline(line) for line in block]
    rows.append('')
  for name, content in sections:
    rows += _section(name, content)
  return rows
