"""Writes a corpus with known faults, to measure what finds them.

  python -m tools.planted_corpus --output=FOLDER --megabytes=6 --seed=0

The texts are those of the shared data folder (LM_DATA). More of them than there
are is made by copies: in each copy but the first, every word stands for another
one of about the same frequency. FOLDER gets files part-*.jsonl with `id` and
`text`, in random order, and truth.jsonl with a line for each planted thing:

  {"kind": "exact", "id", "of"}          a copy of another document
  {"kind": "reflowed", "id", "of"}       other line breaks or capitals
  {"kind": "near", "id", "of", "jaccard"}  words were changed; the similarity of
                                         the sets of 5-grams is the true one
  {"kind": "junk", "id", "form"}         no text that one wants
  {"kind": "eval", "id", "file", "row", "form"}  holds an item of an evaluation
  {"kind": "personal", "id", "type", "text"}     holds personal data
  {"kind": "canary", "text", "ids"}      a secret, once in each of 1, 4, 16 or
                                         64 documents

A document has one of these at most, so that none falsifies the count of
another. The same flags give the same bytes, with any number of workers.
"""

import argparse
import bisect
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import os
from pathlib import Path
from random import Random
import sys
from typing import Any, NamedTuple

from lm.corpus import texts
from tools import planted_faults, planted_personal, planted_texts

ROOT = Path(os.environ.get('LM_DATA', '../shared/data'))
TIMES = (1, 4, 16, 64)  # that a canary is planted
_COPY_MEGABYTES = 50.0  # of the 63 MB that there are, with what is planted
_FILES = 6  # a copy
_COUNTED = 3000  # documents that tell the frequencies of words


class Rates(NamedTuple):
  """How many of the documents get what.

  Attributes:
    exact: copied as they are.
    reflowed: copied with other line breaks, or capitals only.
    near: copied with changed words; a tenth of these three times.
    junk: accompanied by a document of junk.
    eval: given an item of an evaluation set, if there are sets.
    personal: given one to three pieces of personal data.
  """

  exact: float = 0.02
  reflowed: float = 0.02
  near: float = 0.09
  junk: float = 0.03
  eval: float = 0.01
  personal: float = 0.02


class Plan(NamedTuple):
  """A corpus to be made.

  Attributes:
    output: its folder.
    seed: of everything.
    megabytes: of one copy.
    copies: of the texts.
    rates: of faults.
    canaries: secrets for each number in `TIMES`.
    evals: files of items, JSON lines.
  """

  output: Path
  seed: int
  megabytes: float
  copies: int
  rates: Rates
  canaries: int
  evals: tuple[Path, ...]


Row = tuple[str, str]  # id, text
Truth = dict[str, Any]


class _Shared(NamedTuple):
  """Holds what all copies are made of."""

  plan: Plan
  documents: list[str]
  vocabulary: planted_texts.Vocabulary
  items: list[Truth]
  canaries: Mapping[tuple[int, int], str]  # by copy and document


def write(plan: Plan, workers: int = 1) -> list[Truth]:
  """Writes a corpus, and returns what is planted in it.

  A process needs about four times the memory of the texts of one copy.

  Raises:
    ValueError: there are not enough texts for these settings.
  """
  if plan.output.is_dir() and any(plan.output.iterdir()):
    raise ValueError(f'{plan.output} is not empty; name another folder')
  plan.output.mkdir(parents=True, exist_ok=True)
  shared = _prepare(plan)
  if workers == 1 or plan.copies == 1:
    made = [_write_copy(shared, n) for n in range(plan.copies)]
  else:
    with futures.ProcessPoolExecutor(
      min(workers, plan.copies),
      # A plain fork would copy a process whose threads hold locks.
      multiprocessing.get_context('forkserver'),
      initializer=_start,
      initargs=(shared,),
    ) as pool:
      made = list(pool.map(_write_started, range(plan.copies)))
  truth = [x for rows in made for x in rows if x['kind'] != 'canary']
  carriers: dict[str, list[str]] = {}
  for x in (x for rows in made for x in rows if x['kind'] == 'canary'):
    carriers.setdefault(x['text'], []).append(x['id'])
  truth += [
    {'kind': 'canary', 'text': text, 'ids': ids}
    for text, ids in carriers.items()
  ]
  _write_lines(plan.output / 'truth.jsonl', truth)
  return truth


