"""Specs: functions by name, checked against their signatures."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import importlib
import inspect
from typing import Any

from ml_collections import config_dict

from lm.config import arguments as arguments_lib
from lm.config import hints as hints_lib
from lm.config import sources, values
from lm.config.messages import ConfigError
from lm.config.values import Config


def walk(tree: Config, key: str = '') -> Iterator[tuple[str, Config]]:
  """Yields `(dotted key, spec)` for every dict that has a `fn`."""
  if 'fn' in tree:
    yield key, tree
  for k, v in tree.items():
    if hints_lib.is_tree(v):
      yield from walk(v, f'{key}.{k}' if key else k)


def resolve(name: str) -> Callable[..., Any]:
  """Imports `'package.module:function'` and returns the function.

  Raises:
    ConfigError: for a name that does not lead to a function, or whose module
      needs a package that is not installed.
  """
  module, function = sources.split(name)
  try:
    found = importlib.import_module(module)
  except ModuleNotFoundError as error:
    if error.name and f'{module}.'.startswith(f'{error.name}.'):
      sources.find(module)  # raises, with a suggestion
    raise ConfigError(
      f'fn {name}: needs {error.name}, which is not installed'
    ) from error
  fn = getattr(found, function, None)
  if not callable(fn):
    sources.no_function(
      name, [k for k, v in vars(found).items() if callable(v)]
    )
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
    sources.check_names(name, arguments, [p.name for p in named])
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
        arguments_lib.check(tree['fn'], types, sources.arguments(tree))
      except ConfigError as error:
        raise ConfigError(f'{key}: {error}' if key else str(error)) from error
    return {
      k: filled(v, f'{key}.{k}' if key else k) if hints_lib.is_tree(v) else v
      for k, v in tree.items()
    }

  full = filled(values.plain(c), '')
  values.check(full)
  return config_dict.ConfigDict(full).lock()
