"""Compares tokenizers: length and losses by language, pieces never learnt.

  python -m tools.tokenizer_lab --tokenizer bpe.model --tokenizer bytes \\
      --train 'raw/*.jsonl.gz' --html lab.html

measures each tokenizer on the same texts: tokens per word, character and
sentence, bits per byte, use of the vocabulary and what does not come back. Then
it lists the pieces that the training text hardly has, that no text gives, or
that are no whole characters.

The texts are ten parallel languages of FLORES-200 in the folder that LM_DATA
names, or files that `--texts` names. `--train` names the text that a model
would be trained on; without it, pieces are looked for in the texts themselves.
`--tokenizer jieba:8192` stands for that many of the most frequent Chinese words
of the training text, as the package jieba cuts it.

With `--workdir RUN` the run's tokenizer is measured too, and those pieces of
the text are listed whose vectors lie nearest to those of ids that it lacks.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
import json
import os
from pathlib import Path
import re
from typing import Any

from lm import checkpoint, config
from lm.data import documents
from lm.data.tokenizers import auto
from lm.data.tokenizers import pieces as pieces_lib
from lm.reporting import html
from lm.runtime import temporary
from tools import neighbours
from tools.tokenizer_lab import glitches, measures, page

ROOT = Path(os.environ.get('LM_DATA', '../shared/data'))
_PARALLEL = 'translation/flores200_devtest'
_JIEBA = re.compile(r'jieba:([1-9]\d{0,6})')


def study(
  tokenizers: Sequence[str],
  texts: Sequence[measures.Text],
  *,
  train: Sequence[str] = (),
  base: str | None = None,
  rare: int = 2,
  workdir: str | None = None,
) -> dict[str, Any]:
  """Measures tokenizers on texts, and looks for pieces that are not learnt.

  Args:
    tokenizers: names, see `lm.data.tokenizers.auto.load`, and 'jieba:8192'.
    texts: to measure on.
    train: documents that a model would be trained on; () takes the texts.
    base: language that others are compared with; None: there is none.
    rare: most occurrences of a piece that is listed as hardly seen.
    workdir: of a run, whose tokenizer is measured too, and whose vectors are
      searched for pieces that were not learnt, see `glitches.nearest`.

  Returns:
    `{'rows', 'glitches', ...}`: a row for each tokenizer and text, see
    `measures.measure`, and an entry for each tokenizer, see `glitches.find`.

  Raises:
    config.ConfigError: a tokenizer cannot be loaded, or has no text.
    errors.Missing: a package is not installed.
    errors.Failure: the run has no sound checkpoint.
  """
  if twice := [x for x, n in Counter(tokenizers).items() if n > 1]:
    raise config.ConfigError(f'--tokenizer: {twice[0]} is given twice')
  files = Counter(Path(name).name for name in tokenizers)
  subjects = [
    # The name is short where that is clear.
    x._replace(name=Path(x.name).name) if files[Path(x.name).name] == 1 else x
    for x in (_load(name, train) for name in tokenizers)
  ]
  tables = {}
  if workdir is not None:
    run = _of_run(workdir)
    subjects.append(run)
    tables[run.name] = neighbours.read_table(workdir)
  rows, found = [], []
  seen = train or [x for text in texts for x in text.sentences]
  for subject in subjects:
    rows += [measures.measure(subject, text) for text in texts]
    counted = measures.counts(subject, seen)
    found.append(
      {
        'tokenizer': subject.name,
        'ids': len(subject.pieces),
        'scripts': measures.used_by_script(subject, counted),
        'nearest': glitches.nearest(subject, counted, tables[subject.name])
        if subject.name in tables
        else [],
        **glitches.find(subject, counted, rare),
      }
    )
  measures.add_premiums(rows, base)
  place = {text.language: n for n, text in enumerate(texts)}
  rows.sort(key=lambda row: place[row['language']])  # tokenizers side by side
  return {
    'base': base,
    'rare': rare,
    'trained': bool(train),
    'bytes': sum(len(x.encode()) for x in seen),
    'rows': rows,
    'glitches': found,
  }


def _load(name: str, train: Sequence[str]) -> measures.Subject:
  """Loads a tokenizer with its pieces.

  Raises:
    config.ConfigError: it cannot be loaded, or has no text to be trained on.
    errors.Missing: jieba is not installed.
  """
  try:
    if match := _JIEBA.fullmatch(name):
      if not train:
        raise ValueError(f'{name} needs --train, whose words it takes')
      with temporary.folder('words-') as folder:
        path = str(Path(folder) / 'words.json')
        return measures.jieba_words(train, int(match[1]), path)
    return measures.Subject(name, auto.load(name), pieces_lib.read(name))
  except ValueError as e:
    raise config.ConfigError(f'--tokenizer: {e}') from e


def _of_run(workdir: str) -> measures.Subject:
  """Loads the tokenizer of a run.

  Raises:
    config.ConfigError: it cannot be used.
    errors.Failure: the run has no sound checkpoint.
  """
  c, tokenizer, _ = checkpoint.restore_run(workdir)
  path = c.tokenizer.get('path', 'bytes')
  return measures.Subject(workdir, tokenizer, pieces_lib.read(path))


def read(
  patterns: Sequence[str], unit: str, field: str, max_bytes: int
) -> list[str]:
  """Reads documents, up to a number of bytes.

  Raises:
    config.ConfigError: there are none, or a file cannot be read.
  """
  counts: Counter[str] = Counter()
  result, size = [], 0
  try:
    files = documents.find(patterns, counts)
    settings = documents.Settings(unit=unit, field=field)
    for text in documents.read(files, settings, counts):
      size += len(text.encode())
      if size > max_bytes and result:
        break
      result.append(text)
  except ValueError as e:
    raise config.ConfigError(str(e)) from e
  return result


def parallel() -> list[measures.Text]:
  """Reads the ten parallel languages.

  Raises:
    config.ConfigError: they are not here.
  """
  files = sorted((ROOT / _PARALLEL).glob('*.devtest'))
  if not files:
    raise config.ConfigError(
      f'{ROOT / _PARALLEL}: no texts here: name some with --texts en=FILE, or'
      ' set LM_DATA'
    )
  texts = [file.read_text(encoding='utf-8').splitlines() for file in files]
  return [
    measures.Text(file.stem, lines)
    for file, lines in zip(files, texts, strict=True)
  ]


def _texts(named: Sequence[str], field: str, most: int) -> list[measures.Text]:
  """Reads the texts that `--texts` names.

  Raises:
    config.ConfigError: one is not of the form, given twice or not readable.
  """
  result: dict[str, measures.Text] = {}
  for item in named:
    language, equals, pattern = item.partition('=')
    if not (language and equals and pattern) or language in result:
      raise config.ConfigError(
        f'--texts={item}: give NAME=FILE, with another name for each file'
      )
    lines = read([pattern], 'line', field, most)
    result[language] = measures.Text(language, lines)
  return list(result.values())


def _base(asked: str | None, texts: Sequence[measures.Text]) -> str | None:
  """Chooses the language that others are compared with: English, if any.

  Raises:
    config.ConfigError: the one that is asked for is not among the texts.
  """
  names = [text.language for text in texts]
  if asked is not None and asked not in names:
    raise config.ConfigError(
      f'--base={asked}: no such text{config.did_you_mean(asked, names)}'
    )
  english = [x for x in names if re.match(r'en(g|[_-]|$)', x)]
  return asked or next(iter(english), None)


def _flags(argv: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m tools.tokenizer_lab',
    description=__doc__,
    epilog=config.exit_code_help('tools.tokenizer_lab'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add(
    '--tokenizer',
    action='append',
    default=[],
    help="x.model, x.json, 'bytes' or 'jieba:8192'; repeatable",
  )
  add(
    '--texts',
    action='append',
    metavar='NAME=FILE',
    help='a text with a sentence a line; repeatable',
  )
  add('--base', metavar='NAME', help='text to compare with, if not English')
  add(
    '--train',
    action='append',
    default=[],
    help='file, folder or quoted pattern of training text; repeatable',
  )
  add('--field', default='text', help='of JSON and tables')
  add(
    '--max-bytes',
    type=int,
    default=20_000_000,
    help='stop reading a text, and the training text, there',
  )
  add(
    '--rare',
    type=int,
    default=2,
    help='a piece that occurs at most so often is hardly seen',
  )
  add('--workdir', help='a run: looks for pieces that it has not learnt')
  config.trust_flag(parser)
  add('--json', action='store_true', help='print JSON instead, with all pieces')
  add('--html', type=Path, metavar='FILE', help='a page to write')
  return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  flags = _flags(argv)
  if flags.rare < 0 or flags.max_bytes < 1:
    raise config.ConfigError(
      f'--rare={flags.rare} must be 0 or more, and'
      f' --max-bytes={flags.max_bytes} 1 or more'
    )
  if not flags.tokenizer and flags.workdir is None:
    raise config.ConfigError('give --tokenizer FILE, or --workdir RUN')
  texts = (
    _texts(flags.texts, flags.field, flags.max_bytes)
    if flags.texts
    else parallel()
  )
  train = []
  if flags.train:
    train = read(flags.train, 'file', flags.field, flags.max_bytes)
  report = study(
    flags.tokenizer,
    texts,
    train=train,
    base=_base(flags.base, texts),
    rare=flags.rare,
    workdir=flags.workdir,
  )
  if flags.html is not None:
    html.write(flags.html, page.render(report))
  if flags.json:
    print(json.dumps(report, ensure_ascii=False, indent=1))
  else:
    print(page.table(report))


if __name__ == '__main__':
  config.main(main)
