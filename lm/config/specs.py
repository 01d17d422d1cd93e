"""Specs: functions by name, checked against their signatures."""

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
import importlib
import importlib.machinery
import importlib.util
import inspect
from pathlib import Path
import pkgutil
import re
import sys
from typing import Any

from ml_collections import config_dict

from lm.config import arguments as arguments_lib
from lm.config import hints as hints_lib
from lm.config import values
from lm.config.messages import ConfigError, did_you_mean, show
from lm.config.values import Config


def walk(tree: Config, key: str = '') -> Iterator[tuple[str, Config]]:
  """Yields `(dotted key, spec)` for every dict that has a `fn`."""
  if 'fn' in tree:
    yield key, tree
  for k, v in tree.items():
    if hints_lib.is_tree(v):
      yield from walk(v, f'{key}.{k}' if key else k)


def split(name: Any) -> tuple[str, str]:
  """Splits the name of a function into its module and its own name.

  Raises:
    ConfigError: it is none, or of the standard library.
  """
  word = r'[^\W\d]\w*'
  if not isinstance(name, str) or not re.fullmatch(
    rf'{word}(\.{word})*:{word}', name
  ):
    raise ConfigError(f'fn {show(name)} is not "package.module:function"')
  module, _, function = name.partition(':')
  if module.partition('.')[0] in sys.stdlib_module_names:
    # a config is data: it must not be able to call os:system
    raise ConfigError(f'fn {name}: the standard library is out of bounds')
  return module, function


def _find(module: str) -> Path | None:
  """Finds a module's source without importing it or its parents.

  Returns None where a module has no source; raises where there is no module.
  """
  top, *rest = module.split('.')
  name, where = top, None
  try:
    spec = importlib.util.find_spec(top)
  except ValueError:  # a module made by hand, in a notebook or a test
    return None
  for part in rest:
    if spec is None:
      break
    where = spec.submodule_search_locations or []
    name = f'{name}.{part}'
    spec = importlib.machinery.PathFinder.find_spec(name, where)
  if spec is None:
    # Only now: listing what is installed costs more than all of loading.
    known = [m.name for m in pkgutil.iter_modules(where)]
    last = name.rpartition('.')[2]
    raise ConfigError(
      f'fn {module}: no module {name}{did_you_mean(last, known)}'
    )
  found = spec.origin is not None and spec.origin.endswith('.py')
  return Path(str(spec.origin)) if found else None


def check_source(spec: Config) -> None:
  """Checks a spec against its function's source, without importing it.

  Errs on the side of silence: what source cannot tell, `build` checks later.

  Raises:
    ConfigError: for a module, function or parameter that is not there, or an
      argument of a wrong type.
  """
  name = spec['fn']
  module, function = split(name)
  nodes = [] if module in sys.modules else _source(module)
  if nodes:
    functions = {n.name: n for n in nodes if isinstance(n, ast.FunctionDef)}
    names = set(functions)
    for node in nodes:  # what other statements mention may define the name too
      if not isinstance(node, ast.FunctionDef):
        for x in ast.walk(node):
          names |= {str(getattr(x, k, '')) for k in ('id', 'name', 'asname')}
    if function not in names and not names & {'*', '__getattr__'}:
      _no_function(name, functions)
    node = functions.get(function)
    if node and not node.decorator_list and not node.args.kwarg:
      known = [x.arg for x in node.args.args + node.args.kwonlyargs]
      _check_names(name, set(spec) - {'fn'}, known)
  arguments_lib.check(name, _hints(module, function, nodes), _arguments(spec))


def hints(tree: Config) -> dict[str, Any]:
  """Finds the types of a spec's arguments, by name, without importing it.

  Args:
    tree: any dict of a config; what is no spec, or of no function, has none.
  """
  try:
    module, function = split(tree.get('fn'))
    nodes = [] if module in sys.modules else _source(module)
  except ConfigError:
    return {}
  return _hints(module, function, nodes)


def _hints(
  module: str, function: str, nodes: Iterable[ast.stmt]
) -> dict[str, Any]:
  """Finds the types of a function's parameters.

  Args:
    module: of the function.
    function: its name.
    nodes: the module's source, where it is not imported: only the words of
      plain types are understood there.
  """
  if module in sys.modules:
    fn = getattr(sys.modules[module], function, None)
    return arguments_lib.hints(fn) if callable(fn) else {}
  for node in nodes:
    if isinstance(node, ast.FunctionDef) and node.name == function:
      parameters = node.args.args + node.args.kwonlyargs
      return {x.arg: hints_lib.of_source(x.annotation) for x in parameters}
  return {}


