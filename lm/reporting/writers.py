"""Writers: where a run's metrics go beside metrics.jsonl.

`log.to` of a config names TensorBoard, W&B or trackio, and `log.writer` a
function of yours:

  def make(about: writers.About, **settings) -> writers.Writer

A writer sees every line of metrics.jsonl once. A run that was killed repeats
the steps after its last checkpoint, with the same numbers; RUN/writers.json
holds what each writer has seen, so that it does not see them again. A writer
that a kill has robbed of its newest lines, or that is new, first gets those of
metrics.jsonl. The file also holds the id by which W&B and trackio know the run.
"""

from collections.abc import Mapping, Sequence
import contextlib
import importlib.util
import json
import os
from pathlib import Path
import re
import secrets
import sys
import threading
from typing import Any, NamedTuple, Protocol

from lm import config, errors
from lm.checkpoint import manifest
from lm.reporting import metrics_log
from lm.runtime import logins, regular_files

NAME = 'writers.json'
_CLOSE_SECONDS = 20.0
# Settings, such as those of a writer of one's own, that open an account.
_SECRET = re.compile(
  r'(?i)(?:.*_)?(?:token|password|passwd|secret|credentials?|(?:api|access|'
  r'auth|private|secret)_?key)'
)
# Of each name in `log.to`: its package, the extra that installs it, its door.
KNOWN = {
  'tensorboard': ('tensorboardX', 'lm.reporting.to_tensorboard:make'),
  'trackio': ('trackio', 'lm.reporting.to_trackio:make'),
  'wandb': ('wandb', 'lm.reporting.to_wandb:make'),
}


# The last line that a writer has: its step, and the names in the lines of it.
Seen = tuple[int, Sequence[str]]


class About(NamedTuple):
  """Describes a run to a writer.

  Attributes:
    folder: of the run.
    id: of the run, the same whenever it is started again.
    project: that the run belongs to, `log.project`.
    name: of the run, `log.name`, or that of its folder.
    config: the whole config, by dotted keys; logins in addresses are left out,
      and stars stand for texts under keys such as `token` and `api_key`.
    step: that the run starts at, or goes on from.
  """

  folder: Path
  id: str
  project: str
  name: str
  config: Mapping[str, Any]
  step: int


