"""A worker: one process that trains one run after another.

  python -m lm.sweeping.worker

It reads a line of JSON from standard input for each run:

  {"id": "a", "config": "configs/gpt/tiny.py", "workdir": "runs/a"}

and answers each with a line on standard output, when the run has ended:

  {"id": "a", "state": "done", "exit_code": 0, "error": null}

`config` is a file, or a whole config as JSON, in a string or as it is.
`command` may list the flags with which `lm.train` would do the same, for the
run's record. A `state` is 'done', 'failed' or 'stopped'; the exit code and the
one line of the error are those of `lm.train`.

jax, packages and the compiled program stay from run to run: see
`lm.training.compiled`. SIGTERM and Ctrl-C stop the run that is in progress,
once its state is saved, and with it the worker. It ends when its input ends.
"""

import argparse
from collections.abc import Mapping, Sequence
import gc
import json
import os
import signal
import sys
import traceback
from typing import Any, TextIO

from lm import config, train
from lm.data import prefetch
from lm.runtime import compilation_cache, devices, memory, signals

_KEYS = {'id', 'config', 'workdir', 'command'}


def serve(requests: TextIO, answers: TextIO) -> None:
  """Trains the runs of all requests, in their order.

  Raises:
    config.ConfigError: a line is no request.
    signals.Stopped: a run was stopped; its answer is written.
  """
  stalled = False
  for line in requests:
    if not line.strip():
      continue
    request = _parsed(line)
    answer, error = _trained(request)
    stalled |= isinstance(error, prefetch.Stalled)
    answers.write(json.dumps({'id': request['id'], **answer}) + '\n')
    answers.flush()
    if isinstance(error, signals.Stopped):
      raise error
    # An error holds the frames that it came through, and these the state.
    del error
    gc.collect()
  if stalled:
    # Python would wait at exit for the threads that hang in the file system.
    os._exit(0)


def _parsed(line: str) -> dict[str, Any]:
  """Reads a request.

  Raises:
    config.ConfigError: it is none.
  """
  try:
    request = json.loads(line)
  except ValueError:
    request = None
  if not isinstance(request, dict) or not (
    {'id', 'config', 'workdir'} <= request.keys() <= _KEYS
  ):
    raise config.ConfigError(
      'a request is a line of JSON with the keys id, config and workdir, and '
      f'maybe command; this is none: {line.strip()[:80]}'
    )
  return request


def _trained(
  request: Mapping[str, Any],
) -> tuple[dict[str, Any], BaseException | None]:
  """Trains one run; returns the answer, and the error that it ended with."""
  try:
    c, asked = _asked(request)
    train.train(c, request['workdir'], None, asked)
  except Exception as error:
    known = config.error_line(error)
    if known is None:
      traceback.print_exc()
      known = f'{type(error).__name__}: {error}'.partition('\n')[0], 1
    line, code = known
    state = 'stopped' if isinstance(error, signals.Stopped) else 'failed'
    print(config.last_line(line, code), file=sys.stderr, flush=True)
    return {'state': state, 'exit_code': code, 'error': line}, error
  return {'state': 'done', 'exit_code': 0, 'error': None}, None


def _asked(
  request: Mapping[str, Any],
) -> tuple[config.Config, config.Asked | None]:
  """Loads the config of a request, and what it says of its command."""
  given = request['config']
  if not isinstance(given, str):
    given = json.dumps(given)
  is_json = given.lstrip().startswith('{')
  c = config.from_json(given) if is_json else config.load(given)
  words = request.get('command')
  if not words:
    return c, None
  file = '' if is_json else given
  return c, config.Asked(tuple(words), file, None, 'lm.train')


def main(argv: Sequence[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m lm.sweeping.worker',
    description=__doc__,
    epilog=config.exit_code_help('lm.sweeping.worker'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.parse_args(argv)
  # Between two runs, and before the first, there is nothing to save.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(signals.EXIT_CODE))
  memory.prepare()
  compilation_cache.prepare()
  # What else is printed, by any library, must not come between the answers.
  with os.fdopen(os.dup(1), 'w', encoding='utf-8') as answers:
    os.dup2(2, 1)
    devices.announce()
    serve(sys.stdin, answers)


if __name__ == '__main__':
  config.main(main)
