"""Writes the tables and figures of the documentation that come from the code.

  python -m tools.docs            refreshes them
  python -m tools.docs --check    lists what is out of date, and changes nothing

A table stands between two comments, `<!-- NAME -->` and `<!-- end of NAME -->`:

  core path, reading order   the last cell of a row is the number of lines of
                             the files that the row names
  exit codes                 those of lm.config, as a table or a sentence
  imports                    which room of lm/ imports which

Counts of lines may be off by a tenth before `--check` complains, so that not
every change of the code needs a change of its documentation.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
import re
import sys
import textwrap

from lm import config
from tools.docs import figures, rooms

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
  'README.md',
  'README.zh.md',
  'docs/architecture.md',
  'docs/troubleshooting.md',
)
_FILE = re.compile(r'`(lm/[\w/]+\.py)`')
_SLACK = 0.1


def region(text: str, name: str) -> tuple[int, int] | None:
  """Finds the text between the two marks of a name, None if it has none."""
  start, end = f'<!-- {name} -->\n', f'<!-- end of {name} -->'
  if start not in text:
    return None
  first = text.index(start) + len(start)
  return first, text.index(end, first)


def count(root: Path, name: str) -> int:
  """Counts the lines of a file."""
  return len((root / name).read_text(encoding='utf-8').splitlines())


def with_counts(text: str, root: Path, *, slack: float = 0.0) -> str:
  """Fills the last cell of each row that names files, and of a total.

  A row without files whose first cell is bold is the total of all above it.

  Args:
    text: a region, with tables in it.
    root: folder of the repository.
    slack: a count that is off by no more than this part of it is left.
  """
  total, rows = 0, []
  for row in text.split('\n'):
    names = _FILE.findall(row)
    sums = row.startswith('| **')
    if row.startswith('|') and (names or sums):
      lines = total if sums else sum(count(root, name) for name in names)
      total += 0 if sums else lines
      head, last, _ = row.rsplit('|', 2)
      known = re.sub(r'\D', '', last)
      if not known or abs(int(known) - lines) > slack * lines:
        row = f'{head}| {lines:,} |'
    rows.append(row)
  return '\n'.join(rows)


def exit_codes_line() -> str:
  """Lists the exit codes in a sentence, for the README."""
  parts = [f'`{code}` {text}' for code, text in config.EXIT_CODES.items()]
  return textwrap.fill('; '.join(parts) + '.', 110) + '\n'


def exit_codes() -> str:
  """Makes a table of the exit codes."""
  rows = [f'| {code} | {text} |' for code, text in config.EXIT_CODES.items()]
  return '\n'.join(['| code | meaning |', '|---|---|', *rows, ''])


def imports(root: Path) -> str:
  """Makes a table of the rooms and what they import, the highest first."""
  graph, names = rooms.edges(root), rooms.rooms(root)
  titles = {
    room: f'`{room}/`' if found == [room] else room
    for room, found in names.items()
  }
  rows = [
    f'| {titles[room]} | '
    f'{", ".join(titles[x] for x in sorted(graph[room])) or "nothing"} |'
    for floor in reversed(rooms.floors(graph))
    for room in floor
  ]
  return '\n'.join(['| room | imports |', '|---|---|', *rows, ''])


def refreshed(page: str, text: str, root: Path, *, slack: float = 0.0) -> str:
  """Returns a page with its tables as they should be."""
  for name in ('core path', 'reading order', 'exit codes', 'imports'):
    place = region(text, name)
    if place is None:
      continue
    first, end = place
    if name == 'exit codes':
      if page.endswith('.zh.md'):
        continue  # written by hand; a test compares the codes
      new = exit_codes_line() if page == 'README.md' else exit_codes()
    elif name == 'imports':
      new = imports(root)
    else:
      new = with_counts(text[first:end], root, slack=slack)
    text = text[:first] + new + text[end:]
  return text


def stale(root: Path = ROOT) -> Iterator[str]:
  """Yields the pages and figures that are out of date."""
  for page in PAGES:
    text = (root / page).read_text(encoding='utf-8')
    if refreshed(page, text, root, slack=_SLACK) != text:
      yield page
  for path, (_, data) in _figures(root).items():
    if figures.shown(path) != data:
      yield str(path.relative_to(root))


def _figures(root: Path):
  """Lists the figures: path -> how each is drawn, and the data it shows."""
  images = root / 'docs' / 'images'
  return {
    images / 'rooms.svg': (
      figures.draw_rooms,
      figures.rooms_data(rooms.edges(root)),
    ),
    images / 'checkpoint.svg': (
      figures.draw_checkpoint,
      figures.checkpoint_data(),
    ),
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns 1 where `--check` finds something to refresh."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.docs',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--check', action='store_true', help='change nothing')
  if parser.parse_args(argv).check:
    old = list(stale())
    for name in old:
      print(f'{name}: out of date: run python -m tools.docs')
    return 1 if old else 0
  for page in PAGES:
    text = (ROOT / page).read_text(encoding='utf-8')
    new = refreshed(page, text, ROOT)
    if new != text:
      (ROOT / page).write_text(new, encoding='utf-8')
      print(page)
  for path, (draw, _) in _figures(ROOT).items():
    old = path.read_bytes() if path.exists() else b''
    draw(path)
    if path.read_bytes() != old:
      print(path.relative_to(ROOT))
  return 0


if __name__ == '__main__':
  sys.exit(main())
