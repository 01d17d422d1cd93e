"""Prepares the corpora of the shared data folder for the configs that use them.

  python -m tools.corpora shakespeare     writes data/shakespeare
  python -m tools.corpora wikitext2       writes data/wikitext2
  python -m tools.corpora chinese         writes data/chinese

Each folder gets a tokenizer and a dataset for each split. The originals lie in
`../shared/data`, or in the folder that LM_DATA names; they are not a part of
the repository.
"""

import argparse
from collections.abc import Iterator, Sequence
import gzip
import itertools
import json
import os
from pathlib import Path
import re
import sys

from lm import config
from lm.data import writer
from lm.data.tokenizers import characters, sentencepiece
from tools import prepare_data

ROOT = Path(os.environ.get('LM_DATA', '../shared/data'))


def shakespeare(output: Path) -> None:
  """Writes tinyshakespeare, by character.

  The first 90 % are for training and the rest for validation, as in char-rnn
  and nanoGPT. Each part is one document.
  """
  text = (ROOT / 'lm_en/tinyshakespeare/input.txt').read_text(encoding='utf-8')
  cut = int(0.9 * len(text))
  path = output / 'tokenizer.json'
  if not path.exists():
    # On the whole text, like char-rnn and nanoGPT. All 65 characters occur in
    # the training part.
    characters.train([text], str(path))
  ids = characters.make(str(path))
  for name, part in (('train', text[:cut]), ('valid', text[cut:])):
    writer.write(output / name, [part], ids)


def wikitext2(output: Path, vocab: int = 8192) -> None:
  """Writes WikiText-2, whose articles are documents.

  It is read from the token files, which have `<unk>` for rare words.
  """

  def articles(split: str) -> Iterator[str]:
    path = ROOT / f'lm_en/wikitext2/wiki.{split}.tokens.gz'
    with gzip.open(path, 'rt', encoding='utf-8') as file:
      yield from split_articles(list(file))

  path = output / 'tokenizer.model'
  if not path.exists():
    sentencepiece.train(articles('train'), str(path), vocab=vocab)
  ids = sentencepiece.make(str(path))
  for split in ('train', 'valid', 'test'):
    writer.write(output / split, articles(split), ids)


def split_articles(lines: Sequence[str]) -> Iterator[str]:
  """Splits WikiText at the titles of its articles.

  ' = Title = ' with an empty line before and after it begins an article.
  ' = = Section = = ' does not, nor does a line of a text or of a table's legend
  that begins and ends with a sign of equality.
  """
  start = 0
  for n, line in enumerate(lines):
    around = [*lines[max(n - 1, 0) : n], *lines[n + 1 : n + 2]]
    is_title = re.fullmatch(r' = [^=].*[^=] = \n', line)
    is_title = is_title and not any(x.strip() for x in around)
    if is_title and any(x.strip() for x in lines[start:n]):
      yield ''.join(lines[start:n])
      start = n
  yield ''.join(lines[start:])


def chinese(output: Path, vocab: int = 8192) -> None:
  """Writes Chinese novels and Wikipedia, in simplified characters.

  A chapter or a passage is a document. `train` has both. `valid` and `test` are
  of novels, and `wikipedia` is the validation part of the passages, which have
  no test part.
  """

  def texts(part: str) -> Iterator[str]:
    with gzip.open(
      ROOT / f'lm_zh/{part}.jsonl.gz', 'rt', encoding='utf-8'
    ) as f:
      for line in f:
        yield json.loads(line)['text']

  parts = {
    'train': ('novels/train', 'wiki_passages/train'),
    'valid': ('novels/valid',),
    'test': ('novels/test',),
    'wikipedia': ('wiki_passages/valid',),
  }
  path = output / 'tokenizer.model'
  if not path.exists():
    sentencepiece.train(
      itertools.chain.from_iterable(map(texts, parts['train'])),
      str(path),
      vocab=vocab,
    )
  ids = sentencepiece.make(str(path))
  for name, files in parts.items():
    documents = itertools.chain.from_iterable(map(texts, files))
    writer.write(output / name, documents, ids)


CORPORA = {
  'chinese': chinese,
  'shakespeare': shakespeare,
  'wikitext2': wikitext2,
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.corpora',
    description=__doc__,
    epilog=config.exit_code_help('tools.corpora'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('corpus', choices=sorted(CORPORA))
  parser.add_argument('--output', help='directory to write; data/CORPUS')
  flags = parser.parse_args(argv)
  flags.output = flags.output or f'data/{flags.corpus}'

  def write(flags: argparse.Namespace) -> None:
    if not ROOT.is_dir():
      raise ValueError(f'{ROOT}: no such folder; set LM_DATA to the data')
    Path(flags.output).mkdir(parents=True, exist_ok=True)
    CORPORA[flags.corpus](Path(flags.output))
    print(f'wrote {flags.output}')

  return prepare_data.run(write, flags)


if __name__ == '__main__':
  sys.exit(main())
