"""Writes one page that shows runs: curves, results, comparisons, samples.

  python -m tools.report runs/a runs/b --output=page.html
  python -m tools.report runs/sweep --output=page.html --prompt='Once' \\
    --text='The cat sat on the mat.' --text=chapter.txt

The page is one file that needs no network. A folder without a run of its own
stands for all runs in it. Nothing in a run's folder is changed. Runs need no
evaluation: what they measured as they trained is shown, and what `lm.evaluate`
stored of them.

Runs that differ in their seed alone are one recipe. Recipes are compared, item
by item as by tools.compare, with the best one, or with that of `--baseline`. A
program reads the page in its element `data`, which is JSON.

`--prompt` and `--text` restore checkpoints: prompts are continued, and texts
show the loss of each token and what the layers' attention looks at.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lm import config
from lm.evals.reports import html as report
from lm.evals.reports import inspection, stored
from lm.reporting import html
from lm.runtime import compilation_cache, devices, memory


def main(argv: Sequence[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.report',
    description=__doc__,
    epilog=config.exit_code_help('tools.report'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  config.trust_flag(parser)
  add('runs', nargs='+', type=Path, help='folders of runs')
  add('--output', required=True, type=Path, metavar='FILE', help='the page')
  add(
    '--baseline',
    type=Path,
    metavar='RUN',
    help='the run that others are compared with',
  )
  add('--by', metavar='EVALUATOR/METRIC', help='the result that orders recipes')
  add('--prompt', action='append', default=[], help='may be repeated')
  add(
    '--text',
    action='append',
    default=[],
    metavar='TEXT',
    help='a text, or a file of text; may be repeated',
  )
  flags = parser.parse_args(argv)
  if not flags.output.parent.is_dir():
    # Checked now, and not after all checkpoints were read.
    raise config.ConfigError(
      f'--output: {flags.output.parent}: no such folder: make it'
    )
  folders, notes = stored.find(flags.runs)
  inspected = None
  if flags.prompt or flags.text:
    memory.prepare()
    compilation_cache.prepare()
    devices.announce()
    inspected = inspection.inspect(folders, flags.prompt, flags.text)
  page = report.render(
    stored.read(folders),
    notes=notes,
    asked=report.Asked(
      flags.baseline and str(flags.baseline), flags.by, inspected
    ),
  )
  html.write(flags.output, page, '--output')
  print(f'{flags.output}: {len(page.encode()) / 1e6:.1f} MB')


if __name__ == '__main__':
  config.main(main)
