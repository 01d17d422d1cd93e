"""The code stays small enough to be read: files, functions, rooms, core path.

A failure means that something grew past the size at which a reader gives up.
Split it. Where a split would make it worse, say why in `REASONS`, whose size
may only shrink.
"""

import ast
from pathlib import Path
import re

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / 'lm').rglob('*.py'))

MOST_TOP_FILES = 17
MOST_FILE_LINES = 450
MOST_FUNCTION_LINES = 60  # of code: no docstring, comment or blank line
MOST_PARAMETERS = 8
MOST_CORE_LINES = 8_000
MOST_REASONS = 14

# What is over a limit, and why it is better whole.
REASONS: dict[str, str] = {
  'lm/evals/classification.py:spans()': (
    'a config names it, and every parameter but one is a key of its spec'
  ),
  'lm/evals/generation.py:make()': (
    'a config names it, and every parameter but one is a key of its spec'
  ),
  'lm/evals/safety.py:bold()': (
    'a config names it, and every parameter but one is a key of its spec'
  ),
  'lm/models/decoder.py:make()': (
    'a config names it, and every setting of the model is one of its keys'
  ),
  'lm/models/encdec.py:make()': (
    'a config names it, and every setting of the model is one of its keys'
  ),
  'lm/models/encoder.py:make()': (
    'a config names it, and every setting of the model is one of its keys'
  ),
  'lm/models/recurrent.py:make()': (
    'a config names it, and every setting of the model is one of its keys'
  ),
  'lm/layers/attention.py:make()': (
    'a config names it, and its settings are keys beside `shared`'
  ),
  'lm/models/embeddings.py:glove()': (
    'a config names it, and every setting of the fit is one of its keys'
  ),
  'lm/data/finetuning/tasks.py:make()': (
    'a config names it, and its settings are keys beside what a run gives'
  ),
  'lm/data/stream.py:make()': (
    'a config names it, and its settings are keys beside what a run gives'
  ),
  'lm/optim/optimizers.py:make': (
    'the chain of transformations is read best in one piece, in its order'
  ),
  'lm/optim/optimizers.py:make()': (
    'a config names it, and every setting that optimizers share is a key'
  ),
  'lm/optim/rules.py:muon()': (
    'a config names it, and every setting of the rule is one of its keys'
  ),
}


def functions(tree: ast.AST, prefix: str = ''):
  """Yields (qualified name, node) of every function, nested ones included."""
  for node in ast.iter_child_nodes(tree):
    name = prefix
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
      name = f'{prefix}.{node.name}'.strip('.')
      if not isinstance(node, ast.ClassDef):
        yield name, node
    yield from functions(node, name)


def code_lines(node: ast.AST, lines: list[str]) -> int:
  """Counts the lines of a function that are code."""
  skipped = set()
  for inner in ast.walk(node):
    if isinstance(
      inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    ) and ast.get_docstring(inner, clean=False):
      doc = inner.body[0]
      skipped.update(range(doc.lineno, (doc.end_lineno or doc.lineno) + 1))
  assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
  assert node.end_lineno is not None
  return sum(
    n not in skipped and bool(re.match(r'\s*[^\s#]', lines[n - 1]))
    for n in range(node.lineno, node.end_lineno + 1)
  )


def over_the_limits() -> dict[str, str]:
  """Lists what is over a limit, by the name that `REASONS` uses."""
  found = {}
  for file in FILES:
    text = file.read_text(encoding='utf-8')
    name, lines = str(file.relative_to(ROOT)), text.splitlines()
    if len(lines) > MOST_FILE_LINES:
      found[name] = f'{len(lines)} lines'
    for function, node in functions(ast.parse(text)):
      count = code_lines(node, lines)
      if count > MOST_FUNCTION_LINES:
        found[f'{name}:{function}'] = f'{count} lines of code'
      a = node.args
      parameters = [*a.posonlyargs, *a.args, *a.kwonlyargs]
      parameters = [x for x in parameters if x.arg not in ('self', 'cls')]
      if len(parameters) > MOST_PARAMETERS:
        found[f'{name}:{function}()'] = f'{len(parameters)} parameters'
  return found


def test_what_is_large_has_a_reason():
  over = over_the_limits()
  without = {k: v for k, v in over.items() if k not in REASONS}
  assert not without, f'split these, or say in REASONS why not: {without}'
  stale = sorted(REASONS.keys() - over.keys())
  assert not stale, f'within the limits now, so remove the reason: {stale}'
  assert len(REASONS) <= MOST_REASONS, 'the list may only shrink'
  assert all(len(reason.split()) >= 4 for reason in REASONS.values())


def test_the_top_of_the_package_is_programs_and_words():
  top = [x.name for x in FILES if x.parent == ROOT / 'lm']
  assert len(top) <= MOST_TOP_FILES, top


def test_imports_have_no_circle():
  graph = grimp.build_graph('lm', cache_dir=None)
  left = {
    m: set(graph.find_modules_directly_imported_by(m)) for m in graph.modules
  }
  while free := [m for m, needs in left.items() if not needs & left.keys()]:
    for module in free:
      del left[module]
  # What remains takes part in a circle or imports something that does.
  circle = {m: sorted(needs & left.keys()) for m, needs in left.items()}
  assert not circle, circle


def core_path() -> list[str]:
  """Reads the core path, in reading order, from docs/architecture.md."""
  text = (ROOT / 'docs' / 'architecture.md').read_text(encoding='utf-8')
  _, _, part = text.partition('<!-- core path -->')
  part, end, _ = part.partition('<!-- end of core path -->')
  assert end, 'docs/architecture.md: the core path has no end mark'
  return re.findall(r'`(lm/[\w/]+\.py)`', part)


def test_the_core_path_can_be_read_in_an_afternoon():
  files = core_path()
  assert len(files) > 20 and len(files) == len(set(files))
  lines = {
    name: len((ROOT / name).read_text(encoding='utf-8').splitlines())
    for name in files
  }
  total = sum(lines.values())
  assert total < MOST_CORE_LINES, f'{total} lines: {lines}'


@pytest.mark.parametrize(
  ('source', 'lines'),
  [
    ('def f():\n  """Doc\n\n  more."""\n  # why\n\n  return 1\n', 2),
    ('def f(\n  a,\n):\n  return a\n', 4),
  ],
)
def test_only_code_counts(source, lines):
  ((_, node),) = functions(ast.parse(source))
  assert code_lines(node, source.splitlines()) == lines
