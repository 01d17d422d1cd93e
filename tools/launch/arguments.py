"""Arguments of the launchers: flags that all have, and checks of all values.

What a user gives becomes a word of a command, a line of a script or a name in a
cloud, so that everything is checked before anything is asked.
"""

import argparse
from collections.abc import Sequence
import math
from pathlib import Path
import re
import secrets
from typing import NamedTuple

from lm import config
from tools.launch import commands, stage

# The variables of lm.runtime.processes, which would bring jax with it: the
# processes meet where jax finds TPU VMs, SLURM or GKE, and the first of them
# listens on the address of its private network.
DISTRIBUTED = ('LM_DISTRIBUTED=auto', 'LM_LISTEN=private')
SECRET = 'LM_SECRET'
_ADDRESS = r'gs://[a-z0-9][-a-z0-9_.]{1,61}[a-z0-9]/[^/].*'
_NAME = r'[a-z]([-a-z0-9]{0,61}[a-z0-9])?'


def check_flag(flag: str, value: str, pattern: str, rule: str) -> None:
  """Refuses a value of a flag.

  Raises:
    config.ConfigError: it does not match the whole pattern.
  """
  if not re.fullmatch(pattern, value):
    raise config.ConfigError(f'--{flag}={value[:60]!r}: {rule}')


def name(value: str, longest: int = 63) -> None:
  """Refuses names that clouds, schedulers or shells would trip over.

  Raises:
    config.ConfigError: it is such a name.
  """
  rule = (
    f'a name has at most {longest} lower-case letters, digits and dashes, '
    'begins with a letter and ends without a dash'
  )
  check_flag('name', value, _NAME, rule)
  check_flag('name', value, f'.{{1,{longest}}}', rule)


class Training(NamedTuple):
  """The arguments of lm.train, read; `words` are as given."""

  words: tuple[str, ...]
  config: str
  workdir: str

  def shared(self, why: str, hosts: int) -> None:
    """Refuses a workdir that not all machines see, or that goes with one.

    Raises:
      config.ConfigError: it is a relative path, or a bucket of several hosts.
    """
    if self.workdir.startswith('gs://'):
      if hosts > 1:
        raise config.ConfigError(
          f'--workdir={self.workdir[:60]}: {hosts} hosts need a folder '
          'that all of them see: mount the bucket (gcsfuse) and give its path'
        )
    elif not self.workdir.startswith('/'):
      raise config.ConfigError(
        f'--workdir={self.workdir[:60]}: {why}: give the absolute path of a '
        'disk that all machines share, or gs://BUCKET/FOLDER to a single host'
      )

  def sent(self) -> str:
    """Gives the file of the config, which has to be in what is sent.

    Raises:
      config.ConfigError: its path leads out of the repository.
    """
    path, _, _ = self.config.partition('.py:')
    path = path if path == self.config else f'{path}.py'
    if Path(path).is_absolute() or '..' in Path(path).parts:
      raise config.ConfigError(
        f'--config={path[:80]}: outside the repository, which is all that is '
        'sent: commit it there and give its relative path'
      )
    return path


def check_data(data: str, *, is_here: bool) -> None:
  """Refuses prepared data that cannot be copied.

  Args:
    data: a folder or an address in a bucket; '' is none.
    is_here: whether a folder is one of this machine, so that it can be read.

  Raises:
    config.ConfigError: it is neither, or has no training data.
  """
  if not data:
    return
  if data.startswith('gs:'):
    check_flag('data', data, _ADDRESS, 'data in a bucket is gs://BUCKET/FOLDER')
  elif is_here:
    try:
      stage.wanted(Path(data))
    except ValueError as error:
      raise config.ConfigError(f'--data={data}: {error}') from error
  else:
    check_flag(
      'data', data, r'/[^\x00-\x1f\x7f]*', 'give the absolute path in the pods'
    )


