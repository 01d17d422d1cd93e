"""Draws the promise of this project: a run that is killed changes nothing.

  python -m tools.killed_run --output=docs/images/killed.png

Trains a config twice: once undisturbed, and once with `kill -9` at random steps
and the same command again after each. Draws both losses and compares the hashes
of the final checkpoints; ends with exit code 1 if they differ. Uses the text of
`make quickstart`, which it prepares when it is missing.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import random
import signal
import subprocess
import sys
import time

from matplotlib.backends import backend_agg
from matplotlib.figure import Figure

from lm import checkpoint
from lm.reporting import metrics_log
from tools import quickstart

_DEADLINE_SECONDS = 900.0


def _reached(workdir: Path) -> int:
  """Returns the last step that the run has logged, 0 before the first."""
  path = workdir / 'metrics.jsonl'
  lines = metrics_log.read(path) if path.exists() else []
  return max((line['step'] for line in lines), default=0)


def kill_at(command: Sequence[str], workdir: Path, step: int) -> int:
  """Starts a run and kills it once it has logged `step`.

  Returns:
    The last step that it had logged when it died.

  Raises:
    RuntimeError: it ended by itself, or did not get so far.
  """
  deadline = time.monotonic() + _DEADLINE_SECONDS
  process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
  try:
    while _reached(workdir) < step:
      if process.poll() is not None:
        raise RuntimeError(f'the run ended before step {step}')
      if time.monotonic() > deadline:
        raise RuntimeError(f'the run did not reach step {step} in time')
      time.sleep(0.02)
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  return _reached(workdir)


def draw(
  whole: Path, killed: Path, kills: Sequence[int], path: Path, text: str
) -> None:
  """Draws the loss of the killed run over that of the undisturbed one.

  Args:
    whole, killed: folders of the two runs.
    kills: steps at which the second was killed.
    path: picture to write.
    text: the title.
  """
  figure = Figure(figsize=(9, 3.6), layout='constrained')
  backend_agg.FigureCanvasAgg(figure)
  axes = figure.subplots()
  for workdir, style in (
    (whole, {'color': '#f2b134', 'linewidth': 6, 'label': 'never killed'}),
    (killed, {'color': '#1b3a57', 'linewidth': 1.4, 'label': 'killed'}),
  ):
    lines = metrics_log.read(workdir / 'metrics.jsonl')
    axes.plot(
      [x['step'] for x in lines], [x['loss_nats'] for x in lines], **style
    )
  for n, step in enumerate(kills):
    axes.axvline(
      step,
      color='#b23a48',
      linewidth=0.8,
      linestyle=':',
      label='kill -9' if n == 0 else None,
    )
  axes.set(xlabel='step', ylabel='training loss (nats per token)', title=text)
  axes.legend()
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns 1 where the two runs differ."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.killed_run',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--output', default='docs/images/killed.png', help='picture to write')
  add('--workdir', default='runs/killed-run', help='a folder for both runs')
  add('--config', default='configs/gpt/tiny.py')
  add('--steps', type=int, default=300)
  add('--kills', type=int, default=10)
  add('--seed', type=int, default=0, help='of the steps at which it is killed')
  args = parser.parse_args(argv)
  quickstart.prepare(Path('data/embedded'))
  folder = Path(args.workdir)
  runs = {name: folder / name for name in ('whole', 'killed')}
  commands = {
    name: [
      *(sys.executable, '-m', 'lm.train'),
      *(f'--config={args.config}', f'--workdir={workdir}'),
      *(f'--config.steps={args.steps}', '--config.log_every=2'),
      *('--config.save_every=10', '--config.keep=2'),
      *(f'--config.optim.warmup={max(args.steps // 20, 1)}',),
    ]
    for name, workdir in runs.items()
  }
  subprocess.run(commands['whole'], check=True)
  steps = random.Random(args.seed).sample(range(4, args.steps - 8), args.kills)
  kills = [
    kill_at(commands['killed'], runs['killed'], step) for step in sorted(steps)
  ]
  subprocess.run(commands['killed'], check=True)
  hashes = [checkpoint.digest(runs[x], args.steps) for x in ('whole', 'killed')]
  same = hashes[0] == hashes[1]
  text = (
    f'killed {args.kills} times, and the same bits after {args.steps} steps '
    f'(sha256 {hashes[0][:8]}...)'
    if same
    else f'DIFFERENT after {args.steps} steps'
  )
  draw(runs['whole'], runs['killed'], kills, Path(args.output), text)
  print(f'killed at steps {", ".join(map(str, kills))}')
  print(f'{args.output}: {text}')
  return 0 if same else 1


if __name__ == '__main__':
  sys.exit(main())
