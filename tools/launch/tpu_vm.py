"""Runs lm.train on a TPU VM slice: queued, installed, followed, resumed.

  python -m tools.launch.tpu_vm --name=a --type=v5p-512 --zone=us-east5-a \\
    --spot --setup='sudo install -d -o $USER /mnt/a && gcsfuse bucket /mnt/a' \\
    all -- --config=configs/gpt/llama_1b.py --workdir=/mnt/a/big

  create   asks for the slice, as a queued resource
  wait     until it is there; at most --queue_hours
  install  sends a commit to all workers and installs it
  run      starts lm.train on all workers, in the background
  logs     prints what worker 0 prints, until the run ends
  stop     SIGTERM: the run saves and ends
  resume   logs; when the slice is preempted, makes it again and goes on
  delete   gives it back
  all      create, wait, install, run and resume

`--data` copies prepared data to all workers before `run` starts lm.train: from
a bucket, or from a folder of this machine. What is there already is kept.

lm.train goes on from its workdir by itself, so that resuming is starting the
same command again. A slice that is active is never deleted by resume. Where
there are several workers, gcloud needs `ssh-add ~/.ssh/google_compute_engine`.

Ends with the exit code of lm.train, where that ended.
"""

import argparse
from collections.abc import Sequence
import contextlib

from lm import config
from tools.launch import arguments, commands, slices, tpu_machine

COMMANDS = (
  'create',
  'wait',
  'install',
  'run',
  'logs',
  'stop',
  'resume',
  'delete',
  'all',
)


def _flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  parser = arguments.make_parser('tools.launch.tpu_vm', __doc__, COMMANDS)
  parser.add_argument('--type', required=True, help='such as v5litepod-8')
  parser.add_argument('--zone', required=True, help='such as us-east5-a')
  parser.add_argument('--project', default='', help="gcloud's own if missing")
  parser.add_argument('--runtime', default='', help='TPU software version')
  parser.add_argument('--spot', action='store_true', help='cheap, preemptible')
  parser.add_argument('--commit', help='HEAD; must be clean unless given')
  parser.add_argument('--internal_ip', action='store_true')
  parser.add_argument(
    '--create_flag',
    action='append',
    default=[],
    metavar='FLAG',
    help='more for gcloud, as --create_flag=--reserved; may be repeated',
  )
  parser.add_argument(
    '--setup',
    action='append',
    default=[],
    metavar='LINE',
    help="of shell on each worker, as 'gcsfuse bucket /data'; may be repeated",
  )
  parser.add_argument(
    '--queue_hours',
    type=arguments.positive,
    default=24.0,
    help='deadline of waiting for the slice: 24',
  )
  parser.add_argument(
    '--restarts', type=int, default=100, help='of resume, at most: 100'
  )
  parser.add_argument(
    '--delete_when_done',
    action='store_true',
    help='resume and all: give the slice back after exit code 0',
  )
  flags, words = arguments.parse(parser, argv)
  arguments.name(flags.name)
  rule = 'not as Google Cloud spells it'
  arguments.check_flag('zone', flags.zone, r'[a-z]+-[a-z]+\d+-[a-z]', rule)
  if flags.project:
    arguments.check_flag(
      'project', flags.project, r'[a-z][-a-z0-9.:]{4,61}[a-z0-9]', rule
    )
  if flags.runtime:
    arguments.check_flag('runtime', flags.runtime, r'[a-z0-9][-a-z0-9.]*', rule)
  if flags.commit is not None:
    arguments.check_flag(
      'commit', flags.commit, r'\w[-\w./^~]*', 'not a commit'
    )
  for flag in flags.create_flag:
    arguments.check_flag(
      'create_flag', flag, r'--[a-z][-a-z]*(=[^\x00-\x1f\x7f]*)?', 'not a flag'
    )
  arguments.environment(flags.env, 1)
  arguments.setup_lines(flags.setup)
  if flags.restarts < 0:
    raise config.ConfigError(f'--restarts={flags.restarts}: give 0 or more')
  return flags, words


def main(argv: Sequence[str]) -> int:
  """Runs the program; `config.main` turns errors into exit codes."""
  flags, words = _flags(argv)
  slice_ = slices.find(flags.type)
  training = None
  if flags.command in ('run', 'resume', 'all'):
    arguments.check_data(flags.data, is_here=True)
    training = arguments.training(words, flags.data)
    training.sent()
    if slice_.hosts > 1 or flags.spot:
      training.shared(
        'the run is on several machines, or on one that goes', slice_.hosts
      )
  elif words:
    raise config.ConfigError(f'{flags.command}: takes nothing after --')
  machine = tpu_machine.Machine(flags, slice_, training)
  place = f'tpu_vm.{flags.project or "default"}.{flags.zone}.{flags.name}'
  with contextlib.ExitStack() as closing:
    # A run can be looked at, and stopped, while a launcher follows it.
    if flags.command not in ('wait', 'logs', 'stop'):
      closing.enter_context(commands.alone(place, machine.shell))
    try:
      return _do(flags, machine)
    except KeyboardInterrupt:
      commands.say(
        f'{flags.name}: what runs there goes on: logs and resume show it again,'
        ' stop and delete end it'
      )
      return 130


def _do(flags: argparse.Namespace, machine: tpu_machine.Machine) -> int:
  if flags.command in ('install', 'resume', 'all'):
    machine.pin()
  if flags.command in ('create', 'wait', 'install', 'run', 'stop', 'delete'):
    getattr(machine, flags.command)()
    return 0
  if flags.command == 'logs':
    found = machine.logs()
    if found is None:
      raise commands.Unreachable(f'{flags.name}: not active any more: resume')
    if all(x['state'] == 'none' for x in found):
      raise config.ConfigError(f'{flags.name}: nothing has run there: run')
    code = 0 if flags.dry_run else machine.code(found)
    if code is None:
      raise commands.Unreachable(f'{flags.name}: the run died: resume it')
    return code
  if flags.command == 'all':
    machine.create()
    machine.wait()
    machine.install()
    machine.run()
  code = machine.finish()
  if code == 0 and flags.delete_when_done:
    machine.delete()
  elif not flags.dry_run:
    commands.say(f'{flags.name}: is still there and costs money: see delete')
  return code


if __name__ == '__main__':
  config.main(main)
