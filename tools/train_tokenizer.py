"""Trains a tokenizer that loses nothing.

  python -m tools.train_tokenizer --input 'raw/*.txt' --vocab 8192 --kind bpe \\
      --output runs/bpe.model

The same input gives the same file, byte for byte. `--kind characters` writes
the list of characters to x.json.
"""

import argparse
import collections
from collections.abc import Sequence
from pathlib import Path
import sys

if not __package__:  # run as a file: find the repository's packages
  sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lm import config
from lm.data import documents
from lm.data.tokenizers import auto, characters, sentencepiece
from tools import prepare_data


def train(flags: argparse.Namespace) -> None:
  """Trains, writes, loads again and prints the report.

  Raises:
    ValueError: bad input, or a vocabulary that does not fit it.
    OSError: the output cannot be written.
  """
  by_character = flags.kind == 'characters'
  suffix = '.json' if by_character else '.model'
  if not flags.output.endswith(suffix):
    raise ValueError(
      f'--output: a {flags.kind} tokenizer is loaded by its suffix {suffix}; '
      'end the name in it'
    )
  how = prepare_data.settings(flags)
  counts: collections.Counter[str] = collections.Counter()
  texts = documents.read(documents.find(flags.input), how, counts)
  if by_character:
    characters.train(texts, flags.output)
  else:
    sentencepiece.train(
      texts,
      flags.output,
      flags.vocab,
      flags.kind,
      coverage=flags.coverage,
      max_bytes=flags.max_bytes,
    )
  made = auto.load(flags.output)
  print('read')
  prepare_data.report(counts)
  print(f'wrote {flags.output}: {made.size:,} ids, sha256 {made.sha256[:12]}')


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns its exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    epilog=config.exit_code_help('tools.train_tokenizer'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  prepare_data.add_input(parser)
  parser.add_argument('--output', required=True, help='x.model or x.json')
  parser.add_argument('--vocab', type=int, default=8192)
  parser.add_argument(
    '--kind', choices=('bpe', 'unigram', 'characters'), default='bpe'
  )
  parser.add_argument(
    '--coverage',
    type=float,
    default=0.9995,
    help='share of character occurrences that get pieces; the rest are bytes',
  )
  parser.add_argument(
    '--max-bytes',
    type=int,
    default=1_000_000_000,
    help='stop reading there: training holds the text in memory',
  )
  return prepare_data.run(train, parser.parse_args(argv))


if __name__ == '__main__':
  sys.exit(main())