class Writer(Protocol):
  """Takes the lines of a run.

  One that loses lines in a kill may have an attribute `seen`: the last line
  that earlier starts of the run have left with it, as `Seen`.
  """

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Takes a line: what was measured when `step` updates were done."""

  def close(self) -> None:
    """Writes what is left."""


def check(c: config.Config) -> None:
  """Checks that all writers of a config are there.

  Raises:
    config.ConfigError: one is unknown, or its package is not installed.
  """
  for name in c.log.to:
    if name not in KNOWN:
      raise config.ConfigError(
        f'log.to: {name!r} is unknown: give some of {", ".join(KNOWN)}, or a'
        ' function of yours as log.writer'
      )
    package, _ = KNOWN[name]
    if importlib.util.find_spec(package) is None:
      raise config.ConfigError(
        f'log.to: {name} needs {package}, which is not installed: '
        f'{errors.install(name)}'
      )


class Writers:
  """Hands lines on to the writers that a config names.

  A writer that fails costs one warning and gets no more lines.
  """

  def __init__(self, c: config.Config, folder: Path, step: int):
    """Opens the writers.

    Args:
      c: of the run.
      folder: of the run.
      step: that the run goes on from.

    Raises:
      config.ConfigError: a writer refuses its settings.
    """
    self._path = folder / NAME
    self._writers: dict[str, Writer] = {}
    specs = {name: {'fn': KNOWN[name][1]} for name in c.log.to}
    if c.log.writer is not None:
      specs[c.log.writer['fn']] = c.log.writer
    if not specs:
      return
    self._id, self._seen = self._stored()
    self._store()
    about = About(
      folder=folder,
      id=self._id,
      project=c.log.project,
      name=c.log.name or folder.resolve().name,
      config=_without_secrets(c),
      step=step,
    )
    for name, spec in specs.items():
      with self._guarded(name, f'at step {step}'):
        writer = self._writers[name] = config.build(spec, about=about)
        if (seen := getattr(writer, 'seen', None)) is not None:
          self._seen[name] = seen
    for line in metrics_log.read(folder / 'metrics.jsonl'):
      if line['step'] <= step:
        self.write(line.pop('step'), line)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes a line to each writer that has not seen it yet."""
    new = [name for name in self._writers if self._is_new(name, step, values)]
    if not new:
      return
    # Before they see it: if a kill comes between, none is there twice.
    self._store()
    for name in new:
      with self._guarded(name, f'at step {step}'):
        self._writers[name].write(step, values)

  def close(self) -> None:
    """Closes the writers, and waits for a while if one needs a network."""
    for name in list(self._writers):
      with self._guarded(name, 'at the end'):
        _close(self._writers.pop(name))

  def _is_new(self, name: str, step: int, values: Mapping[str, float]) -> bool:
    """Says whether a writer has not seen a line, and notes that it will have.

    The lines of one step, such as those of two evaluators, differ in names.
    """
    last, keys = self._seen.get(name, (-1, []))
    if step < last or (step == last and keys and not values.keys() - set(keys)):
      return False
    keys = keys if step == last else []
    self._seen[name] = step, sorted({*keys, *values})
    return True

  @contextlib.contextmanager
  def _guarded(self, name: str, when: str):
    """Turns what a writer raises into one warning, the writer's last.

    What it prints goes to stderr: programs may read this one's stdout.
    """
    try:
      with contextlib.redirect_stdout(sys.stderr):
        yield
    except config.ConfigError:
      raise
    except Exception as error:
      self._writers.pop(name, None)
      manifest.warn(
        f'log.to: {name} failed {when} and gets no more, while metrics.jsonl'
        f' does: {type(error).__name__}: {str(error)[:200]}'
      )

  def _stored(self) -> tuple[str, dict[str, Seen]]:
    """Reads the id of a run, and the last line that each writer has seen."""
    try:
      with regular_files.open_read(self._path) as f:
        stored = json.load(f)
      seen: dict[str, Seen] = {
        k: (int(n), [str(x) for x in keys])
        for k, (n, keys) in stored['seen'].items()
      }
      # It becomes part of names of files.
      if not re.fullmatch(r'[\w-]{1,64}', stored['id'], re.ASCII):
        raise ValueError('it has no id of a run')
      return stored['id'], seen
    except FileNotFoundError:
      pass
    except (
      OSError,
      ValueError,
      RecursionError,
      OverflowError,
      TypeError,
      KeyError,
      AttributeError,
    ) as error:
      manifest.warn(
        f'{self._path}: cannot be read, so a new one is begun: {error}'
      )
    return secrets.token_hex(4), {}

  def _store(self) -> None:
    part = self._path.with_name(f'{NAME}.part')
    with regular_files.writing(self._path):
      part.write_text(json.dumps({'id': self._id, 'seen': self._seen}))
      os.replace(part, self._path)


def _without_secrets(c: config.Config) -> dict[str, Any]:
  """Flattens a config for writers, which may send it to a server."""
  return {
    key: '***'
    if isinstance(value, str) and _SECRET.fullmatch(key.rpartition('.')[2])
    else logins.hidden(value)
    for key, value in config.flatten(c).items()
  }


def _close(writer: Writer) -> None:
  """Closes a writer; gives up on one that waits for a network.

  Raises:
    TimeoutError: it has not finished.
  """
  raised: list[Exception] = []

  def close() -> None:
    try:
      writer.close()
    except Exception as error:
      raised.append(error)

  thread = threading.Thread(target=close, daemon=True)
  thread.start()
  thread.join(_CLOSE_SECONDS)
  if thread.is_alive():
    raise TimeoutError(f'not finished after {_CLOSE_SECONDS:g} s')
  if raised:
    raise raised[0]
