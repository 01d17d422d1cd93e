"""Runs lm.train as a SLURM job on several GPU nodes, again until it is done.

  python -m tools.launch.slurm --name=a --nodes=4 --gpus=8 --time=24:00:00 \\
    -- --config=configs/gpt/llama_1b.py --workdir=/shared/runs/a

Writes FOLDER/NAME.sbatch and submits it: one process a node with all of its
GPUs. Two minutes before the time is over, or when the job is preempted, SLURM
sends SIGTERM; lm.train saves and ends with 143, and the job goes back into the
queue. It also does when a step hangs (exit code 10). Of one name a job runs at
a time, so that submitting the next one early is safe. What runs is the checkout
as it is when the job starts: leave it alone, or use one of its own for a long
run.

`--data` copies prepared data to a disk of each node first.

`--follow` prints the log until the job has left the queue, and returns the exit
code of lm.train. Log and exit code lie in FOLDER, which all nodes share.
"""

import argparse
from collections.abc import Sequence
import hashlib
from pathlib import Path
import shlex
import sys

from lm import config
from tools.launch import arguments, commands

# lm.train ends at the latest 30 s after SIGTERM, or after another process.
_WARNING_SECONDS = 120
# Options that make the job what it is: how it is stopped, found and followed.
_OWN = (
  'array',
  'dependency',
  'job-name',
  'nodes',
  'ntasks',
  'ntasks-per-node',
  'open-mode',
  'output',
  'parsable',
  'requeue',
  'no-requeue',
  'signal',
  'time',
  'wrap',
)


def script(
  flags: argparse.Namespace, training: arguments.Training, folder: Path
) -> str:
  """Writes the job."""
  settings: dict[str, object] = {
    'job-name': flags.name,
    'nodes': flags.nodes,
    'ntasks-per-node': 1,
    'gpus-per-node': flags.gpus,
    'cpus-per-task': flags.cpus,
    'time': flags.time,
    'partition': flags.partition,
    'account': flags.account,
    'output': folder / f'{flags.name}-%j.log',
    'open-mode': 'append',
    'signal': f'TERM@{_WARNING_SECONDS}',
    'dependency': 'singleton',
  }
  lines = ['#!/bin/bash']
  lines += [f'#SBATCH --{k}={v}' for k, v in settings.items() if v]
  lines += ['#SBATCH --requeue']
  lines += [f'#SBATCH {option}' for option in flags.sbatch]
  lines += [f'cd {shlex.quote(str(Path.cwd()))} || exit 2']
  # jax would give each process of a SLURM job one GPU.
  devices = ','.join(map(str, range(flags.gpus)))
  env = arguments.environment(flags.env, flags.nodes)
  env += [f'JAX_LOCAL_DEVICE_IDS={devices}'] if flags.nodes > 1 else []
  lines += [f'export {shlex.quote(pair)}' for pair in env]
  if flags.nodes > 1:  # srun hands it on, as it does all variables
    drawn = "$(od -An -N16 -tx1 /dev/urandom | tr -d ' \\n')"
    lines.append(f'export {arguments.SECRET}="{drawn}"')
  if flags.cpus:
    lines.append(f'export SRUN_CPUS_PER_TASK={flags.cpus}')
  lines += flags.setup
  python = [flags.python, '-u', '-m']
  command = shlex.join([*python, 'lm.train', *training.words])
  code = f'{folder}/{flags.name}-"$SLURM_JOB_ID".code'
  lines.append(f'rm -f {code}')
  if flags.data:
    source = flags.data
    if not source.startswith('gs:'):
      source = str(Path(source).absolute())
    # One folder for each source: what a job before has copied is still there.
    place = hashlib.sha256(source.encode()).hexdigest()[:12]
    scratch = shlex.quote(flags.scratch) if flags.scratch else '/tmp/lm-"$USER"'
    copying = shlex.join([*python, 'tools.launch.stage', source])
    command += ' --data="$data"'
    lines += [
      f'data={scratch}/data-{place}',
      '# to a disk of each node',
      f'srun --kill-on-bad-exit=1 --ntasks-per-node=1 {copying} "$data" &&',
    ]
  lines += [
    # Processes end by themselves when one fails; killing them would hide why.
    f'srun --kill-on-bad-exit=0 --wait={_WARNING_SECONDS} {command}',
    'code=$?',
    f'echo "$code" > {code}',
    '# stopped by SIGTERM, after saving; or ended because it hung',
    f'if {{ [ "$code" -eq {commands.STOPPED} ] ||'
    f' [ "$code" -eq {commands.HUNG} ]; }} &&'
    f' [ "${{SLURM_RESTART_COUNT:-0}}" -lt {flags.restarts} ]; then',
    '  scontrol requeue "$SLURM_JOB_ID"',
    'fi',
    'exit "$code"',
  ]
  return '\n'.join(lines) + '\n'


