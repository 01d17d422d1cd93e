"""Starts a run again from its record, and compares what comes out bit by bit.

  python -m tools.rerun runs/a [--workdir=runs/a2] [--trust] [-- FLAGS]

The new run reads the same config and, as data are addressed by step, the same
tokens. If the code that is here is not that of the record, the run's commit is
checked out into a temporary folder. A record can hold a patch, which is what
was not committed: it is printed, and applied only with --trust, because it is
code. FLAGS are given to lm.train, such as --data=FOLDER where the data lie
elsewhere, or --config.steps=100 to stop earlier.

The bits are the same on the same kind of machine with the same packages; what
differs there is said before the run begins. --trust=WORD is given to lm.train,
which says when it needs one. Of a run that was started several times the first
start counts.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import os
from pathlib import Path
import subprocess
import sys
import tempfile
from typing import Any

from lm import config
from lm.runtime import code_state
from lm.training import run_record
from tools import compare_runs, diff


def rerun(
  workdir: Path, output: Path, *, trust: bool = False, flags: Sequence[str] = ()
) -> int:
  """Trains a run again, and compares it with the first.

  Args:
    workdir: of the run.
    output: of the new one; it is not there yet.
    trust: whether a patch of the record may be applied.
    flags: more for lm.train.

  Returns:
    The exit code: 0 if nothing differs, 1 if something does, or that of
    lm.train.

  Raises:
    config.ConfigError: the run has no record, or its code cannot be had.
  """
  record = run_record.read(workdir)
  if not record['starts']:
    raise config.ConfigError(
      f'{workdir}: has no record.json, so nothing says how it was started'
    )
  if output.exists() and any(output.iterdir()):
    raise config.ConfigError(f'{output}: is not empty: name another --workdir')
  start = record['starts'][0]
  _say_what_differs(start)
  with _code(workdir, record, start, trust) as root:
    command = [
      *(sys.executable, '-m', 'lm.train'),
      f'--config={workdir / "config.json"}',
      f'--workdir={output}',
      *flags,
    ]
    environment = dict(os.environ)
    if root is not None:
      before = environment.get('PYTHONPATH')
      paths = [str(root), *([before] if before else [])]
      environment['PYTHONPATH'] = os.pathsep.join(paths)
    print(f'$ {" ".join(command)}', flush=True)
    code = subprocess.run(command, env=environment).returncode
  return code or compare_runs.compare(workdir, output)


def _say_what_differs(start: Mapping[str, Any]) -> None:
  """Warns where other packages or another machine may give other bits."""
  for difference in diff.environment(start, run_record.here()):
    print(f'warning: {difference.line()}', file=sys.stderr)


@contextlib.contextmanager
def _code(
  workdir: Path,
  record: Mapping[str, Any],
  start: Mapping[str, Any],
  trust: bool,
) -> Iterator[Path | None]:
  """Yields the folder of the run's code; None if it is the code of here.

  Raises:
    config.ConfigError: it cannot be had.
  """
  code = start['code']
  if code['lm'] == code_state.package_digest():
    yield None
    return
  state = code['package']
  if state is None:
    raise config.ConfigError(
      f'{workdir}: ran with another lm, which was in no repository: install '
      'the version of its record'
    )
  patch = _patch(workdir, record, state, trust)
  here = code_state.of(code_state.package_folder())
  if here is None:
    raise config.ConfigError(
      f'{workdir}: ran with commit {state["commit"][:12]}: run this in a '
      'checkout of lm'
    )
  with tempfile.TemporaryDirectory(prefix='lm-rerun-') as folder:
    root = Path(folder) / 'code'
    _git(here.root, 'worktree', 'add', '--detach', str(root), state['commit'])
    try:
      if patch is not None:
        _git(str(root), 'apply', '--binary', '-', given=patch)
      yield root
    finally:
      _git(here.root, 'worktree', 'remove', '--force', str(root))


def _patch(
  workdir: Path,
  record: Mapping[str, Any],
  state: Mapping[str, Any],
  trust: bool,
) -> bytes | None:
  """Returns the patch of a start, which is printed; None without one.

  Raises:
    config.ConfigError: it is not trusted, or not whole.
  """
  if state['left_out']:
    raise config.ConfigError(
      f'{workdir}: its code is not whole in the record, which leaves out '
      f'{state["left_out"][0]}'
    )
  if state['patch'] is None:
    return None
  patch = record['patches'].get(state['patch'])
  if not isinstance(patch, str):
    raise config.ConfigError(f'{workdir}: the patch of its code is missing')
  print(patch)
  if not trust:
    raise config.ConfigError(
      f'{workdir}: ran with the patch above, which is code that would be run: '
      'read it, and give --trust'
    )
  return patch.encode('utf-8', 'surrogateescape')


def _git(folder: str, *words: str, given: bytes | None = None) -> None:
  """Runs git in a folder.

  Raises:
    config.ConfigError: it fails.
  """
  done = subprocess.run(
    ['git', *words], cwd=folder, input=given, capture_output=True
  )
  if done.returncode:
    lines = done.stderr.decode(errors='replace').strip().splitlines()
    raise config.ConfigError(
      f'git {" ".join(words[:2])}: {lines[-1] if lines else done.returncode}'
    )


def main(argv: Sequence[str]) -> int:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.rerun',
    description=__doc__,
    epilog=config.exit_code_help('tools.rerun'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('run', type=Path, metavar='RUN', help='its folder')
  parser.add_argument(
    '--workdir', type=Path, help='the folder of the new run; RUN-rerun'
  )
  parser.add_argument(
    '--trust',
    nargs='?',
    const='',
    action='append',
    default=[],
    metavar='WORD',
    help='alone: apply the patch of the record; with =WORD: given to lm.train',
  )
  # What follows is for lm.train, which knows what is wrong with it.
  end = argv.index('--') if '--' in argv else len(argv)
  flags = parser.parse_args(argv[:end])
  output = flags.workdir or Path(f'{flags.run}-rerun')
  words = [f'--trust={word}' for word in flags.trust if word]
  return rerun(
    flags.run, output, trust='' in flags.trust, flags=[*words, *argv[end + 1 :]]
  )


if __name__ == '__main__':
  config.main(main)
