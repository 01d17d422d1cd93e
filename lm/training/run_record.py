"""Records what a run was started from, so that it can be started again.

record.json in the folder of a run:

  {"starts": [{...}, ...], "patches": {sha256: text, ...}}

Each start of the run adds one, with the step that it began at: the command,
the config file and what flags changed in it, the seed, the fingerprints of its
data, the code, the versions of all packages, and the machine. `parent` is the
run that it started from, by `init_from`, `branch_from` or that run's
config.json, and what is another value in its config. `code` names the commit of
the repository that this package lies in, and that of the folder where the
command was given if it is another one. What was not committed is a patch, kept
by its hash. tools.rerun and tools.diff read the record.
"""

from collections.abc import Mapping
import datetime
import functools
from importlib import metadata
import json
import os
from pathlib import Path
import platform
import re
import sys
from typing import Any

from lm import config, errors
from lm.checkpoint import manifest
from lm.runtime import code_state, devices, logins, regular_files

NAME = 'record.json'
# They change what is computed, or where. Others may hold secrets.
_VARIABLES = (
  'JAX_DEFAULT_MATMUL_PRECISION',
  'JAX_ENABLE_X64',
  'JAX_PLATFORMS',
  'LIBTPU_INIT_ARGS',
  'XLA_FLAGS',
)

_MOST_STARTS = 200
_MOST_PATCHES = 16 << 20  # characters
_DICTS = ('data', 'packages', 'machine', 'variables')  # of a start
_DATA = ('fingerprint', 'datasets')  # of the position of data


def collect(
  c: config.Config,
  folder: Path,
  data: Mapping[str, Any],
  asked: config.Asked | None,
) -> dict[str, bytes]:
  """Adds this start to the record of a run.

  Args:
    c: of the run.
    folder: of the run.
    data: where the data stand, see `stream.Data.state`.
    asked: what the program was asked for; None if another program called.

  Returns:
    What the run's own file is to hold, by its name.
  """
  try:
    found = read(folder)
  except errors.Damaged as error:
    # A run goes on without it: nothing of it is computed from the record.
    manifest.warn(f'{error}; a new one is begun')
    found = {'starts': [], 'patches': {}}
  states = _code(folder)
  start = {
    'step': data['step'],
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'command': _command(asked),
    'folder': os.getcwd(),
    'config': asked and {'file': asked.file, 'changes': asked.changes},
    'parent': _parent(c, folder, asked),
    'seed': c.seed,
    'data': {key: data[key] for key in _DATA if key in data},
    **_surroundings(states),
  }
  found['starts'].append(logins.hidden(start))
  for state in states.values():
    if state is not None and state.digest is not None:
      found['patches'][state.digest] = state.patch
  _shorten(found)
  return {NAME: json.dumps(found, sort_keys=True).encode() + b'\n'}


def _parent(
  c: config.Config, folder: Path, asked: config.Asked | None
) -> dict[str, Any] | None:
  """Names the run that a run comes from, and what differs in its config.

  Returns:
    `{'folder', 'changes'}`, with [before, after] by key; None for changes where
    its config cannot be read, such as in a bucket. None if it has no parent.
  """
  parent = c.init_from or c.branch_from
  file = Path(asked.file) if asked is not None else Path()
  # A run that goes on may read its own.
  is_other = file.parent.resolve() != folder.resolve()
  if file.name == 'config.json' and is_other:
    parent = str(file.parent)
  if parent is None:
    return None
  try:
    text = regular_files.read(Path(parent) / 'config.json').decode()
    before = config.flatten(config.from_json(text))
  except (OSError, ValueError):
    return {'folder': parent, 'changes': None}
  changes = {
    key: [before.get(key), after]
    for key, after in config.flatten(c).items()
    if key not in before or before[key] != after
  }
  return {'folder': parent, 'changes': changes}


