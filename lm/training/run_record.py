"""Records what a run was started from, so that it can be started again.

record.json in the folder of a run:

  {"starts": [{...}, ...], "patches": {sha256: text, ...}}

Each start of the run adds one, with the step that it began at: the command,
the config file and what flags changed in it, the seed, the fingerprints of its
data, the code, the versions of all packages, and the machine. `code` names the
commit of the repository that this package lies in, and that of the folder where
the command was given if it is another one. What was not committed is a patch,
kept by its hash. tools.rerun and tools.diff read the record.
"""

from collections.abc import Mapping, Sequence
import datetime
import functools
from importlib import metadata
import json
import os
from pathlib import Path
import platform
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

_DATA = ('fingerprint', 'datasets')  # of the position of data


def collect(
  c: config.Config,
  folder: Path,
  data: Mapping[str, Any],
  asked: Sequence[str] | None,
) -> dict[str, bytes]:
  """Adds this start to the record of a run.

  Args:
    c: of the run.
    folder: of the run.
    data: where the data stand, see `stream.Data.state`.
    asked: the arguments of the program; None if a program of the user's called.

  Returns:
    What the run's own file is to hold, by its name.
  """
  try:
    found = read(folder)
  except errors.Damaged as error:
    # A run goes on without it: nothing of it is computed from the record.
    manifest.warn(f'{error}; a new one is begun')
    found = {'starts': [], 'patches': {}}
  states = _code()
  for state in states.values():
    if state is not None and state.digest is not None:
      found['patches'][state.digest] = state.patch
  start = {
    'step': data['step'],
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'command': _command(asked),
    'folder': os.getcwd(),
    'config': None if asked is None else config.asked(asked),
    'seed': c.seed,
    'data': {key: data[key] for key in _DATA if key in data},
    'code': {
      'lm': code_state.package_digest(),
      **{name: state and state.to_json() for name, state in states.items()},
    },
    **here(),
  }
  found['starts'].append(logins.hidden(start))
  # A patch that no start names any more cannot occur: starts are only added.
  return {NAME: json.dumps(found, sort_keys=True).encode() + b'\n'}


def here() -> dict[str, Any]:
  """Describes the packages, machine and variables of this process."""
  return {
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
  except FileNotFoundError:
    return {'starts': [], 'patches': {}}
  except (ValueError, RecursionError) as error:
    raise _damaged(path) from error
  starts = found.get('starts') if isinstance(found, dict) else None
  if not isinstance(starts, list) or not all(
    isinstance(x, dict) for x in starts
  ):
    raise _damaged(path)
  patches = found.get('patches')
  if not isinstance(patches, dict):
    raise _damaged(path)
  return {'starts': starts, 'patches': patches}


def _damaged(path: Path) -> errors.Failure:
  return errors.Damaged(f'{path}: it cannot be read')


def _code() -> dict[str, code_state.CodeState | None]:
  """Finds the repositories of the package and of the current folder."""
  package = code_state.of(code_state.package_folder())
  here = code_state.of(Path.cwd())
  if here is not None and package is not None and here.root == package.root:
    here = None
  return {'package': package, 'here': here}


def _command(asked: Sequence[str] | None) -> list[str] | None:
  """Returns the words that started this program."""
  if asked is None:
    return None
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  program = ['-m', spec.name] if spec is not None else [sys.argv[0]]
  return ['python', *program, *asked]


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
