"""Tests proposals for a training recipe, so that a win is a win.

  python -m tools.arena new BOARD --config=configs/gpt/tiny.py --data=FOLDER \\
    --sealed=FOLDER/test --task='tiny, 500 steps' --tuned='peak, 8 values'
  python -m tools.arena run BOARD
  python -m tools.arena propose BOARD warmer --effect=0.01 \\
    --config.optim.peak=0.02 --why='the sweep ended at its edge'
  python -m tools.arena run BOARD

A board holds a task, a baseline, and a test split that only decisions read. A
proposal is a config, keys that are changed, or a patch; it states how large a
gain it promises. `run` does what the board asks for, each run in a folder of
lm.train, until every proposal is decided; killed at any time, the same command
goes on, and `resume` is another word for it. All decisions of a board together
accept a proposal that is no better with a chance of 5 % at most, however many
are made. What happens is added to BOARD/ledger.jsonl, whose lines are a chain
of hashes.

`new` also takes --evaluator, --metric, --budget, --allow, --allow-path,
--trust, --level, --power, --baseline-runs and --most-runs; `propose` takes
--patch; `run` takes --runs; `verify` takes --head; and all take --json.

docs/arena.md says how it works and what it does not protect from.
"""

import argparse
from collections.abc import Callable, Sequence
import json
from pathlib import Path
from typing import Any

from lm import config
from tools.arena import (
  admission,
  board,
  evidence,
  ledger,
  procedure,
  proposals,
  running,
)


def _new(flags: argparse.Namespace) -> None:
  """Makes a board."""
  _check_rules(flags)
  made = admission.new(
    flags.board,
    admission.NewBoard(
      task=flags.task,
      tuned=flags.tuned,
      config=flags.config,
      overrides=flags.overrides,
      data=flags.data,
      sealed=flags.sealed,
      evaluator=flags.evaluator,
      metric=flags.metric,
      budget=flags.budget,
      keys=flags.allow or proposals.KEYS,
      paths=flags.allow_path or proposals.PATHS,
      trusted=flags.trust,
      rules=procedure.Rules(
        flags.level, flags.power, flags.baseline_runs, flags.most_runs
      ),
    ),
  )
  _print(flags, made.settings, f'{flags.board}: a new board; now: run')


def _check_rules(flags: argparse.Namespace) -> None:
  for name in ('level', 'power'):
    if not 0 < getattr(flags, name) < 1:
      raise config.ConfigError(f'--{name}: give a number between 0 and 1')
  if flags.baseline_runs < 4 or flags.most_runs < 2:
    raise config.ConfigError(
      '--baseline-runs must be at least 4, and --most-runs at least 2'
    )
  # The best order of all that a first test can see must suffice.
  rules = flags.baseline_runs, flags.most_runs
  level = evidence.granted(flags.level, 1, 1)
  if procedure.most_evidence(*rules) < evidence.needed(level):
    raise config.ConfigError(
      f'--baseline-runs={rules[0]} and --most-runs={rules[1]} can show nothing '
      f'at level {flags.level}: raise one of them'
    )


def _propose(flags: argparse.Namespace) -> None:
  """Admits a proposal."""
  event = admission.propose(
    flags.board,
    admission.NewProposal(
      name=flags.name,
      effect=flags.effect,
      why=flags.why,
      config=flags.config,
      overrides=flags.overrides,
      patch=flags.patch,
    ),
  )
  plan, changed = event['plan'], event['changed']
  lines = [f'{key}: {a} -> {b}' for key, (a, b) in changed.items()]
  lines.append(
    f'{flags.name}: admitted; a gain of {flags.effect:.2%} is found with a '
    f'chance of {plan["power"]:.0%}, mostly within {plan["runs"]} runs and '
    f'those that confirm; a run deviates by {plan["deviation"]:.2%}'
  )
  _print(flags, event, '\n'.join(lines))


def _run(flags: argparse.Namespace) -> None:
  """Does runs."""

  def say(line: str) -> None:
    if not flags.json:
      print(line, flush=True)

  made = running.run(flags.board, flags.runs, say)
  _print(flags, made.status(), _status_text(made.status()))


def _status(flags: argparse.Namespace) -> None:
  """Shows where a board stands."""
  status = board.Board(flags.board).status()
  _print(flags, status, _status_text(status))


def _status_text(status: dict[str, Any]) -> str:
  base = status['baseline']
  lines = [
    f'{status["task"]}: baseline {base["name"]}, {base["runs"]} of '
    f'{base["of"]} runs'
  ]
  if base['deviation'] is not None:
    lines[0] += (
      f', sealed {status["metric"]} {base["sealed"]:.4f}, deviation of a run '
      f'{base["deviation"]:.2%}'
    )
  lines.append(
    f'tests: {status["tests"]}; they have spent {status["spent"]:.4f} of the '
    f'level {status["level"]}'
  )
  for row in status['proposals']:
    text = f'  {row["name"]:24} {row["state"]:9}'
    text += f' {sum(row["runs"].values()):3} runs'
    if row['relative'] is not None:
      text += f'  gain {row["relative"]:+.2%}'
    if row['reason']:
      text += f'  {row["stage"]}: {row["reason"]}'
    lines.append(text)
  return '\n'.join(lines)


