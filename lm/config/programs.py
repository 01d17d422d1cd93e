"""Programs: flags in, one line of error and an exit code out."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import errno
import json
import math
import os
from pathlib import Path
import re
import sys
from typing import Any, NamedTuple, NoReturn

from lm.config import exit_codes, files, messages, untrusted, values
from lm.config.messages import ConfigError, did_you_mean
from lm.config.values import Config

_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _stop(text: str, code: int) -> NoReturn:
  print(exit_codes.last_line(text, code), file=sys.stderr, flush=True)
  sys.exit(code)


def _flags(argv: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
  """Splits arguments into `{'config', 'workdir', 'data'}` and overrides."""
  flags: dict[str, str] = {}
  overrides: dict[str, str] = {}
  words = list(argv)
  while words:
    word = words.pop(0)
    name, equals, value = word.partition('=')
    if not re.fullmatch(r'--workdir|--data|--trust|--config(\..+)?', name):
      known = ['--config', '--workdir', '--data', '--trust', '--help']
      raise ConfigError(
        f'unknown argument {messages.show(word)}{did_you_mean(name, known)}'
      )
    if not equals:
      if not words or words[0].startswith('--'):
        raise ConfigError(f'{name} needs a value: {name}=...')
      value = words.pop(0)
    if name == '--trust':
      untrusted.trust(value)
    elif name.startswith('--config.'):
      overrides[name.removeprefix('--config.')] = value
    elif name[2:] in flags:
      raise ConfigError(f'{name} is given twice')
    else:
      flags[name[2:]] = value
  for name in ('config', 'workdir'):
    if not flags.get(name):
      raise ConfigError(f'--{name} is missing; see --help')
  return flags, overrides


def parse(
  argv: Sequence[str], description: str, program: str = 'lm.train'
) -> tuple[Config, Path]:
  """Reads a program's arguments (`sys.argv[1:]`) into `(config, workdir)`.

  Args:
    argv: the arguments.
    description: for `--help`.
    program: whose exit codes `--help` lists.

  Ends the program: with the help text and 0 for `--help`, with one line on
  stderr and 2 for anything wrong.
  """
  if '--help' in argv or '-h' in argv:
    print(
      f'{description.strip()}\n\nflags:\n'
      '  --config=FILE.py     a file that defines get_config(); FILE.py:WORD\n'
      '                       calls get_config("WORD")\n'
      '  --workdir=FOLDER     where the run lives; made when missing\n'
      '  --config.KEY=VALUE   another value for a key that the file declares,\n'
      '                       such as --config.optim.peak=3e-4\n'
      '  --data=FOLDER        the tokenizer, training and held-out texts, as\n'
      '                       tools.prepare_data writes them\n'
      '  --trust=WORD         for a config.json: a package whose functions it\n'
      '                       may name, or a folder (with a slash) that it\n'
      '                       may read; may be repeated\n\n'
      f'{exit_codes.exit_code_help(program)}'
    )
    sys.exit(0)
  try:
    flags, overrides = _flags(argv)
    file = flags['config']
    c = files.load(file, overrides.items(), flags.get('data'))
    # Now, because the file may be another one when the record is written.
    _asked[:] = [Asked(tuple(argv), file, _changes(file, c))]
    return c, Path(flags['workdir'])
  except ConfigError as error:
    _stop(messages.one_line(str(error)), error.exit_code)


class Asked(NamedTuple):
  """Says what a program was asked for.

  Attributes:
    words: its arguments.
    file: the config file, and its argument.
    changes: [before, after] of what flags changed in it, by key; None if it
      cannot be used without them.
    program: the module that takes these words; '' is the one that runs.
  """

  words: tuple[str, ...]
  file: str
  changes: dict[str, list[Any]] | None
  program: str = ''


_asked: list[Asked] = []  # the newest, see `asked`


def asked() -> Asked | None:
  """Says what `parse` has read last; None where it has read nothing."""
  return _asked[-1] if _asked else None


def _changes(file: str, c: Config) -> dict[str, list[Any]] | None:
  """Finds what flags have changed in a config file."""
  try:
    before = values.flatten(files.load(file))
  except ConfigError:
    return None  # some of its files are only there with the flags
  return {
    key: [before.get(key), value]
    for key, value in values.flatten(c).items()
    if key not in before or before[key] != value
  }


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
  """Turns ValueErrors of our own functions, a user's mistakes, to ConfigErrors.

  Errors that have an exit code pass as they are.
  """
  try:
    yield
  except ValueError as error:
    if hasattr(error, 'exit_code'):
      raise
    raise ConfigError(str(error)) from error


def print_json(value: Any) -> None:
  """Prints a result for programs, alone on stdout.

  JSON has no number that is not finite: null stands for it. Who reads it may
  stop before its end, as `head` does.
  """
  text = json.dumps(_finite(value), indent=1, allow_nan=False)
  try:
    print(text, flush=True)
  except BrokenPipeError:
    # Python would flush the rest at its end, and fail once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _finite(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _finite(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(v) for v in value]
  bad = isinstance(value, float) and not math.isfinite(value)
  return None if bad else value


def main(program: Callable[[list[str]], int | None]) -> NoReturn:
  """Runs `program(sys.argv[1:])` and exits with the code it returns.

  An error that has a line for the user, see `error_line`, is printed as that
  line, and so is Ctrl-C; any other exception is a bug and keeps its traceback.
  """
  try:
    code = program(sys.argv[1:])
  except (Exception, KeyboardInterrupt) as error:
    line = error_line(error)
    if line is None:
      raise
    if getattr(error, 'hangs', False):
      # Python would wait at exit for the thread that hangs.
      print(exit_codes.last_line(*line), file=sys.stderr, flush=True)
      os._exit(line[1])
    _stop(*line)
  sys.exit(code or 0)


def error_line(error: BaseException) -> tuple[str, int] | None:
  """Returns an error's one line and exit code; None for a bug.

  An exception with an `exit_code` is a message to the user, and so is an
  OSError of a full or read-only disk (5). jax raises ValueErrors as well, so
  the type alone says nothing.
  """
  if isinstance(error, KeyboardInterrupt):
    return 'by Ctrl-C', 130
  code = getattr(error, 'exit_code', None)
  if isinstance(error, OSError) and error.errno in _STORAGE:
    code = 5
  if not isinstance(code, int):
    return None
  return messages.one_line(str(error)) or type(error).__name__, code
