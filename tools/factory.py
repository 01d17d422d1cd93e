"""Builds a dataset from raw text: cleaned, deduplicated, audited shards.

  python -m tools.factory --config=configs/data/english.py \\
      --output=data/english --workers=2

The config lists the sources and the stages (configs/data/base.py has every
key). The folder gets the datasets, their tokenizer, an index of all documents,
audit.json and audit.html, which say what was dropped and why. The same config
and the same sources give the same bytes, with any number of workers and on any
engine. After a kill the same command goes on with what is finished, and after a
change of the config or the sources it makes only what depends on it.
"""

import argparse
from collections.abc import Sequence
import os
import sys

from lm import config
from lm.corpus import build, engines, workers
from lm.data import standard_input
from lm.reporting import progress
from lm.runtime import logins, regular_files


class Lines:
  """Shows the steps of a build, each on a line of its own."""

  def __init__(self):
    self._name = ''
    self._line = progress.Progress(0)

  def __call__(
    self, name: str, count: int, done: int, words: list[str], is_over: bool
  ) -> None:
    """Shows how far a step is; see `lm.corpus.progress.Say`."""
    if not done and not sys.stderr.isatty():
      return  # a log shows what is done
    if name != self._name:
      self._name = name
      self._line = progress.Progress(count, name=name)
    if done < count or is_over:
      self._line.update(done, words=words)
    if is_over:
      self._line.close()


def report(result: build.Result) -> None:
  """Prints what a build wrote."""
  for name, manifest in result.datasets.items():
    print(
      f'{name}: {manifest.documents:,} documents, {manifest.text_bytes:,} '
      f'bytes, {manifest.tokens:,} tokens in {len(manifest.shards)} shards, '
      f'fingerprint {manifest.fingerprint[:15]}'
    )
  print(
    f'wrote {result.output} in {result.seconds:.1f} s; '
    f'{result.output}/audit.html says what was dropped and why'
  )


def _check_inputs(c: config.Config) -> None:
  """Refuses what cannot be read again after a kill.

  Raises:
    ValueError: a source is standard input.
  """
  for name, source in c.sources.items():
    inputs = source.inputs
    for x in [inputs] if isinstance(inputs, str) else inputs:
      if standard_input.is_named(x):
        raise ValueError(
          f'sources.{name}.inputs={x}: standard input cannot be read again '
          'after a kill; write it to a file and name that'
        )


def main(argv: Sequence[str]) -> int:
  """Runs the program; returns its exit code."""
  workers.without_pandas()
  parser = argparse.ArgumentParser(
    prog='python -m tools.factory',
    description=__doc__,
    epilog=config.exit_code_help('tools.factory'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    '--config',
    required=True,
    help='a file, such as configs/data/english.py, or the config.json of a '
    'build, to repeat it',
  )
  parser.add_argument('--output', required=True, help='folder of the build')
  parser.add_argument(
    '--workers',
    type=int,
    default=os.cpu_count(),
    help='processes that work at once; default: one for each core',
  )
  parser.add_argument('--engine', choices=engines.KINDS, default='duckdb')
  parser.add_argument(
    '--spark',
    metavar='ADDRESS',
    help='of a cluster, such as spark://host:7077, whose machines all see the '
    'output and the sources under the same paths; default: Sail, in this '
    'process',
  )
  config.trust_flag(parser)
  flags, rest = parser.parse_known_args(argv)
  overrides = []
  for word in rest:
    key, equals, value = word.partition('=')
    if not key.startswith('--config.') or not equals:
      parser.error(
        f'unknown argument {logins.hidden(word)}; give --config.KEY=VALUE'
      )
    overrides.append((key.removeprefix('--config.'), value))
  if flags.spark and flags.engine != 'spark':
    parser.error('--spark needs --engine=spark')
  c = config.load(flags.config, overrides, required=(), is_build=True)
  with config.user_errors(), regular_files.writing(flags.output):
    _check_inputs(c)
    result = build.run(
      c,
      flags.output,
      workers=flags.workers,
      engine=flags.engine,
      address=flags.spark,
      say=Lines(),
    )
  report(result)
  return 0


if __name__ == '__main__':
  config.main(main)