def _prepare(plan: Plan) -> _Shared:
  """Reads the texts, and draws where the canaries go."""
  random = Random(f'{plan.seed} texts')
  rates = plan.rates
  # What is planted has a size too: a tenth of the near copies come in threes.
  planted = rates.exact + rates.reflowed + 1.2 * rates.near
  wanted = plan.megabytes * 1e6 / (1 + planted)
  given: list[str] = []
  size = 0
  for text in planted_texts.documents(ROOT, random):
    if size >= wanted:
      break
    given.append(text)
    size += len(text.encode())
  else:
    raise ValueError(
      f'there are only {size / 1e6:.0f} MB of texts: give --copies='
      f'{math.ceil(plan.copies * wanted / size)}'
    )
  random.shuffle(given)
  return _Shared(
    plan,
    given,
    planted_texts.Vocabulary(given[:_COUNTED]),
    [x for path in plan.evals for x in planted_faults.read_items(path)],
    _place_canaries(plan, len(given), random),
  )


def _place_canaries(
  plan: Plan, count: int, random: Random
) -> dict[tuple[int, int], str]:
  """Draws secrets, and distinct documents for them.

  Raises:
    ValueError: there are not enough documents.
  """
  total = plan.canaries * sum(TIMES)
  if total > count * plan.copies // 4:
    raise ValueError(
      f'--canaries={plan.canaries} needs {total} documents, and more than a '
      f'quarter of the {count * plan.copies} is not given; lower it'
    )
  places = iter(random.sample(range(count * plan.copies), total))
  return {
    divmod(next(places), count): secret
    for times in TIMES
    for secret in [planted_faults.secret(random) for _ in range(plan.canaries)]
    for _ in range(times)
  }


_started: _Shared | None = None  # in a worker


def _start(shared: _Shared) -> None:
  global _started
  _started = shared


def _write_started(copy: int) -> list[Truth]:
  assert _started is not None
  return _write_copy(_started, copy)


def _write_copy(shared: _Shared, number: int) -> list[Truth]:
  """Writes the files of a copy, and returns what is planted in it."""
  plan = shared.plan
  random = Random(f'{plan.seed} copy {number}')
  copy = _Copy(shared, number, random)
  substitution = planted_texts.Substitution(shared.vocabulary, random)
  for n, text in enumerate(shared.documents):
    copy.add(n, substitution.apply(text) if number else text)
  random.shuffle(copy.rows)
  for n in range(_FILES):
    _write_lines(
      plan.output / f'part-{number:03d}-{n}.jsonl',
      ({'id': i, 'text': text} for i, text in copy.rows[n::_FILES]),
    )
  return copy.truth


def _write_lines(path: Path, rows: Iterator[Truth] | list[Truth]) -> None:
  encode = json.JSONEncoder(ensure_ascii=False).encode
  part = path.with_name(f'.{path.name}.unfinished')
  with part.open('w', encoding='utf-8') as file:
    file.writelines(f'{encode(x)}\n' for x in rows)
  part.replace(path)


