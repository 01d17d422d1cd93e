"""The main job from nothing: text, dataset, training, sweep, samples.

  make quickstart

Needs no download beyond packages: the text is the documentation that Python,
numpy, scipy and jax carry (tools/embedded_text.py). Every stage is a command
that is printed before it runs, so that each can be run by hand; finished ones
are not run again. Trains configs/gpt/tiny.py.
"""

import argparse
import bz2
from collections.abc import Sequence
import json
from pathlib import Path
import subprocess
import sys
import time

from lm.evals import records
from lm.reporting import plot


def bzip2_bits_per_byte(path: Path) -> float:
  """Compresses the texts of a .jsonl file, laid end to end, with bzip2 -9."""
  with path.open(encoding='utf-8') as f:
    text = ''.join(json.loads(line)['text'] for line in f).encode()
  return 8 * len(bz2.compress(text, 9)) / len(text)


def _run(*command: str) -> None:
  """Runs `python -m ...`; a stage that fails ends the quickstart."""
  print(f'\n$ python -m {" ".join(command)}', flush=True)
  code = subprocess.run([sys.executable, '-m', *command]).returncode
  if code:
    sys.exit(code)


def prepare(data: Path) -> None:
  """Writes texts and builds their dataset in `data`, where it is missing."""
  if not (data / 'raw/valid.jsonl').exists():
    _run('tools.embedded_text', f'--output={data / "raw"}')
  if not (data / 'audit.json').exists():  # is written last
    _run(
      'tools.factory',
      f'--config=configs/data/embedded.py:{data / "raw"}',
      f'--output={data}',
    )


def main(argv: Sequence[str] | None = None) -> None:
  """Runs all stages and prints what came out."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.quickstart',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--workdir', default='runs/quickstart')
  parser.add_argument(
    '--steps', type=int, help='fewer than the config says, for a quick look'
  )
  args = parser.parse_args(argv)
  began = time.monotonic()
  data, workdir = Path('data/embedded'), Path(args.workdir)
  prepare(data)
  steps = [f'--config.steps={args.steps}'] if args.steps else []
  if args.steps:
    steps.append(f'--config.optim.warmup={args.steps // 10}')
  _run(
    'lm.train',
    '--config=configs/gpt/tiny.py',
    f'--workdir={workdir}',
    *steps,
  )
  page = workdir / 'page.html'
  _run(
    'lm.evaluate', f'--workdir={workdir}', f'--data={data}', f'--html={page}'
  )
  bar = bzip2_bits_per_byte(data / 'raw/valid.jsonl')
  last = records.read(workdir)[-1]
  found = last['metrics']['valid/bits_per_byte']
  picture = plot.report(workdir, bzip2_bits_per_byte=bar)
  print(
    f'\nheld-out text, bits per byte: model {found:.3f}, bzip2 -9 {bar:.3f} '
    f'({"below" if found < bar else "NOT below"} it)\n'
    f'picture: {picture}\npage: {page}'
  )
  _run(
    'lm.sample',
    f'--workdir={workdir}',
    '--prompt=Return the',
    '--temperature=0.7',
    '--top_p=0.95',
    '--length=80',
    '--count=3',
  )
  print(f'\ndone in {time.monotonic() - began:.0f} s')


if __name__ == '__main__':
  main()
