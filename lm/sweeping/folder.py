"""The folder of a sweep: its lock, its record, and how its runs have ended.

  sweep.json       base config, points by the name of their run, commands
  outcomes.jsonl   a line for each run that has ended
  runs/NAME/       the folder of a run, as lm.train makes it
  logs/            what workers print
  table.*          the results, see lm.sweeping.results
  lock             held while the sweep runs

A kill at any time leaves all of this readable. A run whose end is not noted is
started again, and lm.train goes on from its last checkpoint.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from lm import checkpoint, config, errors
from lm.checkpoint import bucket
from lm.reporting import metrics_log
from lm.runtime import logins, regular_files
from lm.sweeping import trials

RECORD, OUTCOMES = 'sweep.json', 'outcomes.jsonl'


class Outcome(NamedTuple):
  """How a run has ended.

  Attributes:
    state: 'done' or 'failed'.
    step: the last step that is saved.
    error: the last line of its error; '' if it is done.
  """

  state: str
  step: int
  error: str = ''


class Folder:
  """The folder of a sweep on this machine."""

  def __init__(self, path: str | Path):
    """Names the folder; nothing is read or made yet.

    Raises:
      config.ConfigError: it is in a bucket.
    """
    if bucket.is_address(path):
      raise config.ConfigError(
        f'{path}: a sweep keeps its record on this machine: give a local '
        '--workdir, and with --launch the place of the runs by --runs'
      )
    self.path = Path(path)

  def run(self, name: str) -> Path:
    """Names the folder of a run."""
    return self.path / 'runs' / name

  def log(self, name: str) -> Path:
    """Names the file that takes what a worker prints."""
    return self.path / 'logs' / f'{name}.log'

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Makes the folder, and keeps other sweeps out of it.

    Raises:
      errors.Locked: another sweep runs there.
    """
    try:
      (self.path / 'logs').mkdir(parents=True, exist_ok=True)
      (self.path / 'runs').mkdir(exist_ok=True)
    except OSError as error:
      raise errors.Storage(
        f'{self.path}: cannot be written to: {error.strerror}: make it '
        'writable or use another --workdir'
      ) from error
    late = errors.Locked(
      f'{self.path}: another lm.sweep is at work there: wait for it, stop it, '
      'or use another --workdir'
    )
    with regular_files.exclusive(self.path / 'lock', 0.0, late):
      yield

  def read(self) -> dict[str, Any] | None:
    """Reads the record; None if there is none yet.

    Raises:
      errors.Damaged: it cannot be read.
    """
    path = self.path / RECORD
    try:
      found = json.loads(regular_files.read(path))
      config.from_json(found['config'])
      if not all(isinstance(point, dict) for point in found['points'].values()):
        raise TypeError
      if any(Path(name).name != name for name in found['points']):
        raise ValueError
      return found | {'points': _with_tuples(found['points'])}
    except FileNotFoundError:
      return None
    except (
      OSError,
      ValueError,
      TypeError,
      KeyError,
      AttributeError,
    ) as error:
      raise errors.Damaged(
        f'{path}: it cannot be read: delete it if this is no sweep of yours, '
        'or use another --workdir'
      ) from error

  def check(self, base: trials.Base, swept: Sequence[str]) -> None:
    """Checks that the folder is new, or of a sweep with the same base config.

    Args:
      base: of now.
      swept: the keys that points set. Where files lie is free, unless it is
        swept.

    Raises:
      config.ConfigError: it is another one.
      errors.Damaged: the record cannot be read.
    """
    found = self.read()
    if found is None:
      return
    paths = [
      key
      for key in config.flatten(base.config)
      if key.endswith('.path') and key not in swept
    ]
    lines = config.diff(
      config.from_json(found['config']), base.config, allow=paths
    )
    if lines:
      line = lines[0].replace(' (checkpoint)', '').replace(' (now)', '')
      more = f' and {len(lines) - 1} more' if lines[1:] else ''
      raise config.ConfigError(
        f'{self.path}: its sweep has another base config: {line}{more}: use '
        'another --workdir'
      )

  def store(
    self,
    base: trials.Base,
    chosen: Sequence[trials.Trial],
    command: Sequence[str],
  ) -> dict[str, Mapping[str, Any]]:
    """Adds the points and the command of this start to the record.

    Returns:
      All points that were ever asked for, by the name of their run.
    """
    found = self.read() or {'points': {}, 'commands': []}
    points = found['points'] | {x.name: dict(x.point) for x in chosen}
    commands = found['commands']
    if command and logins.hidden(list(command)) not in commands:
      commands = [*commands, logins.hidden(list(command))]
    record = {
      'file': base.file,
      'config': config.to_json(base.config),
      'points': points,
      'commands': commands,
    }
    replace(self.path / RECORD, json.dumps(record, indent=1) + '\n')
    return points

  def outcomes(self) -> dict[str, Outcome]:
    """Reads how runs have ended, by name; the last line of each counts.

    A run whose checkpoints were deleted has not ended.
    """
    found = {}
    for line in metrics_log.read(self.path / OUTCOMES):
      name = line['name']
      found[name] = Outcome(line['state'], line['step'], line['error'])
    return {
      name: outcome
      for name, outcome in found.items()
      if outcome.state != 'done' or checkpoint.steps(self.run(name))
    }

  def note(self, name: str, state: str, error: str = '') -> Outcome:
    """Notes how a run has ended."""
    steps = checkpoint.steps(self.run(name))
    outcome = Outcome(state, steps[-1] if steps else 0, error)
    metrics_log.append(
      self.path / OUTCOMES, {'name': name, **outcome._asdict()}
    )
    return outcome


def _with_tuples(value: Any) -> Any:
  """Makes tuples of lists: a config has those, and JSON has these."""
  if isinstance(value, dict):
    return {key: _with_tuples(x) for key, x in value.items()}
  if isinstance(value, list):
    return tuple(map(_with_tuples, value))
  return value


def replace(path: Path, text: str) -> None:
  """Writes a file so that a kill leaves the old one or the new one."""
  part = path.with_name(f'{path.name}.part')
  with regular_files.writing(path):
    part.write_text(text, encoding='utf-8')
    part.replace(path)
