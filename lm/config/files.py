"""Config files: loaded, overridden and checked.

A file is Python with `get_config()`, or the config.json that a run keeps.

The configs of this project travel with the package: `configs/gpt/tiny.py` is
found in a checkout and in an installed `lm` alike, from any current folder, and
so is the module `configs.base` that config files import.
"""

from collections.abc import Iterable, Mapping
import importlib.util
import inspect
from pathlib import Path
import sys
import traceback
import types
from typing import Any

from ml_collections import config_dict

from lm.config import (
  data_folder,
  hints,
  keys,
  sources,
  specs,
  untrusted,
  values,
)
from lm.config import overrides as overrides_lib
from lm.config.messages import ConfigError, did_you_mean
from lm.config.values import Config
from lm.runtime import regular_files

REQUIRED = ('seed', 'steps', 'batch_size', 'save_every')

_NAME = 'configs'
_LM = Path(__file__).resolve().parent.parent


def _own_folder() -> Path | None:
  """Finds our own configs: in the package, or beside it in a checkout."""
  for folder in (_LM / _NAME, _LM.parent / _NAME):
    if (folder / 'base.py').is_file():
      return folder
  return None


def find(path: str | Path) -> Path:
  """Finds a file among our own configs.

  Args:
    path: of a file or folder. It is returned as it is, unless it begins with
      `configs/` and there is nothing like it below the current folder.
  """
  path = Path(path)
  own = _own_folder()
  if path.parts[:1] != (_NAME,) or path.exists() or own is None:
    return path
  other = own.joinpath(*path.parts[1:])
  return other if other.exists() else path


def _offer_own_modules() -> None:
  """Lets config files import `configs.base` wherever our configs lie.

  A folder `configs` of the user's own is looked into before ours.
  """
  own = _own_folder()
  if own is None:
    return
  try:
    package = importlib.import_module(_NAME)
  except ModuleNotFoundError:
    package = types.ModuleType(_NAME)
    package.__path__ = []
    sys.modules[_NAME] = package
  if str(own) not in map(str, package.__path__):
    # Not `append`: the path of a namespace package is computed anew.
    package.__path__ = [*package.__path__, str(own)]


