"""Reads the flags of lm.sweep, before jax is imported."""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys
from typing import NamedTuple

from lm import config
from lm.sweeping import halving, points, trials


class Request(NamedTuple):
  """A sweep that the program was asked for.

  Attributes:
    base: the config that its points change.
    sweep: its points, and how runs are compared.
    workdir: its folder.
    jobs: runs at a time; None: as many as cores and memory allow.
    launch: name of a launcher; None runs on this machine.
    own: the flags of the launcher.
    runs: the folder of the runs, as machines of the launcher see it; None: that
      in `workdir`.
    dry_run: whether to print the runs, and run nothing.
    words: all arguments.
  """

  base: trials.Base
  sweep: points.Sweep
  workdir: Path
  jobs: int | None = None
  launch: str | None = None
  own: tuple[str, ...] = ()
  runs: str | None = None
  dry_run: bool = False
  words: tuple[str, ...] = ()


def parse(argv: Sequence[str], description: str, epilog: str = '') -> Request:
  """Reads the arguments of lm.sweep.

  Args:
    argv: the arguments.
    description: for `--help`, before the flags.
    epilog: for `--help`, after them.

  Ends the program with one line on stderr and 2 for anything wrong, and with 0
  for `--help`.
  """
  try:
    return _parse(argv, _parser(description, epilog))
  except config.ConfigError as error:
    line = config.last_line(str(error), error.exit_code)
    print(line, file=sys.stderr, flush=True)
    sys.exit(error.exit_code)


def _parse(argv: Sequence[str], parser: argparse.ArgumentParser) -> Request:
  at = list(argv).index('--') if '--' in argv else len(argv)
  flags = [x for x in argv[:at] if not x.startswith('--config.')]
  words = [x[9:].partition('=') for x in argv[:at] if x.startswith('--config.')]
  args = parser.parse_args(flags)
  own = tuple(argv[at + 1 :])
  if own and args.launch is None:
    raise config.ConfigError(
      f'{own[0]}: what follows -- is for a launcher: give --launch as well'
    )
  overrides = [(key, value) for key, _, value in words]
  base, sweep = (
    trials.load_base(args.config, overrides, args.data),
    _sweep(args),
  )
  if args.launch is None and args.runs is not None:
    raise config.ConfigError(f'--runs={args.runs}: is of --launch: give both')
  if args.launch is not None and args.jobs is not None:
    raise config.ConfigError(
      f'--jobs={args.jobs}: is of this machine, and --launch of others'
    )
  if args.launch is not None and sweep.halving is not None:
    raise config.ConfigError(
      'halving: is of runs on this machine, and --launch of others: leave one '
      'out'
    )
  return Request(
    base=base,
    sweep=sweep,
    workdir=Path(args.workdir or _default_workdir(args.config)),
    jobs=args.jobs,
    launch=args.launch,
    own=own,
    runs=args.runs,
    dry_run=args.dry_run,
    words=tuple(argv),
  )


def _parser(description: str, epilog: str) -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m lm.sweep',
    description=description,
    epilog=epilog,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
    usage='%(prog)s --config=FILE [--over=KEY=V1,V2] [FLAGS] '
    '[-- FLAGS_OF_A_LAUNCHER]',
  )
  add = parser.add_argument
  config.trust_flag(parser)
  add('--config', required=True, help='FILE.py; its sweep() gives points')
  add('--data', help='a folder of prepared data, as for lm.train')
  add(
    '--over',
    action='append',
    default=[],
    metavar='KEY=V1,V2',
    help='values of a key; all combinations of several, and of sweep()',
  )
  add('--seeds', help='how many, from 0 on, or which: 3 or 5,6,7')
  add('--workdir', help='folder of the sweep; default: runs/sweep-CONFIG')
  add('--jobs', type=_positive, help='runs at a time on this machine')
  add('--metric', help='what runs are compared by, such as valid/loss_nats')
  add('--higher', action='store_true', help='higher values of it are better')
  add(
    '--halving',
    metavar='STEPS[:KEEP]',
    help='successive halving: 100,300:0.5 keeps half at steps 100 and 300',
  )
  add('--launch', metavar='LAUNCHER', help='slurm, tpu_vm or gke')
  add('--runs', help='folder of the runs, as machines of --launch see it')
  add('--dry-run', '--dry_run', action='store_true', help='print, run nothing')
  return parser