def _shorten(found: dict[str, Any]) -> None:
  """Keeps a record short, however often its run is started again.

  The first start stays, by which the run is repeated, and the newest ones.
  """
  first, *later = found['starts']
  found['starts'] = [first, *later[1 - _MOST_STARTS :]]
  named = [
    state['patch']
    for start in [first, *reversed(found['starts'][1:])]
    for state in start['code'].values()
    if isinstance(state, dict) and state['patch'] in found['patches']
  ]
  room, kept = _MOST_PATCHES, {}
  for digest in dict.fromkeys(named):
    room -= len(found['patches'][digest])
    if room >= 0:
      kept[digest] = found['patches'][digest]
  found['patches'] = kept


def here(workdir: Path) -> dict[str, Any]:
  """Describes code, packages, machine and variables of this process.

  Args:
    workdir: whose files are no code, see `code_state.of`.
  """
  return _surroundings(_code(workdir))


def _surroundings(
  states: Mapping[str, code_state.CodeState | None],
) -> dict[str, Any]:
  return {
    'code': {
      'lm': code_state.package_digest(),
      **{name: state and state.to_json() for name, state in states.items()},
    },
    'packages': _packages(),
    'machine': _machine(),
    'variables': {x: os.environ[x] for x in _VARIABLES if x in os.environ},
  }


def read(workdir: Path) -> dict[str, Any]:
  """Reads the record of a run; without starts if there is none.

  Raises:
    errors.Damaged: it cannot be read.
  """
  path = workdir / NAME
  try:
    with regular_files.open_read(path) as file:
      found = json.load(file)
    starts, patches = found['starts'], found['patches']
    if not all(map(_is_start, starts)) or not all(
      isinstance(x, str) for x in patches.values()
    ):
      raise TypeError
  except FileNotFoundError:
    return {'starts': [], 'patches': {}}
  except (
    OSError,
    ValueError,
    RecursionError,
    TypeError,
    KeyError,
    AttributeError,
  ) as error:
    raise errors.Damaged(f'{path}: it cannot be read') from error
  return {'starts': list(starts), 'patches': patches}


def _is_start(start: Any) -> bool:
  """Tells whether a start has the types that `collect` gives it.

  Raises:
    TypeError, KeyError: it may also do this where it has not.
  """
  code = start['code']
  states = [code[x] for x in ('package', 'here') if code[x] is not None]
  return (
    isinstance(start['step'], int)
    and isinstance(code['lm'], str)
    and all(isinstance(start[x], dict) for x in _DICTS)
    and (start['command'] is None or _are_texts(start['command']))
    and all(
      re.fullmatch('[0-9a-f]{40}|[0-9a-f]{64}', state['commit'])
      and isinstance(state['patch'], str | None)
      and _are_texts(state['left_out'])
      for state in states
    )
  )


def _are_texts(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(x, str) for x in value)


def _code(workdir: Path) -> dict[str, code_state.CodeState | None]:
  """Finds the repositories of the package and of the current folder."""
  package = code_state.of_package(workdir)
  here = code_state.of(Path.cwd(), workdir)
  if here is not None and package is not None and here.root == package.root:
    here = None
  return {'package': package, 'here': here}


def _command(asked: config.Asked | None) -> list[str] | None:
  """Returns the words that started this program."""
  if asked is None:
    return None
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  name = asked.program or (spec and spec.name)
  program = ['-m', name] if name else [sys.argv[0]]
  return ['python', *program, *asked.words]


@functools.cache  # it takes a tenth of a second
def _packages() -> dict[str, str]:
  """Lists the versions of all packages that are installed."""
  found = {
    str(x.metadata['Name']): x.version
    for x in metadata.distributions()
    if x.metadata['Name']
  }
  return dict(sorted(found.items()))


def _machine() -> dict[str, Any]:
  """Describes the machine."""
  return {
    'devices': devices.machine(),
    'host': platform.node(),
    'system': platform.platform(),
    'processor': _processor(),
    'cores': os.cpu_count(),
    'python': platform.python_version(),
  }


def _processor() -> str:
  """Names the processor, which decides over the last bits on a CPU."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor()
  models = [x.partition(':')[2] for x in lines if x.startswith('model name')]
  return models[0].strip() if models else platform.processor()