def _ledger(flags: argparse.Namespace) -> None:
  """Prints the ledger."""
  events = ledger.read(flags.board)
  if flags.json:
    print(json.dumps(events, indent=1))
    return
  for event in events:
    hidden = ('number', 'previous', 'hash', 'time', 'event', 'config', 'patch')
    hidden += ('evals', 'code', 'digest', 'log_needed')
    about = [f'{k}={v}' for k, v in event.items() if k not in hidden]
    print(f'{event["number"]:5} {event["time"]} {event["event"]}', *about)
  print(f'head {ledger.head(events)}')


def _verify(flags: argparse.Namespace) -> None:
  """Verifies the ledger."""
  events = ledger.read(flags.board)
  hashes = [event['hash'] for event in events]
  if flags.head is not None and flags.head not in hashes:
    raise config.ConfigError(
      f'--head={flags.head[:12]}: no line of this ledger has this hash: it was '
      'cut or made anew'
    )
  head = ledger.head(events)
  _print(
    flags, {'lines': len(events), 'head': head}, f'{len(events)} lines, {head}'
  )


def _withdraw(flags: argparse.Namespace) -> None:
  """Takes a proposal back."""
  event = admission.withdraw(flags.board, flags.name)
  _print(flags, event, f'{flags.name}: withdrawn')


def _print(flags: argparse.Namespace, value: Any, text: str) -> None:
  print(json.dumps(value, indent=1) if flags.json else text, flush=True)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m tools.arena',
    description=__doc__,
    epilog=config.exit_code_help('tools.arena'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  commands = parser.add_subparsers(dest='command', required=True)

  def command(name: str, program: Callable[..., None], help_: str):
    made = commands.add_parser(name, help=help_, allow_abbrev=False)
    made.add_argument('board', type=Path, metavar='BOARD', help='its folder')
    made.add_argument('--json', action='store_true', help='print JSON instead')
    made.set_defaults(program=program)
    return made

  _add_new(command('new', _new, 'make a board').add_argument)
  add = command('propose', _propose, 'add a proposal').add_argument
  add('name', metavar='NAME', help='of the proposal')
  add('--effect', type=float, required=True, help='the gain; 0.01 is 1 %%')
  add('--config', metavar='FILE', help='default: the config of the baseline')
  add('--patch', type=Path, metavar='FILE', help='as git diff prints it')
  add('--why', default='', help='what it rests on, in a sentence')
  for name in ('run', 'resume'):
    add = command(name, _run, 'do what is pending').add_argument
    add('--runs', type=int, metavar='N', help='at most so many runs now')
  command('status', _status, 'show where a board stands')
  command('ledger', _ledger, 'print all that happened')
  add = command('verify', _verify, 'check the chain of hashes').add_argument
  add('--head', metavar='HASH', help='that the ledger must hold')
  add = command('withdraw', _withdraw, 'take a proposal back').add_argument
  add('name', metavar='NAME', help='of the proposal')
  return parser


def _add_new(add: Callable[..., Any]) -> None:
  add('--config', required=True, metavar='FILE', help='of the baseline')
  add('--data', metavar='FOLDER', help='as for lm.train')
  add('--sealed', type=Path, required=True, help='folder of the test split')
  add('--task', required=True, help='in a few words')
  add('--tuned', required=True, help='how the baseline was tuned')
  add('--evaluator', default='valid', help='of the config, for valid data')
  add('--metric', default='loss_nats', help='of it; lower is better')
  add('--budget', choices=('tokens', 'flops'), default='tokens')
  add('--allow', action='append', metavar='KEY', help='that may change')
  add('--allow-path', action='append', metavar='PATH', help='for patches')
  add('--trust', action='append', default=[], metavar='WORD')
  usual = procedure.DEFAULT
  add('--level', type=float, default=usual.level)
  add('--power', type=float, default=usual.power)
  add('--baseline-runs', type=int, default=usual.baseline_runs, metavar='N')
  add('--most-runs', type=int, default=usual.most_runs, metavar='N')


def main(argv: Sequence[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = _parser()
  words = [x for x in argv if not x.startswith('--config.')]
  overrides = [
    x.removeprefix('--config.').partition('=')[::2]
    for x in argv
    if x.startswith('--config.')
  ]
  flags = parser.parse_args(words)
  if overrides and flags.command not in ('new', 'propose'):
    parser.error(f'--config.{overrides[0][0]}: only with new and propose')
  flags.overrides = overrides
  flags.program(flags)


if __name__ == '__main__':
  config.main(main)
