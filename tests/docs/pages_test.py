"""README and docs say what the code says, and stay short.

A failure means that a page promises something that is not there any more, or
that a table was not refreshed: run `python -m tools.docs`.
"""

import ast
from pathlib import Path
import re

import pytest

from lm import config
from tools.docs import __main__ as docs
from tools.docs import reference

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
  [
    *ROOT.glob('README*.md'),
    ROOT / 'CONTRIBUTING.md',
    *(ROOT / 'docs').glob('*.md'),
  ]
)
MOST_LINES, MOST_WORDS = 120, 900  # of README


def ids(path: Path) -> str:
  return path.name


def test_tables_and_figures_are_current():
  assert list(docs.stale()) == [], 'run python -m tools.docs'


def test_readme_is_short():
  text = (ROOT / 'README.md').read_text(encoding='utf-8')
  assert len(text.splitlines()) <= MOST_LINES
  assert len(text.split()) <= MOST_WORDS


def test_the_chinese_readme_is_a_twin():
  english, chinese = (
    (ROOT / name).read_text(encoding='utf-8')
    for name in ('README.md', 'README.zh.md')
  )

  def code(text: str) -> list[str]:
    blocks = re.findall(r'^```.*?^```', text, re.DOTALL | re.MULTILINE)
    return [re.sub(r' *#.*', '', block) for block in blocks]

  def shape(text: str) -> list[str]:
    return re.findall(r'^(#+) ', text, re.MULTILINE)

  def links(text: str) -> list[str]:
    return [x for x in re.findall(r'\]\(([^)]+)\)', text) if 'README' not in x]

  assert shape(chinese) == shape(english)
  assert code(chinese) == code(english)
  assert links(chinese) == links(english)
  for text in (english, chinese):
    place = docs.region(text, 'exit codes')
    assert place is not None
    codes = re.findall(r'`(\d+)`', text[slice(*place)])
    assert [int(x) for x in codes] == list(config.EXIT_CODES)


@pytest.mark.parametrize('page', PAGES, ids=ids)
def test_links_lead_somewhere(page):
  text = page.read_text(encoding='utf-8')
  targets = [
    *re.findall(r'\]\(([^)#]+)[^)]*\)', text),
    *re.findall(r'^```\{(?:image|literalinclude)\} (\S+)', text, re.MULTILINE),
  ]
  missing = [
    x for x in targets if '://' not in x and not (page.parent / x).exists()
  ]
  assert not missing, missing


def test_code_that_pages_include_is_there():
  found = 0
  for page in PAGES:
    text = page.read_text(encoding='utf-8')
    for name, options in re.findall(
      r'^```\{literalinclude\} (\S+)\n(.*?)^```', text, re.M | re.S
    ):
      code = (page.parent / name).read_text(encoding='utf-8')
      for mark in re.findall(r'^:(?:start|end)-\w+: "(.*)"$', options, re.M):
        assert code.count(f'\n{mark}') == 1, (page.name, mark)
        found += 1
  assert found


@pytest.mark.parametrize('page', PAGES, ids=ids)
def test_pages_have_plain_punctuation(page):
  text = page.read_text(encoding='utf-8')
  # Long dashes make long sentences.
  assert '\N{EM DASH}' not in text and '\N{EN DASH}' not in text


@pytest.mark.parametrize('page', PAGES, ids=ids)
def test_modules_and_files_that_pages_name_exist(page):
  text = page.read_text(encoding='utf-8')
  missing = []
  for name in re.findall(r'`((?:lm|tools|configs|tests)/[\w/.-]+)`', text):
    if not (ROOT / name).exists():
      missing.append(name)
  for name in re.findall(r'`((?:lm|tools)(?:\.\w+)+(?::\w+)?)', text):
    if not _exists(name):
      missing.append(name)
  assert not missing, missing


def _exists(name: str) -> bool:
  """Finds a module, or what a module defines, without importing it."""
  parts = re.split('[.:]', name)
  for n in range(len(parts), 0, -1):
    base = ROOT.joinpath(*parts[:n])
    file = base / '__init__.py' if base.is_dir() else base.with_suffix('.py')
    if file.exists():
      words = set(re.findall(r'\w+', file.read_text(encoding='utf-8')))
      return base.is_dir() or set(parts[n:]) <= words
  return False


def _fixed_texts() -> str:
  """Joins all strings of lm and tools, in which messages are looked for."""
  strings = []
  for folder in ('lm', 'tools'):
    for file in sorted((ROOT / folder).rglob('*.py')):
      tree = ast.parse(file.read_text(encoding='utf-8'))
      for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
          strings.append(' '.join(node.value.split()))
  return '\n'.join(strings)


def test_messages_of_troubleshooting_are_in_the_code():
  page = ROOT / 'docs' / 'troubleshooting.md'
  ours, mark, _ = page.read_text(encoding='utf-8').partition(
    '<!-- messages of others -->'
  )
  assert mark
  messages = re.findall(r'^### `(.*)`$', ours, re.MULTILINE)
  assert len(messages) > 30
  known, missing = _fixed_texts(), []
  for message in messages:
    parts = [x.strip(' :"') for x in re.split(r'<[^>]*>|^warning: ', message)]
    if not all(' '.join(x.split()) in known for x in parts):
      missing.append(message)
  assert not missing, missing


def test_docstrings_of_any_shape_become_reference_text():
  lines = [
    'Does `x`s and *more_ |bar|.',
    '',
    '  python -m lm.train --config=x',
    '',
    '- an item of **two**',
    '  lines',
    '',
    'Args:',
    '  a, b: folders of `c`',
    '    and more.',
    '',
    'Raises:',
    '  errors.Failure: always.',
  ]
  text = '\n'.join(reference.rst(lines))
  assert '\\ ``x``\\ s and \\*more\\_ \\|bar\\|.' in text
  assert '::\n\n    python -m lm.train --config=x\n' in text
  assert '- an item of \\ **two**\n  lines' in text
  assert '**Args**' in text and '  ``a, b``\n    folders of' in text
  assert '  ``errors.Failure``\n    always.' in text


def test_every_module_is_in_the_reference():
  rooms = reference.modules()
  assert {'programs', 'words', 'layers', 'data', 'checkpoint'} <= rooms.keys()
  assert 'lm.train' in rooms['programs'] and 'lm.types' in rooms['words']
  # A package with a door is shown by its door.
  assert rooms['config'] == ['lm.config']
  names = reference.documented()
  assert len(names) == len(set(names)) > 60
