"""Names and sentences are the field's, so that a stranger can read them.

A failure means that a word of our own, or a sentence that has to be read twice,
came back. The list of words is that of the names that were given up.
"""

import ast
from pathlib import Path
import re

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ('lm', 'configs', 'tools', 'tests')
FILES = sorted(
  x
  for room in ROOMS
  for x in (ROOT / room).rglob('*.py')
  if x != Path(__file__).resolve()
)
PAGES = sorted(
  x
  for x in [*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md')]
  if '_build' not in x.parts and x.name != 'CHANGELOG.md'
)

# Public names, files, config keys and metrics that were given up.
GIVEN_UP = (
  'MOST_TOLD',
  'Sight',
  '_Diary',
  'attention_kernel',
  'both_ways',
  'chips.py',
  'chunks.py',
  'completion.py',
  'dense_layers',
  'diary',
  'early.py',
  'embed_std',
  'endpoint.py',
  'fetch_newest',
  'fidelity',
  'kernel_std',
  'labels.py',
  'leaves.py',
  'ordered.py',
  'ordered_step',
  'pins',
  'pins.py',
  'rope_share',
  'saved.py',
  'sights',
  'train_characters',
  'train_sentencepiece',
  'verdict',
  'writing.py',
  'zero_outputs',
)


def docstrings(tree: ast.AST):
  """Yields (line, docstring) of a module and all that it defines."""
  for node in ast.walk(tree):
    if isinstance(
      node,
      ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
    ):
      text = ast.get_docstring(node)
      if text:
        yield getattr(node, 'lineno', 1), text


@pytest.mark.parametrize('file', FILES, ids=lambda x: str(x.relative_to(ROOT)))
def test_docstrings_are_sentences(file):
  text = file.read_text(encoding='utf-8')
  bad = [
    f'line {line}: {doc.splitlines()[0]}'
    for line, doc in docstrings(ast.parse(text))
    if re.match(r'(What|Whether)\b', doc)
  ]
  assert not bad, bad
  lines = text.splitlines()
  slang = [
    n for n, x in enumerate(lines, 1) if re.search(r'\bas (of|for) `', x)
  ]
  assert not slang, f'write the sentence instead of "as of `x`": lines {slang}'


@pytest.mark.parametrize(
  'file', [*FILES, *PAGES], ids=lambda x: str(x.relative_to(ROOT))
)
def test_given_up_names_stay_away(file):
  text = file.read_text(encoding='utf-8')
  found = [
    name
    for name in GIVEN_UP
    if re.search(rf'(?<!\w){re.escape(name)}(?!\w)', text)
  ]
  assert not found, found
