"""Hashes that say whether a stored evaluation result is still the right one.

A result depends on its task (the settings of the evaluator, and the files that
they name) and on the code that computed it. Both hashes stand in every line of
evals.jsonl; a checkpoint is evaluated again when one of them has changed.
"""

import ast
from collections.abc import Iterator, Mapping
import functools
import glob
import hashlib
from importlib import machinery, metadata, util
import json
from pathlib import Path
import sys
from typing import Any, NamedTuple

from lm import config
from lm.data import manifest

_INSTALLED = ('site-packages', 'dist-packages')  # Debian has a word of its own


class _Source(NamedTuple):
  """A module that is read as source.

  Attributes:
    digest: a hash of its syntax tree.
    imports: the full names of what it imports; some name no module.
  """

  digest: str
  imports: tuple[str, ...]


def task(spec: Mapping[str, Any]) -> str:
  """Hashes what an evaluator does: its settings, and the bytes of their files.

  The place of a file does not count, nor does `batch_size`, which changes
  nothing but speed. At a key that ends in `path` stands a file, a pattern or a
  folder, all of whose files count; elsewhere a text with a slash may be a file.
  Of a folder with a manifest, as token shards have, the `*.json` count, which
  contain the shards' hashes.
  """

  def content(value: Any, key: str = '') -> Any:
    if isinstance(value, Mapping):
      return {k: content(v, k) for k, v in value.items() if k != 'batch_size'}
    if isinstance(value, list | tuple):
      return [content(x, key) for x in value]
    if isinstance(value, str) and (key.endswith('path') or '/' in value):
      return _hashes(value, key.endswith('path')) or value
    return value

  text = json.dumps(content(spec), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _hashes(name: str, is_path: bool) -> list[str]:
  """Hashes the files that a text names, in the order of their paths.

  Args:
    name: the text.
    is_path: whether it is known to name files. Other texts are no patterns, and
      '/' is no reason to read a whole disk.
  """
  path = Path(name)
  found = [path]
  if path.is_dir():
    is_whole = is_path and not (path / manifest.NAME).is_file()
    found = list(path.rglob('*') if is_whole else path.glob('*.json'))
  elif is_path and not path.exists():
    found = [Path(x) for x in glob.glob(name, recursive=True)]
  return [
    hashlib.sha256(x.read_bytes()).hexdigest()
    for x in sorted(found)
    if x.is_file()
  ]


def code(spec: Mapping[str, Any]) -> str:
  """Hashes the code behind an evaluator.

  The hash covers every module that the functions named in the spec import,
  directly or through others, wherever the module lies. Only the syntax tree
  counts: comments, docstrings and layout do not. A package that is installed in
  site-packages counts by its name and version, unless it is that of a function
  of the spec: one's own may change without a new version. The standard library
  does not count.

  Args:
    spec: of the evaluator; specs inside it count too.

  Raises:
    config.ConfigError: a function's module has no source.
  """
  lines = sorted(f'{k} {v}' for k, v in modules(spec).items())
  return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def modules(spec: Mapping[str, Any]) -> dict[str, str]:
  """Lists what `code` hashes: a hash by module, a version by package.

  Raises:
    config.ConfigError: a function's module has no source.
  """
  result: dict[str, str] = {}
  pending = [name.partition(':')[0] for name in _functions(spec)]
  own = {module.partition('.')[0] for module in pending}
  for name in _functions(spec):
    module = name.partition(':')[0]
    if not _is_installed(module) and _read(module) is None:
      raise config.ConfigError(
        f'fn {name}: there is no source to hash: put the function in a file'
      )
  seen = set()
  while pending:
    module = pending.pop()
    parent, _, _ = module.rpartition('.')
    top, _, _ = module.partition('.')
    if module in seen or top in sys.stdlib_module_names:
      continue
    seen.add(module)
    is_own = top in own and _read(module) is not None
    if not is_own and _is_installed(module):
      result[top] = _version(top)
      continue
    # Importing a module runs the `__init__` of its packages first.
    pending += [parent] if parent else []
    if (source := _read(module)) is not None:
      result[module] = source.digest
      pending += source.imports
  return result


def _functions(value: Any) -> Iterator[str]:
  """Yields each `fn` of a spec and of the specs inside it."""
  if isinstance(value, Mapping):
    if isinstance(value.get('fn'), str):
      yield value['fn']
    for part in value.values():
      yield from _functions(part)


# Cached, as what a process has imported stays the same while it runs.
@functools.cache
def _find(module: str) -> machinery.ModuleSpec | None:
  """Finds a module without importing it or its packages."""
  parent, _, name = module.rpartition('.')
  try:
    if not parent:
      return util.find_spec(module)
    package = _find(parent)
    if package is None or package.submodule_search_locations is None:
      return None
    places = list(package.submodule_search_locations)
    try:
      return machinery.PathFinder.find_spec(module, places)
    except KeyError:
      # A folder without __init__.py, of whose package Python asks where it was
      # imported from. It was not.
      spec = machinery.ModuleSpec(module, None, is_package=True)
      spec.submodule_search_locations = [str(Path(x) / name) for x in places]
      return spec
  except ValueError:  # a module made by hand, as in a notebook
    return None


@functools.cache
def _is_installed(module: str) -> bool:
  """Tells whether a module lies in site-packages; never `lm` itself.

  `lm` counts by its source everywhere, so that an installed copy and a checkout
  of the same commit give the same hash.
  """
  parent, _, _ = module.rpartition('.')
  spec = None if module == 'lm' else _find(module)
  if spec is None:  # such as `Mesh` of `from jax.sharding import Mesh`
    return bool(parent) and _is_installed(parent)
  # A namespace package has no origin: each of its modules has a place.
  parts = Path(spec.origin or '').parts
  return module.partition('.')[0] != 'lm' and any(
    x in _INSTALLED for x in parts
  )


@functools.cache
def _version(top: str) -> str:
  """Names the distributions that a top-level package is from."""
  names = sorted({*_distributions().get(top, ())})
  return ' '.join(f'{name}=={metadata.version(name)}' for name in names)


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
  return metadata.packages_distributions()


@functools.cache
def _read(module: str) -> _Source | None:
  """Reads the source of a module; None where there is none."""
  spec = _find(module)
  if spec is None or spec.origin is None or not spec.origin.endswith('.py'):
    return None
  try:
    tree = ast.parse(Path(spec.origin).read_bytes())
  except (OSError, SyntaxError, ValueError):
    return None  # importing it says what is wrong
  is_package = spec.submodule_search_locations is not None
  package = module if is_package else module.rpartition('.')[0]
  digest = hashlib.sha256(_canonical(tree).encode()).hexdigest()
  return _Source(digest, tuple(_imports(tree, package)))


def _canonical(node: Any) -> str:
  """Writes a syntax tree down, the same for every version of Python.

  `ast.dump` would do, but versions differ in which empty fields they have.
  """
  if isinstance(node, list):
    return f'[{",".join(_canonical(x) for x in node if _does_something(x))}]'
  if not isinstance(node, ast.AST):
    return ascii(node)
  fields = [
    f'{name}={_canonical(value)}'
    for name, value in ast.iter_fields(node)
    if value is not None and value != []
  ]
  return f'{type(node).__name__}({",".join(fields)})'


def _imports(node: ast.AST, package: str) -> Iterator[str]:
  """Yields what a syntax tree imports, also inside its functions."""
  if isinstance(node, ast.Import):
    yield from (alias.name for alias in node.names)
  elif isinstance(node, ast.ImportFrom):
    base = node.module or ''
    if node.level:  # from . import x
      parts = package.split('.')
      parts = parts[: len(parts) - node.level + 1]
      base = '.'.join([*parts, base] if base else parts)
    yield base
    # `x` of `from package import x` may be a module.
    yield from (f'{base}.{alias.name}' for alias in node.names)
  elif _does_something(node):
    for child in ast.iter_child_nodes(node):
      yield from _imports(child, package)


def _does_something(node: Any) -> bool:
  """Tells docstrings, and what only type checkers read, from other code."""
  if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
    return not isinstance(node.value.value, str)
  if isinstance(node, ast.If):
    name = getattr(node.test, 'attr', getattr(node.test, 'id', ''))
    return name != 'TYPE_CHECKING'
  return True
