"""Prints the words whose vectors lie nearest to a word's.

  python -m tools.neighbours --workdir=runs/glove --count=5 king Paris
  python -m tools.neighbours --workdir=runs/glove --analogy man king woman

Reads `embed/table` of a run with any model, also if it is the body of a head,
and compares by cosine. The analogy a b c looks for the vector b - a + c of unit
vectors; its own words are left out of the answer.

A word is one piece of the run's tokenizer: with a space before it, as inside a
text, or else without. A word of several pieces has no vector of its own and is
refused. The output consists of pieces, too.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm import checkpoint, config, tree

_TABLES = ('embed/table', 'body/embed/table')


class Neighbour(NamedTuple):
  """A piece and its cosine."""

  piece: str
  cosine: float


class Vectors(NamedTuple):
  """The vectors of a vocabulary's pieces.

  Attributes:
    encode: text to ids.
    decode: ids to text.
    table: float32 [V, D], of length 1, or 0.
  """

  encode: Callable[[str], list[int]]
  decode: Callable[[list[int]], str]
  table: np.ndarray

  def id_of(self, word: str) -> int:
    """Finds the piece of a word.

    Raises:
      config.ConfigError: it has several, or none.
    """
    for text in (f' {word}', word):
      ids = self.encode(text)
      if len(ids) == 1:
        return ids[0]
    pieces = [self.decode([i]) for i in ids]
    raise config.ConfigError(
      f'{word!r}: not one piece of the tokenizer but {len(pieces)}:'
      f' {" ".join(map(repr, pieces))}: give one of them'
    )

  def near(self, word: str, count: int) -> list[Neighbour]:
    """Lists the pieces nearest to that of a word, without the piece itself.

    Raises:
      config.ConfigError: a word is not one piece, see `id_of`.
    """
    place = self.id_of(word)
    return self._nearest(self.table[place], {place}, count)

  def analogy(self, a: str, b: str, c: str, count: int) -> list[Neighbour]:
    """Lists the pieces that are to c as b is to a.

    Raises:
      config.ConfigError: a word is not one piece, see `id_of`.

    Reference: Mikolov et al. 2013, NAACL N13-1090, section 4.
    """
    places = [self.id_of(word) for word in (a, b, c)]
    a_D, b_D, c_D = self.table[places]
    x_D = b_D - a_D + c_D
    x_D /= max(float(np.linalg.norm(x_D)), 1e-12)  # 0 if a is b and c is zeros
    return self._nearest(x_D, set(places), count)

  def _nearest(self, x_D, without: set[int], count: int) -> list[Neighbour]:
    cosine_V = self.table @ x_D
    nearest = []
    for place in np.argsort(-cosine_V, kind='stable').tolist():
      if len(nearest) == count:
        break
      # Ids that occur in no text, such as bos, decode to an empty piece.
      piece = self.decode([place])
      if piece and place not in without:
        nearest.append(Neighbour(piece, float(cosine_V[place])))
    return nearest


def load(workdir: str | Path) -> Vectors:
  """Reads the vectors of a run's newest checkpoint.

  Raises:
    config.ConfigError: the run has no table of words, or another tokenizer now.
    errors.Failure: there is no sound checkpoint.
  """
  tokenizer = checkpoint.restore_run(workdir).tokenizer
  table_VD = read_table(workdir)
  length_V1 = np.linalg.norm(table_VD, axis=1, keepdims=True)
  # A vector of zeros stays one: its cosine to all others is 0.
  table_VD = table_VD / np.where(length_V1 > 0, length_V1, 1)
  return Vectors(tokenizer.encode, tokenizer.decode, table_VD)


def read_table(workdir: str | Path) -> np.ndarray:
  """Reads the table of words of a run's newest checkpoint: float32 [V, D].

  Raises:
    config.ConfigError: the run has none.
    errors.Failure: there is no sound checkpoint.
  """
  params = dict(tree.paths(checkpoint.restore_params(workdir)))
  tables = [params[path] for path in _TABLES if path in params]
  if not tables:
    raise config.ConfigError(
      f'{workdir}: its model has no {" or ".join(_TABLES)}: use another run'
    )
  return np.asarray(tables[0], np.float32)


def main(argv: Sequence[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.neighbours',
    description=__doc__,
    epilog=config.exit_code_help('tools.neighbours'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('words', nargs='*', help='without spaces before them')
  parser.add_argument('--workdir', required=True)
  config.trust_flag(parser)
  parser.add_argument('--count', type=int, default=10)
  parser.add_argument('--analogy', nargs=3, metavar=('A', 'B', 'C'))
  flags = parser.parse_args(argv)
  if flags.count < 1:
    raise config.ConfigError(f'--count: {flags.count} must be at least 1')
  if not flags.words and not flags.analogy:
    raise config.ConfigError('give words, or --analogy a b c')
  vectors = load(flags.workdir)
  answers = [(word, vectors.near(word, flags.count)) for word in flags.words]
  if flags.analogy:
    a, b, c = flags.analogy
    answers.append((f'{b} - {a} + {c}', vectors.analogy(a, b, c, flags.count)))
  for title, nearest in answers:
    print(title)
    for piece, cosine in nearest:
      print(f'  {cosine:6.3f}  {piece!r}')


if __name__ == '__main__':
  config.main(main)
