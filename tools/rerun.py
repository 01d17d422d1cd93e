"""Starts a run again from its record, and compares what comes out bit by bit.

  python -m tools.rerun runs/a [--workdir=runs/a2] [--trust] [--json] [-- FLAGS]

The new run reads the same config and, as data are addressed by step, the same
tokens. If the package lm that is here is not that of the record, the commit of
the run is checked out into a temporary folder. A record can hold a patch, which
is what was not committed: it is printed, and applied only with --trust, because
it is code. Code of yours outside of that repository is used as it is here; a
warning says where it differs. FLAGS are given to lm.train, such as
--data=FOLDER where the data lie elsewhere.

The bits are the same on the same kind of machine with the same packages; what
differs there is said before the run begins. --trust=WORD is given to lm.train,
which says when it needs one. Of a run that was started several times the first
start counts. With --json the result is on stdout, and all else on stderr.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import hashlib
from pathlib import Path
import re
import sys
from typing import Any, NamedTuple

from lm import config
from lm.checkpoint import bucket
from lm.runtime import code_state
from lm.training import run_record
from tools import checkout, compare_runs, diff


class Rerun(NamedTuple):
  """The result of training a run again.

  Attributes:
    workdir: of the new run.
    command: that trained it.
    trained: the exit code of that.
    warnings: what is not as it was in the first run, and may change bits.
    comparison: of the two runs; None if training has failed.
  """

  workdir: str
  command: list[str]
  trained: int
  warnings: list[diff.Difference]
  comparison: compare_runs.Comparison | None

  @property
  def exit_code(self) -> int:
    """Returns 0 if nothing differs, 1 if something does, or lm.train's."""
    if self.comparison is None:
      return self.trained
    return int(self.comparison.differs)

  def to_json(self) -> dict[str, Any]:
    """Describes it for programs."""
    comparison = self.comparison
    return {
      **self._asdict(),
      'warnings': [x._asdict() for x in self.warnings],
      'comparison': comparison and comparison.to_json(),
    }


def rerun(
  workdir: Path, output: Path, *, trust: bool = False, flags: Sequence[str] = ()
) -> Rerun:
  """Trains a run again, and compares it with the first.

  What it does, and what the training prints, goes to stderr.

  Args:
    workdir: of the run.
    output: of the new one; it is not there yet.
    trust: whether a patch of the record may be applied.
    flags: more for lm.train.

  Raises:
    config.ConfigError: the run has no record, or its code cannot be had.
  """
  if bucket.is_address(workdir):
    raise config.ConfigError(f'{workdir}: copy the folder here and name that')
  record = run_record.read(workdir)
  if not record['starts']:
    raise config.ConfigError(
      f'{workdir}: has no record.json, so nothing says how it was started'
    )
  if output.exists() and not (output.is_dir() and not any(output.iterdir())):
    raise config.ConfigError(f'{output}: is not empty: name another --workdir')
  start = record['starts'][0]
  program = _program(start)
  with _code(workdir, record, start, trust) as root:
    warnings = _warnings(start, output, is_here=root is None)
    # -P, or the current folder would come before the commit's.
    command = [
      *(sys.executable, '-P', '-m', program),
      f'--config={workdir / "config.json"}',
      f'--workdir={output}',
      *flags,
    ]
    _say(f'$ {" ".join(command)}')
    code = checkout.run(command, checkout.environment(root), stdout=2)  # stderr
  comparison = None if code else compare_runs.compare(workdir, output)
  return Rerun(str(output), command, code, warnings, comparison)


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _program(start: Mapping[str, Any]) -> str:
  """Names the program of a start: lm.train, or lm.fit if the record says so."""
  return 'lm.fit' if 'lm.fit' in (start['command'] or ()) else 'lm.train'


def _warnings(
  start: Mapping[str, Any], output: Path, *, is_here: bool
) -> list[diff.Difference]:
  """Says where other code, packages or machines may give other bits."""
  now = run_record.here(output)
  found = diff.environment(start, now)
  names = ('here.', 'package.') if is_here else ('here.',)
  found += [x for x in diff.code(start, now) if x.name.startswith(names)]
  if start['step']:
    _say(f'warning: its record begins at step {start["step"]}')
  for difference in found:
    _say(f'warning: {difference.line()}')
  return found


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
  here = code_state.of_package()
  if here is None:
    raise config.ConfigError(
      f'{workdir}: ran with commit {state["commit"][:12]}: run this in a '
      'checkout of lm'
    )
  patches = [] if patch is None else [patch]
  with checkout.checkout(here.root, state['commit'], patches) as root:
    yield root


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
  for name in state['left_out']:
    _say(f'warning: the record leaves out {name!r}')
  if state['patch'] is None:
    return None
  patch = record['patches'].get(state['patch'], '')
  data = patch.encode('utf-8', 'surrogatepass')
  with contextlib.suppress(UnicodeEncodeError):
    data = patch.encode('utf-8', 'surrogateescape')
  if hashlib.sha256(data).hexdigest() != state['patch']:
    raise config.ConfigError(f'{workdir}: the patch of its code is missing')
  # As it is, it could hide lines of itself on a terminal.
  _say(re.sub(r'[^\n\t -~]', lambda x: ascii(x[0])[1:-1], patch))
  if not trust:
    raise config.ConfigError(
      f'{workdir}: ran with the patch above, which is code that would be run: '
      'read it, and give --trust'
    )
  return data


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
    action='append',
    default=[],
    metavar='WORD',
    help='=WORD: given to lm.train; alone: apply the patch of the record',
  )
  parser.add_argument('--json', action='store_true', help='for programs')
  # What follows is for lm.train, which knows what is wrong with it.
  end = argv.index('--') if '--' in argv else len(argv)
  # Alone, --trust takes no word, or it would take the folder behind it.
  words = [x for x in argv[:end] if x != '--trust']
  flags = parser.parse_args(words)
  output = flags.workdir or Path(f'{flags.run}-rerun')
  if '' in flags.trust:
    raise config.ConfigError('--trust= is empty: give a word, or --trust alone')
  more = [*(f'--trust={word}' for word in flags.trust), *argv[end + 1 :]]
  trust = '--trust' in argv[:end]
  found = rerun(flags.run, output, trust=trust, flags=more)
  if flags.json:
    config.print_json(found.to_json())
  elif found.comparison is not None:
    print(found.comparison.text())
  return found.exit_code


if __name__ == '__main__':
  config.main(main)
