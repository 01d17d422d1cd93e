"""Trains a classifier of quality for the data factory.

  python -m tools.train_quality --good 'wiki/*.jsonl' --bad 'junk.jsonl' \\
      --output quality.npz

A config then has the stage `{'fn': 'lm.corpus.classifier:make', 'path':
'quality.npz'}`. Every tenth text by its hash is held out, and the program
prints how well the classifier tells these apart. With `--shuffle` the words of
bad texts are put in another order: so ordinary text serves as an example of
text without sense.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
import random
import sys

import numpy as np

from lm import config
from lm.corpus import classifier, maps, texts
from lm.data import documents
from tools import prepare_data

_HELD_OUT = 0.1


def read(
  inputs: Sequence[str], settings: documents.Settings, shuffle: bool = False
) -> tuple[list[str], list[str]]:
  """Reads texts: (for training, held out).

  Args:
    inputs: files, folders and patterns.
    settings: how files become documents.
    shuffle: whether words are put in another order.

  Raises:
    ValueError: the input is bad.
  """
  sides: tuple[list[str], list[str]] = ([], [])
  files = documents.find(inputs)
  for text in documents.read(files, settings, Counter()):
    draw = maps.draw(text)
    if shuffle:
      words = text.split(' ')
      random.Random(draw).shuffle(words)
      text = ' '.join(words)
    sides[draw < _HELD_OUT * 2**63].append(text)
  return sides


def auc(good: np.ndarray, bad: np.ndarray) -> float:
  """Computes how often a good text scores above a bad one.

  Args:
    good: scores [G].
    bad: scores [B].
  """
  ordered = np.sort(bad)
  below = np.searchsorted(ordered, good, 'left')
  equal = np.searchsorted(ordered, good, 'right') - below
  return float((below + equal / 2).sum() / (len(good) * len(bad)))


def train(flags: argparse.Namespace) -> None:
  """Trains, writes and measures the classifier.

  Raises:
    ValueError: bad input.
    OSError: the output cannot be written.
  """
  settings = prepare_data.settings(flags)
  good, good_held = read(flags.good, settings)
  bad, bad_held = read(flags.bad, settings, flags.shuffle)
  loss = classifier.train(good, bad, flags.output)
  print(
    f'wrote {flags.output}: {len(good):,} good and {len(bad):,} bad texts, '
    f'loss {loss:.4f} nats'
  )
  if good_held and bad_held:
    trained = classifier.load(flags.output)
    scores = [
      np.asarray([trained.probability(texts.Text(x)) for x in side])
      for side in (good_held, bad_held)
    ]
    right = ((scores[0] >= 0.5).mean() + (scores[1] < 0.5).mean()) / 2
    print(
      f'held out: {len(good_held):,} good and {len(bad_held):,} bad texts, AUC '
      f'{auc(*scores):.4f}, balanced accuracy {right:.1%}'
    )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.train_quality',
    description=__doc__,
    epilog=config.exit_code_help('tools.train_quality'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  for name in ('good', 'bad'):
    parser.add_argument(
      f'--{name}', action='append', required=True, help='as --input'
    )
  parser.add_argument(
    '--shuffle', action='store_true', help='the words of bad texts'
  )
  parser.add_argument('--output', required=True, help='x.npz')
  prepare_data.add_settings(parser)
  return prepare_data.run(train, parser.parse_args(argv))


if __name__ == '__main__':
  sys.exit(main())