def _positive(text: str) -> int:
  value = int(text)
  if value < 1:
    raise ValueError(text)
  return value


def _default_workdir(file: str) -> str:
  name = file.partition('.py:')[0]
  return f'runs/sweep-{Path(name).stem}'


def _sweep(args: argparse.Namespace) -> points.Sweep:
  """Joins what the config file and the flags say."""
  own = of_file(args.config)
  parts = [] if own is None else [own.points]
  parts += [_over(text) for text in args.over]
  if args.seeds is not None:
    parts.append(points.seeds(_seeds(args.seeds)))
  if not parts:
    raise config.ConfigError(
      f'{args.config}: nothing to sweep over: give --over, --seeds, or define '
      'sweep() there'
    )
  with config.user_errors():
    found = points.product(*parts)
  own = own or points.Sweep(())
  if args.higher and args.metric is None and own.metric is None:
    raise config.ConfigError('--higher: of which metric? give --metric as well')
  return points.Sweep(
    found,
    metric=args.metric or own.metric,
    higher=args.higher or (own.higher and args.metric is None),
    halving=halving.parse(args.halving) if args.halving else own.halving,
  )


def of_file(file: str) -> points.Sweep | None:
  """Calls `sweep()` of a config file.

  Returns:
    Its sweep; None if the file defines none.

  Raises:
    config.ConfigError: it returns something else.
  """
  found = config.optional(file, 'sweep')
  if found is None:
    return None
  if not isinstance(found, points.Sweep):
    found = points.Sweep(found)
  listed = found.points
  if not isinstance(listed, list | tuple) or not all(
    isinstance(point, dict) for point in listed
  ):
    raise config.ConfigError(
      f'{file}: sweep() must return a list of dicts, as lm.sweeping.points '
      'makes them, or points.Sweep'
    )
  if found.halving is not None:
    halving.check(found.halving)
  return found


def _over(text: str) -> list[points.Point]:
  """Reads 'KEY=V1,V2'."""
  key, equals, values = text.partition('=')
  found = _split(values)
  if not key or not equals or '' in found:
    raise config.ConfigError(
      f"--over={text}: give KEY=V1,V2; quotes stand for an empty text: ''"
    )
  return points.values(key, [_unquoted(value) for value in found])


def _split(text: str) -> list[str]:
  """Splits at the commas that are in no brackets and no quotes.

  '(1,2),(3,4)' is two, and so is "'a,b',c".
  """
  parts, depth, quote = [''], 0, ''
  for letter in text:
    if quote:
      quote = '' if letter == quote else quote
    elif letter in '\'"' and (depth or not parts[-1].strip()):
      quote = letter  # elsewhere it is an apostrophe
    else:
      depth += (letter in '([{') - (letter in ')]}')
    if letter == ',' and depth == 0 and not quote:
      parts.append('')
    else:
      parts[-1] += letter
  return [part.strip() for part in parts]


def _unquoted(text: str) -> str:
  quoted = len(text) > 1 and text[0] == text[-1] and text[0] in '\'"'
  return text[1:-1] if quoted else text


def _seeds(text: str) -> int | list[int]:
  try:
    found = [int(x) for x in text.split(',') if x.strip()]
    if not found or min(found) < 0 or (',' not in text and found[0] < 1):
      raise ValueError
  except ValueError:
    raise config.ConfigError(
      f'--seeds={text}: give how many, such as 3, or which, such as 5,6,7'
    ) from None
  return found if ',' in text else found[0]
