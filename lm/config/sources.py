"""Functions by name, as their sources describe them, without an import."""

import ast
from collections.abc import Iterable
import importlib.machinery
import importlib.util
from pathlib import Path
import pkgutil
import re
import sys
from typing import Any

from lm.config import arguments as arguments_lib
from lm.config import hints as hints_lib
from lm.config.messages import ConfigError, did_you_mean, show
from lm.config.values import Config


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


def find(module: str) -> Path | None:
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
      no_function(name, functions)
    node = functions.get(function)
    if node and not node.decorator_list and not node.args.kwarg:
      known = [x.arg for x in node.args.args + node.args.kwonlyargs]
      check_names(name, set(spec) - {'fn'}, known)
  arguments_lib.check(name, _hints(module, function, nodes), arguments(spec))


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
  path = find(module)
  if path is None:
    return []
  try:
    return ast.parse(path.read_bytes()).body
  except (SyntaxError, ValueError):
    return []


def arguments(spec: Config) -> dict[str, Any]:
  """Copies the arguments that a spec gives to its function."""
  return {k: v for k, v in spec.items() if k != 'fn'}


def no_function(name: str, known: Iterable[str]) -> None:
  """Refuses the name of a function that its module does not have.

  Args:
    name: of the function.
    known: what the module has.

  Raises:
    ConfigError: always, with the nearest name.
  """
  module, function = split(name)
  public = [k for k in known if not k.startswith('_')]
  raise ConfigError(
    f'fn {name}: {module} has no function {function}'
    f'{did_you_mean(function, public)}'
  )


def check_names(name: str, given: Iterable[str], known: list[str]) -> None:
  """Checks that a function has the parameters that a spec gives.

  Raises:
    ConfigError: naming the first that it has not.
  """
  for k in sorted(given):
    if k not in known:
      raise ConfigError(f'{name} has no parameter {k}{did_you_mean(k, known)}')
