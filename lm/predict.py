"""Classifies texts by a run that was tuned to: labels and their probabilities.

  python -m lm.predict --workdir=runs/polarity --text='A fine film.'
  python -m lm.predict --workdir=runs/polarity < texts.txt

Each text, or each line of the standard input, becomes a line of JSON:

  {"text": "A fine film.", "label": "pos", "probabilities": {"pos": 0.9, ...}}

With --json each line is a JSON value: a text, or a list of two texts for a run
that compares pairs. In Python:

  from lm import predict
  predict.predict('runs/polarity', ['A fine film.'])
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
import itertools
import json
import os
from pathlib import Path
import sys
from typing import Any

from lm import config
from lm.inference import classifier
from lm.runtime import compilation_cache, devices, memory

_AT_ONCE = 64  # lines that are read before their results are written


def predict(
  workdir: str | Path,
  texts: Iterable[str | Sequence[str]],
  step: int | None = None,
) -> list[dict[str, float]]:
  """Returns the probability of each label for each text, the likeliest first.

  Args:
    workdir: of the run.
    texts: texts, or pairs of texts.
    step: of the checkpoint; None is the newest sound one.

  Raises:
    config.ConfigError, errors.Failure: see `classifier.restore`.
  """
  run = classifier.restore(workdir, step)
  given = [[x] if isinstance(x, str) else list(x) for x in texts]
  with config.user_errors():
    return list(run.probabilities(given))


def _lines(flags: argparse.Namespace) -> Iterator[list[str]]:
  """Yields the texts or pairs of texts of the input.

  Raises:
    config.ConfigError: a line is not UTF-8, or not as --json says.
  """
  # As bytes, so that an error has the number of its line.
  lines = flags.text or (line.rstrip(b'\r\n') for line in sys.stdin.buffer)
  for n, line in enumerate(lines, 1):
    try:
      value: Any = line.decode() if isinstance(line, bytes) else line
    except UnicodeDecodeError as e:
      raise config.ConfigError(
        f'line {n}: not UTF-8 at byte {e.start + 1}; save the text as UTF-8'
      ) from e
    if flags.json:
      try:
        value = json.loads(line)
      except (ValueError, RecursionError):
        value = None
    one = [value] if isinstance(value, str) else value
    if (
      not isinstance(one, list)
      or not 0 < len(one) < 3
      or not all(isinstance(x, str) for x in one)
    ):
      raise config.ConfigError(
        f'line {n}: not a text or a list of two texts in JSON'
      )
    try:
      ''.join(one).encode()
    except UnicodeEncodeError as e:
      raise config.ConfigError(
        f'line {n}: half of a surrogate pair, which is no text'
      ) from e
    yield one


def _parts(lines: Iterator[list[str]]) -> Iterator[list[list[str]]]:
  """Yields lines in parts; what was read before an error comes before it.

  Raises:
    config.ConfigError: see `_lines`.
  """
  failure = None
  while failure is None:
    part = []
    try:
      for one in itertools.islice(lines, _AT_ONCE):
        part.append(one)
    except config.ConfigError as e:
      failure = e
    if part:
      yield part
    elif failure is None:
      return
  raise failure


def _write(
  part: Sequence[Sequence[str]], found: Sequence[dict[str, float]]
) -> None:
  """Writes the results of texts or pairs of texts."""
  for texts, probabilities in zip(part, found, strict=True):
    texts_ = {'text': texts[0]} if len(texts) == 1 else {'texts': texts}
    label = next(iter(probabilities))
    line = {**texts_, 'label': label, 'probabilities': probabilities}
    print(json.dumps(line, ensure_ascii=False), flush=True)


def main(argv: list[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m lm.predict',
    description=__doc__,
    epilog=config.exit_code_help('lm.predict'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  config.trust_flag(parser)
  add('--workdir', required=True)
  add('--step', type=int)
  add('--text', action='append', default=[], help='may be repeated')
  add('--json', action='store_true', help='each text or line is JSON')
  flags = parser.parse_args(argv)
  memory.prepare()
  compilation_cache.prepare()
  devices.announce()
  run = classifier.restore(flags.workdir, flags.step)
  for part in _parts(_lines(flags)):
    with config.user_errors():
      found = list(run.probabilities(part))
    try:
      _write(part, found)
    except BrokenPipeError:
      # The reader has all it wants, as `head` does. Python writes what is left
      # once more when it ends.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      return


if __name__ == '__main__':
  config.main(main)