def _source(module: str) -> list[ast.stmt]:
  """Parses a module's source; [] where there is none that can be read.

  Raises:
    ConfigError: there is no such module.
  """
  path = _find(module)
  if path is None:
    return []
  try:
    return ast.parse(path.read_bytes()).body
  except (SyntaxError, ValueError):
    return []


def _arguments(spec: Config) -> dict[str, Any]:
  return {k: v for k, v in spec.items() if k != 'fn'}


def _no_function(name: str, known: Iterable[str]) -> None:
  module, function = split(name)
  public = [k for k in known if not k.startswith('_')]
  raise ConfigError(
    f'fn {name}: {module} has no function {function}'
    f'{did_you_mean(function, public)}'
  )


def _check_names(name: str, given: Iterable[str], known: list[str]) -> None:
  for k in sorted(given):
    if k not in known:
      raise ConfigError(f'{name} has no parameter {k}{did_you_mean(k, known)}')


def resolve(name: str) -> Callable[..., Any]:
  """Imports `'package.module:function'` and returns the function.

  Raises:
    ConfigError: for a name that does not lead to a function, or whose module
      needs a package that is not installed.
  """
  module, function = split(name)
  try:
    found = importlib.import_module(module)
  except ModuleNotFoundError as error:
    if error.name and f'{module}.'.startswith(f'{error.name}.'):
      _find(module)  # raises, with a suggestion
    raise ConfigError(
      f'fn {name}: needs {error.name}, which is not installed'
    ) from error
  fn = getattr(found, function, None)
  if not callable(fn):
    _no_function(name, [k for k, v in vars(found).items() if callable(v)])
  assert callable(fn)
  return fn


def build(spec: Config, **kw: Any) -> Any:
  """Calls a spec's function with the spec's other keys and `kw`.

  Nested dicts arrive as plain dicts. A ValueError of the function, or a file
  that it does not find, is a user's mistake and becomes a ConfigError that
  names the function; any other exception passes as it is.

  Raises:
    ConfigError: for an unknown or missing argument, one given in both places,
      or a value that the function refuses.
  """
  arguments = values.plain(spec)
  if 'fn' not in arguments:
    raise ConfigError(f'a spec needs the key fn; it has {sorted(arguments)}')
  name = arguments.pop('fn')
  fn = resolve(name)
  both = sorted(arguments.keys() & kw.keys())
  if both:
    raise ConfigError(f'{name}: the program itself gives {both[0]}; remove it')
  given, arguments = arguments, arguments | kw
  parameters = inspect.signature(fn).parameters.values()
  named = [
    p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
  ]
  if not any(p.kind is p.VAR_KEYWORD for p in parameters):
    _check_names(name, arguments, [p.name for p in named])
  for p in named:
    if p.default is p.empty and p.name not in arguments:
      raise ConfigError(f'{name} needs {p.name}; add it to the spec')
  arguments_lib.check(name, arguments_lib.hints(fn), given)
  try:
    return fn(**arguments)
  except (ValueError, FileNotFoundError) as error:
    if hasattr(error, 'exit_code'):
      raise
    raise ConfigError(f'{name}: {error}') from error


def fill(c: Config, given: Mapping[str, Iterable[str]] | None = None) -> Config:
  """Adds the defaults of every spec's function, to store a config whole.

  A later change of a default in the code then does not change an old run.

  Args:
    c: a config.
    given: parameters that the program passes to `build` itself and that do not
      belong in the config, by the spec's key: `{'data': ('seed',)}`.

  Returns:
    A locked copy; filling it again changes nothing.

  Raises:
    ConfigError: where a default is no config value (a function, an array), or
      an argument has a wrong type.
  """

  def filled(tree: dict[str, Any], key: str) -> dict[str, Any]:
    if 'fn' in tree:
      skip = set((given or {}).get(key, ()))
      fn = resolve(tree['fn'])
      for p in inspect.signature(fn).parameters.values():
        if p.default is not p.empty and p.name not in skip:
          tree = {p.name: p.default} | tree
      try:
        types = arguments_lib.hints(fn)
        arguments_lib.check(tree['fn'], types, _arguments(tree))
      except ConfigError as error:
        raise ConfigError(f'{key}: {error}' if key else str(error)) from error
    return {
      k: filled(v, f'{key}.{k}' if key else k) if hints_lib.is_tree(v) else v
      for k, v in tree.items()
    }

  full = filled(values.plain(c), '')
  values.check(full)
  return config_dict.ConfigDict(full).lock()