def follow(
  flags: argparse.Namespace, shell: commands.Shell, folder: Path, job: str
) -> int:
  """Prints a job's log until it has left the queue; returns its exit code.

  Raises:
    commands.Unreachable: the deadline passed, or there is no exit code.
  """
  log = folder / f'{flags.name}-{job}.log'
  shown = 0
  words = ['squeue', '--noheader', '--format=%T', f'--jobs={job}']

  def look() -> bool | None:
    nonlocal shown
    result = shell.ask(words, seconds=300, comment='until it is empty')
    # Read after asking, so that nothing comes later.
    if log.exists():
      with log.open('rb') as file:
        file.seek(shown)
        text = file.read()
      shown += len(text)
      sys.stdout.buffer.write(text)
      sys.stdout.buffer.flush()
    if result.code and 'Invalid job id' not in result.error:
      commands.say(f'{commands.title(words)}: {commands.reason(result)}')
      return None
    return None if result.output.strip() else True

  shell.wait(
    f'job {job} is still in the queue',
    look,
    seconds=3600 * flags.hours,
    fix='it goes on; scancel ends it',
  )
  code = folder / f'{flags.name}-{job}.code'
  if shell.dry_run:
    return 0
  if not code.exists():
    raise commands.Unreachable(
      f'job {job}: ended without an exit code: cancelled, or its node failed;'
      f' see {log}'
    )
  return int(code.read_text())


def _flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  parser = arguments.make_parser('tools.launch.slurm', __doc__, ())
  parser.add_argument('--nodes', type=int, default=1)
  parser.add_argument('--gpus', type=int, required=True, help='of each node')
  parser.add_argument('--cpus', type=int, default=0, help='of each node')
  parser.add_argument('--time', required=True, help='such as 24:00:00')
  parser.add_argument('--partition', default='')
  parser.add_argument('--account', default='')
  parser.add_argument(
    '--scratch',
    default='',
    help='a folder on a disk of each node, for --data: /tmp/lm-$USER',
  )
  parser.add_argument(
    '--sbatch',
    action='append',
    default=[],
    metavar='OPTION',
    help='more for sbatch, as --sbatch=--qos=high; may be repeated',
  )
  parser.add_argument(
    '--folder', default='runs/slurm', help='script, logs, exit codes'
  )
  parser.add_argument(
    '--python', default=sys.executable, help='this one, unless given'
  )
  parser.add_argument(
    '--setup',
    action='append',
    default=[],
    metavar='LINE',
    help="of shell before the run, as 'module load cuda'; may be repeated",
  )
  parser.add_argument(
    '--restarts', type=int, default=100, help='times back into the queue: 100'
  )
  parser.add_argument(
    '--follow', action='store_true', help='print the log until the job ends'
  )
  flags, words = arguments.parse(parser, argv)
  arguments.name(flags.name)
  for name in ('nodes', 'gpus'):
    arguments.check_flag(
      name, str(getattr(flags, name)), r'[1-9]\d*', 'give 1 up'
    )
  for name in ('cpus', 'restarts'):
    arguments.check_flag(name, str(getattr(flags, name)), r'\d+', 'give 0 up')
  rule = 'not as sbatch takes it: minutes, H:MM:SS or D-H:MM:SS'
  arguments.check_flag('time', flags.time, r'(\d+-)?\d+(:\d\d){0,2}', rule)
  for name in ('partition', 'account'):
    arguments.check_flag(name, getattr(flags, name), r'[-\w.,]*', 'not a name')
  arguments.setup_lines(flags.setup)
  _check_options(flags.sbatch)
  arguments.check_data(flags.data, is_here=True)
  arguments.check_flag(
    'scratch', flags.scratch, r'(/[^\x00-\x1f\x7f]*)?', 'give an absolute path'
  )
  return flags, words


def _check_options(options: Sequence[str]) -> None:
  """Refuses options of sbatch that are none, or that the script itself needs.

  Raises:
    config.ConfigError: one is.
  """
  for option in options:
    arguments.check_flag(
      'sbatch',
      option,
      r'--[a-z][-a-z]*(=[^\x00-\x1f\x7f]*)?',
      'give a long option, as --sbatch=--qos=high',
    )
    name = option[2:].partition('=')[0]
    if name in _OWN:
      raise config.ConfigError(
        f'--sbatch=--{name}: the job cannot do without its own: see --help'
      )


def main(argv: Sequence[str]) -> int:
  """Runs the program; `config.main` turns errors into exit codes."""
  flags, words = _flags(argv)
  training = arguments.training(words, flags.data)
  folder = Path(flags.folder).absolute()
  rule = 'SLURM reads % and blanks in a path: use letters, digits and -_.+/'
  arguments.check_flag('folder', str(folder), r'[-\w.+/]+', rule)
  shell = commands.Shell(
    dry_run=flags.dry_run, pause_seconds=flags.poll_seconds
  )
  with commands.alone(f'slurm.{flags.name}', shell):
    path = folder / f'{flags.name}.sbatch'
    shell.write(path, script(flags, training, folder))
    # A try that was submitted after all waits behind this job, and then finds
    # nothing to do.
    out = shell.run(['sbatch', '--parsable', str(path)])
  job = 'JOB' if flags.dry_run else out.strip().partition(';')[0]
  if not flags.dry_run:
    if not job.isdecimal():
      raise commands.Unreachable(f'sbatch: answered {job[:60]!r}: no job id')
    print(job, flush=True)
    commands.say(f'job {job}: its log is {folder}/{flags.name}-{job}.log')
  if not flags.follow:
    return 0
  try:
    return follow(flags, shell, folder, job)
  except KeyboardInterrupt:
    commands.say(f'job {job} goes on; scancel {job} ends it')
    return 130


if __name__ == '__main__':
  config.main(main)
