"""Trains a tokenizer.

  python -m tools.train_tokenizer --input 'raw/*.txt' --vocab 8192 --kind bpe \\
      --output runs/bpe.model

The same input gives the same file, byte for byte. `--kind characters` writes
the list of characters to x.json, and `--kind words` that of the words that
occur `--least-count` times or more. Words lose text: all others are one unknown
word. The other kinds lose nothing.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys

if not __package__:  # run as a file: find the repository's packages
  sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lm import config
from lm.corpus import prepare
from lm.data.tokenizers import auto
from tools import prepare_data


def train(flags: argparse.Namespace) -> None:
  """Trains the tokenizer, writes it and prints the report.

  Raises:
    ValueError: bad input, or a vocabulary that does not fit it.
    OSError: the output cannot be written.
  """
  tokenizer, counts = prepare.train_tokenizer(
    prepare_data.inputs(flags),
    flags.output,
    vocab=flags.vocab,
    kind=flags.kind,
    coverage=flags.coverage,
    max_bytes=flags.max_bytes,
    least_count=flags.least_count,
    settings=prepare_data.settings(flags),
  )
  prepare_data.report(counts)
  print(
    f'wrote {flags.output}: {tokenizer.size:,} ids, sha256 '
    f'{tokenizer.sha256[:12]}'
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns its exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    epilog=config.exit_code_help('tools.train_tokenizer'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  prepare_data.add_input(parser)
  parser.add_argument('--output', required=True, help='x.model or x.json')
  parser.add_argument(
    '--vocab',
    type=int,
    help='number of pieces, 261 or more, 8192 if not given; of words the most '
    'ids, all if not given',
  )
  parser.add_argument('--kind', choices=auto.KINDS, default='bpe')
  parser.add_argument(
    '--coverage',
    type=float,
    default=0.9995,
    help='share of character occurrences that get pieces, from 0.98 to 1; the '
    'rest are bytes',
  )
  parser.add_argument(
    '--max-bytes',
    type=int,
    default=1_000_000_000,
    help='stop reading there: training holds the text in memory',
  )
  parser.add_argument(
    '--least-count',
    type=int,
    default=3,
    help='words that occur more seldom are unknown',
  )
  return prepare_data.run(train, parser.parse_args(argv))


if __name__ == '__main__':
  config.main(main)