class _Copy:
  """Plants faults in the documents of a copy.

  Attributes:
    rows: of the corpus.
    truth: of what is planted.
  """

  def __init__(self, shared: _Shared, number: int, random: Random):
    self.rows: list[Row] = []
    self.truth: list[Truth] = []
    self._shared = shared
    self._number = number
    self._random = random
    rates = shared.plan.rates
    if not shared.items:
      rates = rates._replace(eval=0.0)
    self._bounds = list(itertools.accumulate(rates))

  def add(self, n: int, text: str) -> None:
    """Adds a document, and what is planted in it or beside it."""
    canary = self._shared.canaries.get((self._number, n))
    if canary is not None:
      carrier = self._row(self._insert(text, canary))
      self.truth.append({'kind': 'canary', 'text': canary, 'id': carrier})
      return
    drawn = self._random.random()
    chosen = bisect.bisect_right(self._bounds, drawn)
    # In the order of `Rates`.
    plants = (
      self._exact,
      self._reflowed,
      self._near,
      self._junk,
      self._eval,
      self._personal,
      self._row,
    )
    plants[chosen](text)

  def _row(self, text: str) -> str:
    name = f'{self._shared.plan.seed}/{self._number}/{len(self.rows)}'
    digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
    self.rows.append((digest, text))
    return digest

  def _insert(self, text: str, *planted: str) -> str:
    """Puts texts between the lines of another one."""
    lines = text.split('\n')
    for x in planted:
      lines.insert(self._random.randrange(len(lines) + 1), x)
    return '\n'.join(lines)

  def _exact(self, text: str) -> None:
    of = self._row(text)
    self.truth.append({'kind': 'exact', 'id': self._row(text), 'of': of})

  def _reflowed(self, text: str) -> None:
    of = self._row(text)
    if self._random.random() < 0.3:
      text = text.upper()
    text = planted_texts.wrap(text, self._random.choice((50, 70, 100)))
    self.truth.append({'kind': 'reflowed', 'id': self._row(text), 'of': of})

  def _near(self, text: str) -> None:
    """Adds copies with changed words; each pair of the family is a truth."""
    random = self._random
    family = [(self._row(text), texts.Text(text).words)]
    for _ in range(3 if random.random() < 0.1 else 1):
      drawn = random.uniform(0.35, 0.98)
      # Of two sets of one size, this share is in both. A 5-gram stays if none
      # of its words is changed.
      kept = 2 * drawn / (1 + drawn)
      vocabulary = self._shared.vocabulary
      changed = planted_texts.mutate(text, 1 - kept**0.2, vocabulary, random)
      if random.random() < 0.5:
        changed = planted_texts.wrap(changed, random.choice((50, 70, 100)))
      words = texts.Text(changed).words
      name = self._row(changed)
      self.truth += [
        {
          'kind': 'near',
          'id': name,
          'of': of,
          'jaccard': planted_texts.jaccard(others, words),
        }
        for of, others in family
      ]
      family.append((name, words))

  def _junk(self, text: str) -> None:
    self._row(text)
    form = self._random.choice(planted_faults.JUNK_FORMS)
    name = self._row(planted_faults.junk(form, text, self._random))
    self.truth.append({'kind': 'junk', 'id': name, 'form': form})

  def _eval(self, text: str) -> None:
    item = self._random.choice(self._shared.items)
    forms = [
      x for x in planted_faults.EVAL_FORMS if item['choices'] or x != 'shuffled'
    ]
    form = self._random.choice(forms)
    name = self._row(
      self._insert(text, planted_faults.rendered(item, form, self._random))
    )
    self.truth.append(
      {
        'kind': 'eval',
        'id': name,
        'file': item['file'],
        'row': item['row'],
        'form': form,
      }
    )

  def _personal(self, text: str) -> None:
    random = self._random
    kinds = random.choices(
      tuple(planted_personal.MAKERS), k=random.randrange(1, 4)
    )
    planted = [planted_personal.sentence(kind, random) for kind in kinds]
    name = self._row(self._insert(text, *(sentence for sentence, _ in planted)))
    self.truth += [
      {'kind': 'personal', 'id': name, 'type': kind, 'text': item}
      for kind, (_, item) in zip(kinds, planted, strict=True)
    ]


def _flags(argv: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m tools.planted_corpus',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--output', type=Path, required=True)
  parser.add_argument('--megabytes', type=_positive, default=6.0)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument(
    '--copies', type=int, help='of the texts; default: one for each 50 MB'
  )
  parser.add_argument(
    '--canaries', type=int, default=1, help='for each of 1, 4, 16 and 64 times'
  )
  parser.add_argument(
    '--evals', type=Path, nargs='+', default=(), help='files of JSON lines'
  )
  parser.add_argument('--workers', type=int, default=os.cpu_count() or 1)
  for name, value in Rates()._asdict().items():
    parser.add_argument(f'--{name}', type=_share, default=value)
  return parser.parse_args(argv)


def _positive(text: str) -> float:
  value = float(text)
  if not 0 < value < math.inf:
    raise argparse.ArgumentTypeError(f'{text[:40]!r} is not above 0')
  return value


def _share(text: str) -> float:
  value = float(text)
  if not 0 <= value <= 1:
    raise argparse.ArgumentTypeError(f'{text[:40]!r} is not from 0 to 1')
  return value


def main(argv: Sequence[str]) -> int:
  """Runs the program; returns its exit code."""
  flags = _flags(argv)
  copies = flags.copies or math.ceil(flags.megabytes / _COPY_MEGABYTES)
  rates = Rates(*(getattr(flags, x) for x in Rates._fields))
  plan = Plan(
    flags.output,
    flags.seed,
    flags.megabytes / copies,
    copies,
    rates,
    flags.canaries,
    tuple(flags.evals),
  )
  try:
    if sum(rates) > 1:
      raise ValueError(f'the rates add up to {sum(rates):g}; lower them to 1')
    truth = write(plan, flags.workers)
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  counts = functools.reduce(
    lambda a, x: a | {x['kind']: a.get(x['kind'], 0) + 1}, truth, {}
  )
  size = sum(x.stat().st_size for x in plan.output.glob('part-*.jsonl'))
  print(
    f'{plan.output}: {size / 1e6:.1f} MB; '
    + ', '.join(f'{count} {kind}' for kind, count in sorted(counts.items()))
  )
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
