"""Collects the English text that every Python machine already holds.

  python -m tools.embedded_text --output data/embedded/raw

writes train.jsonl (about 95 %) and valid.jsonl. They hold the topics of `pydoc`
and the distinct docstrings of the standard library and of the installed numpy,
scipy and jax. Sources are parsed, never imported, and tests are skipped. The
hash of a text decides on its side. The same versions give the same files.

Exit codes: 0 done; 5 storage. An error is one line.
"""

import argparse
import ast
import collections
from collections.abc import Iterator, Sequence
import hashlib
import importlib.util
import json
from pathlib import Path
import sys
import sysconfig
import warnings

_PACKAGES = ('numpy', 'scipy', 'jax')
_SKIPPED = frozenset(
  ('test', 'tests', 'testing', 'idlelib', 'site-packages', '__pycache__')
)
_SHORTEST = 40  # characters; shorter docstrings are mostly names
_VALID_SHARE = 0.05


def sources() -> list[tuple[str, Path]]:
  """Lists (name, file) of the Python sources, sorted by name."""
  roots = [('python', Path(sysconfig.get_paths()['stdlib']))]
  for package in _PACKAGES:
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin:
      roots.append((package, Path(spec.origin).parent))
  files = [
    (f'{name}/{file.relative_to(root).as_posix()}', file)
    for name, root in roots
    for file in root.rglob('*.py')
  ]
  return sorted(
    (name, file)
    for name, file in files
    if not _SKIPPED & set(name.split('/')) and not file.name.startswith('test_')
  )


def texts(counts: collections.Counter[str]) -> Iterator[str]:
  """Yields distinct texts in the order of `sources`.

  Args:
    counts: files, and files that do not parse, are added here.
  """
  seen: set[str] = set()
  for name, file in sources():
    counts['files'] += 1
    try:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of sources that are not ours
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError):
      counts['files that cannot be parsed, left out'] += 1
      continue
    find = _topics if name.endswith('/topics.py') else _docs
    for text in map(str.strip, find(tree)):
      if len(text) > _SHORTEST and text not in seen:
        seen.add(text)
        yield text


def is_valid(text: str) -> bool:
  """Tells if a text is for validation."""
  digest = hashlib.sha256(text.encode()).digest()
  return int.from_bytes(digest[:8], 'big') < _VALID_SHARE * 2**64


def _docs(tree: ast.AST) -> Iterator[str]:
  documented = (
    ast.Module,
    ast.ClassDef,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
  )
  nodes: list[ast.AST] = [tree]
  while nodes:
    node = nodes.pop()
    if isinstance(node, documented) and (text := ast.get_docstring(node)):
      yield text
    # Only statements hold definitions, and most nodes are expressions.
    for key in ('finalbody', 'orelse', 'handlers', 'body'):
      inner = getattr(node, key, None)
      if isinstance(inner, list):
        nodes.extend(reversed(inner))


def _topics(tree: ast.AST) -> Iterator[str]:
  """Yields the values of the dictionary in `pydoc_data/topics.py`."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Dict):
      for value in node.values:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
          yield value.value


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns its exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--output', required=True, help='directory to write')
  output = Path(parser.parse_args(argv).output)
  counts: collections.Counter[str] = collections.Counter()
  try:
    output.mkdir(parents=True, exist_ok=True)
    with (
      open(output / 'train.jsonl', 'w', encoding='utf-8') as train,
      open(output / 'valid.jsonl', 'w', encoding='utf-8') as valid,
    ):
      for text in texts(counts):
        side = 'valid' if is_valid(text) else 'train'
        counts[f'{side} documents'] += 1
        counts[f'{side} bytes'] += len(text.encode())
        line = json.dumps({'text': text}, ensure_ascii=False)
        (valid if side == 'valid' else train).write(line + '\n')
  except OSError as e:
    print(f'error: {e.filename or output}: {e.strerror}', file=sys.stderr)
    return 5
  for word, count in sorted(counts.items()):
    print(f'  {count:>12,} {word}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