def training(words: Sequence[str], data: str = '') -> Training:
  """Reads what follows `--`, as lm.train will; a wrong key ends it here.

  Args:
    words: arguments of lm.train.
    data: that the launcher copies, and that lm.train is then given.

  Raises:
    config.ConfigError: they are missing or cannot be sent.
  """
  if not words:
    raise config.ConfigError(
      'say what to run: ... -- --config=FILE --workdir=FOLDER'
    )
  for word in words:
    if not word.isprintable():
      raise config.ConfigError(
        f'{word[:40]!r}: a control character, such as a line break, cannot be '
        'sent: put the value into the config file'
      )
  if data and any(re.match('--data(=|$)', word) for word in words):
    raise config.ConfigError(
      '--data is given twice: give it before --, or what the hosts have after'
    )
  local = [f'--data={data}'] if data and Path(data).is_dir() else []
  config.parse([*words, *local], 'see python -m lm.train --help')
  found = {}
  for i, word in enumerate(words):
    flag, equals, value = word.partition('=')
    if flag in ('--config', '--workdir'):
      found[flag[2:]] = value if equals else words[i + 1]
  if found['workdir'].startswith('gs:'):
    check_flag(
      'workdir',
      found['workdir'],
      _ADDRESS,
      'a remote workdir is gs://BUCKET/FOLDER',
    )
  return Training(tuple(words), **found)


def parse(
  parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
  """Reads a launcher's own flags, and leaves what follows `--`."""
  at = list(argv).index('--') if '--' in argv else len(argv)
  return parser.parse_args(argv[:at]), list(argv[at + 1 :])


def make_parser(
  program: str, description: str | None, verbs: Sequence[str]
) -> argparse.ArgumentParser:
  """Makes a parser with the flags that all launchers have."""
  made = argparse.ArgumentParser(
    prog=f'python -m {program}',
    description=description,
    epilog=config.exit_code_help(program),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
    usage='%(prog)s FLAGS ' + '|'.join(verbs) + ' -- FLAGS_OF_LM_TRAIN'
    if verbs
    else '%(prog)s FLAGS -- FLAGS_OF_LM_TRAIN',
  )
  if verbs:
    made.add_argument('command', choices=verbs)
  made.add_argument('--name', required=True, help='of what is made')
  made.add_argument(
    '--dry_run', action='store_true', help='print the commands, run nothing'
  )
  made.add_argument(
    '--hours',
    type=positive,
    default=744.0,
    help='deadline of following a run: 744, a month',
  )
  made.add_argument(
    '--poll_seconds',
    type=positive,
    default=5.0,
    help='first pause between looks and tries: 5; it grows to a minute',
  )
  made.add_argument(
    '--data',
    default='',
    metavar='FOLDER|gs://BUCKET/FOLDER',
    help='prepared data, copied to a disk of every host before the first step',
  )
  made.add_argument(
    '--env',
    action='append',
    default=[],
    metavar='NAME=VALUE',
    help='environment of the run; may be repeated',
  )
  return made


def positive(text: str) -> float:
  """Reads a number above 0; nan and inf are none."""
  value = float(text)
  if not (math.isfinite(value) and value > 0):
    raise ValueError(text)
  return value


def environment(values: Sequence[str], hosts: int) -> list[str]:
  """Checks `NAME=VALUE` words and adds what a run on many hosts needs.

  Raises:
    config.ConfigError: a word is no such pair.
  """
  for value in values:
    check_flag(
      'env', value, r'[A-Za-z_]\w*=[^\x00-\x1f\x7f]*', 'give NAME=VALUE'
    )
  return [*(DISTRIBUTED if hosts > 1 else ()), *values]


def secret(shell: commands.Shell) -> str:
  """Draws what the processes of a run know each other by; a word in a dry run.

  It never becomes a word of a command, which other users of a machine can list.
  """
  return 'SECRET' if shell.dry_run else secrets.token_hex(16)


def setup_lines(values: Sequence[str]) -> list[str]:
  """Checks lines of shell that are run as they are.

  Raises:
    config.ConfigError: one is empty or several.
  """
  for value in values:
    check_flag('setup', value, r'[^\x00-\x1f\x7f]+', 'give one line')
  return list(values)