def _run(
  path: Path,
  argument: str | None,
  name: str = 'get_config',
  is_optional: bool = False,
) -> Any:
  """Runs a function of a config file; its exceptions become one line."""
  spec = importlib.util.spec_from_file_location('config_file', path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  _offer_own_modules()
  try:
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if function is None and is_optional:
      return None
    if not callable(function):
      raise ConfigError(f'{path}: defines no function {name}()')
    words = [] if argument is None else [argument]
    if words and not inspect.signature(function).parameters:
      if is_optional:
        return function()
      raise ConfigError(f'{path}: takes no word: leave out :{argument}')
    return function(*words)
  except ConfigError:
    raise
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [x.lineno for x in frames if Path(x.filename) == path.absolute()]
    if isinstance(error, SyntaxError) and error.filename == str(path):
      lines = [error.lineno]
    where = f'{path}:{lines[-1]}' if lines else str(path)
    # What a config refuses, it says itself.
    kind = '' if type(error) is ValueError else f'{type(error).__name__}: '
    raise ConfigError(f'{where}: {kind}{error}') from error


def _read(path: Path, is_build: bool) -> Config:
  named = untrusted.STAGES if is_build else untrusted.FACTORIES
  try:
    c = untrusted.read_untrusted(path.read_text(encoding='utf-8'), named)
  except (ConfigError, UnicodeDecodeError, OSError) as error:
    raise ConfigError(f'{path}: {error}') from error
  if not is_build:
    keys.complete(c)
  return c


def _file(path: str | Path) -> tuple[str, str | None, Path]:
  """Splits 'file.py:argument', and finds the file."""
  name, argument = str(path), None
  if not name.endswith('.py') and '.py:' in name:
    name, _, argument = name.rpartition(':')
  file = find(name)
  if file.suffix not in ('.py', '.json'):
    raise ConfigError(
      f'{name}: a config is a Python file, like configs/x.py, or a config.json'
    )
  if not file.is_file():
    folder = find(file.parent)
    near = [f'{file.parent}/{x.name}' for x in folder.glob(f'*{file.suffix}')]
    raise ConfigError(f'{name}: no such file{did_you_mean(name, near)}')
  return name, argument, file


def optional(path: str | Path, name: str) -> Any:
  """Calls a function that a config file may define beside `get_config`.

  Args:
    path: as in `load`; the argument of 'file.py:argument' is handed on if the
      function takes one.
    name: of the function, such as 'sweep'.

  Returns:
    What the function returns; None if there is none, as in JSON.

  Raises:
    ConfigError: one line that names the file.
  """
  _, argument, file = _file(path)
  if file.suffix != '.py':
    return None
  return _run(file, argument, name, is_optional=True)


def load(
  path: str | Path,
  overrides: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
  data: str | Path | None = None,
  required: Iterable[str] = REQUIRED,
  is_build: bool = False,
) -> Config:
  """Loads a config file and applies overrides, checked and locked.

  Args:
    path: a Python file that defines `get_config()`, 'file.py:argument' for
      `get_config('argument')`, or JSON as `values.to_json` writes it. Our own,
      such as 'configs/gpt/tiny.py', are found from any folder.
    overrides: `{'optim.peak': 3e-4}`, or pairs of such a key and its value, of
      which the last wins; a value may be text as a flag gives it.
    data: a folder of prepared data that the config shall read, see
      `data_folder`; None leaves its paths as they are.
    required: keys that the config must have; those of a run.
    is_build: whether it is for the data factory: JSON may then name stages in
      the place of parts of a run, and files anywhere.

  Raises:
    ConfigError: one line that names the file or the key.
  """
  name, argument, file = _file(path)
  c = _run(file, argument) if file.suffix == '.py' else _read(file, is_build)
  if not hints.is_tree(c):
    raise ConfigError(f'{name}: get_config() must return a ConfigDict')
  try:
    if not isinstance(c, config_dict.ConfigDict):
      values.check(c)
      c = config_dict.ConfigDict(c)
    _check_aliases(c)
    c.lock()
    given = {}
    if data is not None:
      with c.unlocked():
        data_folder.spread(c, data)
      given = data_folder.paths(c, data)
    given |= dict(overrides)
    for key, value in given.items():
      overrides_lib.override(c, key, value)
    if file.suffix == '.json' and not is_build:
      untrusted.check_files(c, file.parent, tuple(given))
    # references have done their work: overriding one changed what follows it
    c = c.copy_and_resolve_references().lock()
  except config_dict.RequiredValueError:
    raise ConfigError(
      f'{name}: a required_placeholder has no value; declare a default'
    ) from None
  for key in required:
    if key not in c:
      raise ConfigError(f'{name}: lacks the required key {key}')
  values.check(c)
  keys.check_known(c)
  for key, spec in specs.walk(c):
    try:
      sources.check_source(spec)
    except ConfigError as error:
      raise ConfigError(f'{key}: {error}') from error
  return c


def _check_aliases(c: Config) -> None:
  """Refuses a dict that stands at two places of a config.

  ml_collections keeps it one dict: who sets a key at one place would change the
  other without a word. What is shared on purpose is a reference, `get_ref`.
  """
  seen: dict[int, str] = {}

  def walk(tree: Config, key: str) -> None:
    if id(tree) in seen:
      raise ConfigError(
        f'{key}: is the same dict as {seen[id(tree)]}: make a new one for each'
      )
    seen[id(tree)] = key
    for name, value in tree.items(preserve_field_references=True):
      if isinstance(value, config_dict.ConfigDict):
        walk(value, f'{key}.{name}' if key else name)

  walk(c, '')


def store(c: Config, path: Path) -> None:
  """Writes a config so that a kill leaves the old one or the new one."""
  part = path.with_name(f'{path.name}.part')
  with regular_files.writing(path):
    part.write_text(values.to_json(c) + '\n')
    part.replace(path)
