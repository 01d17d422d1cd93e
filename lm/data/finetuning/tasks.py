"""Fine-tuning: batches of labelled records, addressed by step.

As `lm.data.stream`, from records instead of a stream of tokens:

  c.data = {
    'fn': 'lm.data.finetuning.tasks:make',
    'records': {'fn': 'lm.data.finetuning.readers:banking77', 'path': 'train.csv'},
    'form': {'fn': 'lm.data.finetuning.tasks:classify', 'classes': 77, 'labels': ...},
    'length': 64,
  }

A form makes rows of records: one each, or several that overlap where a record
is longer than a row. A row is a function of its record alone, and a batch of
(records, form, seed, step).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import hashlib
import json
import re
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from lm import config, types
from lm.data import names, objectives, stream, windows
from lm.data.finetuning import readers as record_lib

_OPEN = 64  # groups of rows that may have room; more fill hardly better
# Of a talk; what stands before and after a turn's text.
TURNS = MappingProxyType(
  {'system': '{}\n', 'user': 'User: {}\n', 'assistant': 'Assistant: {}\n'}
)
NOT_SCORED = -1  # place of a token that stands for nothing of its record
# Words, and signs and Chinese characters one by one: where answers can end.
_PIECES = re.compile(r'[一-鿿㐀-䶿]|[^\W一-鿿㐀-䶿]+|[^\w\s]')


class Row(NamedTuple):
  """One row of a batch, before it is padded.

  Attributes:
    record: number of the record that it is of.
    ids, token_types: of its tokens; token_types are BERT's sentences.
    targets, weights: of a `types.Batch`, as many as a form scores.
    places: what each token stands for, see the form; `NOT_SCORED`: nothing.
    source: tokens of the encoder's side.
    documents: number of the document that each token is of, from 0; (): one.
  """

  record: int
  ids: list[int]
  token_types: list[int]
  targets: list[int]
  weights: list[float]
  places: list[int]
  source: Sequence[int] = ()
  documents: Sequence[int] = ()


class Form(NamedTuple):
  """How records become rows.

  Attributes:
    rows: `records -> rows`, in their order.
    scored: targets a row; None: one a token.
    labels: classes by their number; none where positions are found.
    token_types: whether the model is told of which kind each token is.
    source: S, positions of the encoder's side; None has none.
    prompt: `records -> Batch`, what a model goes on from to answer; None:
      nothing is written.
    packs: whether a row can hold several records.
  """

  rows: Callable[[Sequence[Any]], list[Row]]
  scored: int | None
  labels: tuple[str, ...] = ()
  token_types: bool = False
  source: int | None = None
  prompt: Callable[[Sequence[Any]], types.Batch] | None = None
  packs: bool = True


def make(
  *,
  records: Mapping[str, Any],
  form: Mapping[str, Any],
  tokenizer: types.Tokenizer,
  seed: int,
  batch_size: int,
  length: int,
  folds: int = 1,
  held_out: int | None = None,
  pack: bool = False,
  expected: int | None = None,
  position: Mapping[str, Any] | None = None,
) -> stream.Data:
  """Opens records for training: shuffled anew in each epoch, without end.

  Args:
    records: spec of a reader, see `lm.data.finetuning.readers`.
    form: spec of a form, one of those here.
    tokenizer: of the model.
    seed: of the order.
    batch_size: B, rows a step, over all hosts.
    length: L, tokens a row.
    folds: into how many parts records are dealt for cross-validation; their
      number modulo `folds` says which one is in.
    held_out: the part that is not trained on; None: all are.
    pack: puts several records in a row, the same ones in every epoch: less
      padding, and records a step that differ in number.
    expected: records that a step draws on average, each by itself, as
      `lm.training.privacy` wants: of more than `batch_size` a random part is left, and
      empty rows fill it up. None: epochs.
    position: what `state` gave; it has to be of the same rows in the same
      order.

  Raises:
    ValueError: the records cannot be read or made rows of, a setting is out of
      range, or `position` is of others.
  """
  objectives.check_whole('batch_size', batch_size, 1)
  found, made, rows = read(
    records,
    form,
    tokenizer,
    length,
    lambda n: held_out is None or n % folds != held_out,
  )
  check_folds(folds, held_out)
  if pack and not made.packs:
    raise ValueError(f'pack: {form["fn"]} wants rows of its own: leave it out')
  if expected is not None:
    _check_drawn(expected, batch_size, found, rows, pack)
  groups = packed(rows, made, length) if pack else [[row] for row in rows]
  if made.scored is not None:
    made = made._replace(scored=made.scored * max(map(len, groups)))
  settings = {k: v for k, v in form.items() if k != 'labels'}
  described = [
    *(found.card.sha256, settings, made.labels),
    *(length, folds, pack, *([expected] if expected else [])),
  ]
  fingerprint = hashlib.sha256(
    json.dumps([described, tokenizer.sha256], sort_keys=True).encode()
  ).hexdigest()
  identity = {
    'fingerprint': fingerprint,  # that of all folds
    'held_out': held_out,
    'batch_size': batch_size,
    'seed': seed,
  }
  for key, value in identity.items():
    if position is not None and position.get(key) != value:
      raise ValueError(
        f'data: {key} is {str(value)[:12]}, and the run began with '
        f'{str(position.get(key))[:12]}: tune anew in another --workdir'
      )
  key = np.uint64(
    int.from_bytes(hashlib.sha256(f'{seed} tasks'.encode()).digest()[:8])
  )

  def batch(step: int, host: int = 0, hosts: int = 1) -> types.Batch:
    first, stop = stream.host_rows(batch_size, host, hosts)
    if expected is not None:
      chosen = [groups[n] for n in drawn(key, step)] + [[]] * batch_size
      return assemble(chosen[first:stop], made, length, tokenizer)
    sample = step * batch_size + np.arange(first, stop, dtype=np.int64)
    epoch, place = np.divmod(sample, len(groups))
    keys = windows.hashed(key, epoch.astype(np.uint64))
    place = windows.permuted(place.astype(np.uint64), len(groups), keys)
    return assemble([groups[int(n)] for n in place], made, length, tokenizer)

  def drawn(key: np.uint64, step: int) -> np.ndarray:
    dice = np.random.Generator(np.random.Philox(key=[key, np.uint64(step)]))
    assert expected is not None
    share = expected / len(groups)
    chosen = np.flatnonzero(dice.random(len(groups)) < share)
    return dice.permutation(chosen)[:batch_size]

  def state(step: int) -> dict[str, Any]:
    tokens = step * batch_size * length
    return {**identity, 'step': step, 'tokens': tokens}

  return stream.Data(
    batch=batch,
    state=state,
    examples=(assemble([[]] * batch_size, made, length, tokenizer),),
    fingerprint=fingerprint,
    steps=None,
    text_bytes=None,
    step_tokens=batch_size * length,
    bytes_per_token=None,
    reading=list,
    drawn=None if expected is None else (len(groups), expected),
  )


def _check_drawn(expected, batch_size, found, rows, pack):
  objectives.check_whole('expected', expected, 1)
  if pack or len(rows) != len(found.records):
    raise ValueError(
      f'expected: a row has to be one record, and {len(found.records)} records '
      f'are {len(rows)} rows: set pack=False and a length that fits all'
    )
  if expected > min(batch_size, len(rows)):
    raise ValueError(
      f'expected={expected} is above batch_size={batch_size} or the '
      f'{len(rows)} records: lower it'
    )


def read(
  records: Mapping[str, Any],
  form: Mapping[str, Any],
  tokenizer: types.Tokenizer,
  length: int,
  keep: Callable[[int], bool] = lambda n: True,
) -> tuple[record_lib.Records, Form, list[Row]]:
  """Reads records and makes rows of those whose number is kept.

  Raises:
    ValueError: see `make`.
  """
  objectives.check_whole('length', length, 4)
  found = config.build(records)
  made = config.build(form, tokenizer=tokenizer, length=length)
  chosen = [x for n, x in enumerate(found.records) if keep(n)]
  if not chosen:
    raise ValueError(f'task {found.card.name}: no record is left: change folds')
  found = found._replace(records=chosen)
  return found, made, made.rows(chosen)


def check_folds(folds: int, held_out: int | None) -> None:
  """Checks a part of cross-validation.

  Raises:
    ValueError: there is no such part.
  """
  objectives.check_whole('folds', folds, 1)
  if held_out is not None and not 0 <= held_out < folds:
    raise ValueError(f'held_out={held_out} must be below folds={folds}')


def assemble(
  rows: Sequence[Sequence[Row]],
  form: Form,
  length: int,
  tokenizer: types.Tokenizer,
) -> types.Batch:
  """Pads rows to a batch [B, L], each of none, one or several records."""
  batch = objectives.padding(len(rows), length, tokenizer)
  width = length if form.scored is None else form.scored
  targets = np.zeros((len(rows), width), np.int32)
  weights = np.zeros((len(rows), width), np.float32)
  token_types = np.zeros((len(rows), length), np.int32)
  source = np.full((len(rows), form.source or 0), tokenizer.pad, np.int32)
  source_segments = np.zeros_like(source)
  for b, group in enumerate(rows):
    at = read = 0
    for number, row in enumerate(group, 1):
      here = slice(at, at + len(row.ids))
      batch.tokens[b, here] = row.ids
      inside = np.asarray(row.documents or [0] * len(row.ids), np.int32)
      batch.segments[b, here] = number + inside
      starts = np.searchsorted(inside, inside)
      batch.positions[b, here] = np.arange(len(row.ids)) - starts
      token_types[b, here] = row.token_types
      size = len(row.targets)
      first = at if form.scored is None else (number - 1) * size
      targets[b, first : first + size] = row.targets
      weights[b, first : first + size] = row.weights
      there = slice(read, read + len(row.source))
      source[b, there] = row.source
      source_segments[b, there] = number
      at, read = here.stop, there.stop
  batch = batch._replace(targets=targets, weights=weights)
  if form.token_types:
    batch = batch._replace(token_types=token_types)
  if form.source is not None:
    batch = batch._replace(source=source, source_segments=source_segments)
  return batch


def packed(rows: Sequence[Row], form: Form, length: int) -> list[list[Row]]:
  """Puts each row into the first of the last `_OPEN` groups that has room."""
  groups: list[list[Row]] = []
  room: list[list[int]] = []
  for row in rows:
    size = [len(row.ids), len(row.source)]
    n = next(
      (
        n
        for n in range(max(0, len(groups) - _OPEN), len(groups))
        if all(a <= b for a, b in zip(size, room[n], strict=True))
      ),
      len(groups),
    )
    if n == len(groups):
      groups.append([])
      room.append([length, form.source or 0])
    groups[n].append(row)
    room[n] = [b - a for a, b in zip(size, room[n], strict=True)]
  return groups


def classify(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  classes: int,
  labels: Mapping[str, Any] | Sequence[str],
  token_types: bool = False,
  ends: bool = True,
) -> Form:
  """Makes rows of texts for `models.heads.classify`.

  A row is `bos text eos`, or `bos text eos text eos` of a pair, whose second
  text is of kind 1. What is too long is cut: of a pair the longer text first.

  Args:
    tokenizer, length: of `make`.
    classes: C of the model; there have to be as many labels.
    labels: in the order of the classes; or the spec of a reader whose labels,
      sorted, they are.
    token_types: tells the model the texts of a pair apart, as BERT does.
    ends: whether the last eos is there. What a decoder has to say after it is
      the same of all texts, and its last word stands for a text better.

  Raises:
    ValueError: there are other labels, or as many not.
  """
  order = _labels(labels, classes)
  number = {label: n for n, label in enumerate(order)}

  def rows(records):
    encoded = tokenizer.encode_batch([x for r in records for x in r.texts])
    rest = iter(encoded)
    made = []
    for n, record in enumerate(records):
      parts = [list(next(rest)) for _ in record.texts]
      while sum(map(len, parts)) > length - len(parts) - ends:
        max(parts, key=len).pop()
      ids, sides = [tokenizer.bos], [0]
      for kind, part in enumerate(parts):
        ids += [*part, tokenizer.eos]
        sides += [kind] * (len(part) + 1)
      ids, sides = (x[: len(x) - (not ends)] for x in (ids, sides))
      if record.label not in number:
        raise _unknown(record.label, order)
      places = [NOT_SCORED] * len(ids)
      made.append(Row(n, ids, sides, [number[record.label]], [1.0], places))
    return made

  return Form(rows, 1, order, token_types)


def tag(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  classes: int,
  labels: Mapping[str, Any] | Sequence[str],
  join: str = ' ',
  stride: int | None = None,
) -> Form:
  """Makes rows of sentences for `models.heads.tag`.

  Each word's first token is scored; a token's place is its word's number. A
  sentence that is longer than a row becomes rows that overlap, and each word is
  scored in the one in which it has most to both of its sides.

  Args:
    tokenizer, length, classes, labels: as of `classify`.
    join: what stands between words: '' in Chinese.
    stride: tokens from one row of a sentence to the next; None is half a row.

  Raises:
    ValueError: as of `classify`.

  Reference: Devlin et al. 2019, arXiv 1810.04805, section 5.3.
  """
  order = _labels(labels, classes)
  number = {label: n for n, label in enumerate(order)}
  room = length - 2

  def rows(records):
    words = [
      word if n == 0 else join + word
      for record in records
      for n, word in enumerate(record.words)
    ]
    rest = iter(tokenizer.encode_batch(words))
    made = []
    for n, record in enumerate(records):
      ids, places, targets = [], [], []
      for place, label in enumerate(record.tags):
        if label not in number:
          raise _unknown(label, order)
        # What no token stands for is a token all the same: it has a tag.
        pieces = list(next(rest)) or [tokenizer.pad]
        ids += pieces
        places += [place] + [NOT_SCORED] * (len(pieces) - 1)
        targets += [number[label]] * len(pieces)
      for first, stop, mine in overlapping(len(ids), room, stride):
        part = slice(first, stop)
        shown = [
          place if i in mine else NOT_SCORED
          for i, place in enumerate(places[part], first)
        ]
        made.append(
          Row(
            n,
            [tokenizer.bos, *ids[part], tokenizer.eos],
            [0] * (stop - first + 2),
            [0, *targets[part]],
            [0.0, *(float(place >= 0) for place in shown)],
            [NOT_SCORED, *shown, NOT_SCORED],
          )
        )
    return made

  return Form(rows, None, order)


def span(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  question: int = 64,
  stride: int | None = None,
  token_types: bool = False,
) -> Form:
  """Makes rows of readings for `models.heads.span`.

  A row is `bos question eos passage eos`, the passage of kind 1, and a token's
  place is the number of its piece of the passage, see `pieces`. A passage that
  is longer than the row becomes rows that overlap. Targets are the first and
  the last token of the first answer, or position 0 where the row does not have
  the whole of it.

  Args:
    tokenizer, length: of `make`.
    question: most tokens of a question; the rest is cut.
    stride: tokens from one row of a passage to the next; None is half of one.
    token_types: as of `classify`.

  Raises:
    ValueError: the question leaves no room.

  Reference: Devlin et al. 2019, arXiv 1810.04805, section 4.2 and 4.3.
  """
  if question > length - 4:
    raise ValueError(f'question={question} leaves no room in length={length}')

  def rows(records):
    encoded: dict[str, tuple[list[int], list[int]]] = {}
    made = []
    asked = tokenizer.encode_batch([r.question for r in records])
    for n, (record, ids) in enumerate(zip(records, asked, strict=True)):
      if record.passage not in encoded:
        encoded[record.passage] = _encoded(record.passage, tokenizer)
      text, owner = encoded[record.passage]
      before = [tokenizer.bos, *ids[:question], tokenizer.eos]
      answer = _inside(record, text, owner)
      for first, stop, _ in overlapping(
        len(text), length - len(before) - 1, stride
      ):
        targets = [0, 0]
        if answer and first <= answer[0] and answer[1] < stop:
          targets = [x - first + len(before) for x in answer]
        size = stop - first
        made.append(
          Row(
            n,
            [*before, *text[first:stop], tokenizer.eos],
            [0] * len(before) + [1] * (size + 1),
            targets,
            [1.0, 1.0],
            [NOT_SCORED] * len(before) + owner[first:stop] + [NOT_SCORED],
          )
        )
    return made

  return Form(rows, 2, token_types=token_types, packs=False)


def translate(
  *, tokenizer: types.Tokenizer, length: int, source: int, prefix: str = ''
) -> Form:
  """Makes rows of pairs for an encoder and a decoder: text to text.

  The source is `prefix text eos`; the decoder reads bos and its targets, which
  end with eos. What is too long is cut at its end. A pair of several targets
  is trained on with its first.

  Args:
    tokenizer, length: of `make`; L is of the decoder.
    source: S, positions of the encoder.
    prefix: names the task, such as 'summarize: '.

  Raises:
    ValueError: a length is too short.

  Reference: Raffel et al. 2020, arXiv 1910.10683, section 2.4.
  """
  objectives.check_whole('source', source, 2)

  def read(records):
    found = tokenizer.encode_batch([prefix + r.source for r in records])
    return [[*ids[: source - 1], tokenizer.eos] for ids in found]

  def rows(records):
    wanted = tokenizer.encode_batch([r.targets[0] for r in records])
    made = []
    for n, (ids, asked) in enumerate(zip(wanted, read(records), strict=True)):
      ids = ids[: length - 1]
      size = len(ids) + 1
      made.append(
        Row(
          n,
          [tokenizer.bos, *ids],
          [0] * size,
          [*ids, tokenizer.eos],
          [1.0] * size,
          [NOT_SCORED] * size,
          asked,
        )
      )
    return made

  def prompt(records):
    begun = [
      [Row(n, [tokenizer.bos], [0], [0], [0.0], [NOT_SCORED], asked)]
      for n, asked in enumerate(read(records))
    ]
    return assemble(begun, form, 1, tokenizer)

  form = Form(rows, None, source=source, prompt=prompt)
  return form


def reply(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  template: str = '{source}\n',
  room: int | None = None,
) -> Form:
  """Makes rows of pairs for a decoder, whose answers alone are scored.

  A row is `bos template target eos`. A source that is too long loses its
  beginning, so that the end of the template stays; a target its end.

  Args:
    tokenizer, length: of `make`.
    template: has '{source}' where the source goes.
    room: tokens that are kept for the target; None is half of the row.

  Raises:
    ValueError: the template has no place for the source, or room is no part of
      the row.
  """
  if '{source}' not in template:
    raise ValueError(f"template={template[:60]!r} has no '{{source}}' in it")
  kept = length // 2 if room is None else room
  if not 0 < kept < length:
    raise ValueError(f'room={room} must be above 0 and below length={length}')

  def read(records):
    texts = [template.replace('{source}', r.source) for r in records]
    return [
      [tokenizer.bos, *ids[-(length - kept - 1) :]]
      for ids in tokenizer.encode_batch(texts)
    ]

  def rows(records):
    wanted = tokenizer.encode_batch([r.targets[0] for r in records])
    made = []
    for n, (ids, asked) in enumerate(zip(wanted, read(records), strict=True)):
      every = [*asked, *ids][:length]
      # Position p predicts token p + 1: the last of the source, the first.
      scored = [float(p + 1 >= len(asked)) for p in range(len(every))]
      targets = [*every[1:], ([*asked, *ids, tokenizer.eos])[len(every)]]
      size = len(every)
      places = [NOT_SCORED] * size
      made.append(Row(n, every, [0] * size, targets, scored, places))
    return made

  def prompt(records):
    return objectives.padded(read(records), tokenizer.pad)

  return Form(rows, None, prompt=prompt)


def chat(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  template: Mapping[str, str] = TURNS,
) -> Form:
  """Makes rows of talks for a decoder, where the assistant alone is scored.

  A row is bos and the turns in their templates; the assistant's ends with eos
  instead of what its template has after the text. Its text and eos are scored,
  in every turn. A talk that is too long loses its first turns, but for a
  system's; a single turn that is too long loses its end.

  Args:
    tokenizer, length: of `make`.
    template: by role, with '{}' for the text.

  Raises:
    ValueError: a role has no template, or one has no place for the text.
  """
  for role in TURNS:
    if template.get(role, '').count('{}') != 1:
      raise ValueError(f'template: {role} needs one {{}} for the text')
  around = {role: template[role].split('{}') for role in TURNS}

  def turns(record) -> list[tuple[str, list[int], list[bool]]]:
    """Encodes turns: role, ids, and whether each is scored."""
    found = []
    for role, text in record.turns:
      if role not in around:
        raise ValueError(
          f'{record.id}: role {names.short(role)} is none of {", ".join(TURNS)}'
        )
      before, after = around[role]
      answers = role == 'assistant'
      parts = [
        (tokenizer.encode(before), False),
        (tokenizer.encode(text), answers),
        ([tokenizer.eos] if answers else tokenizer.encode(after), answers),
      ]
      ids = [i for part, _ in parts for i in part]
      found.append((role, ids, [x for part, x in parts for _ in part]))
    return found

  def fit(made, room):
    """Leaves first turns out until the rest has room."""
    while len(made) > 1 and sum(len(ids) for _, ids, _ in made) > room:
      made.pop(1 if made[0][0] == 'system' and len(made) > 2 else 0)
    return made

  def rows(records):
    made = []
    for n, record in enumerate(records):
      kept = fit(turns(record), length)
      ids = [i for _, part, _ in kept for i in part][:length]
      scored = [float(x) for _, _, part in kept for x in part][:length]
      inputs = [tokenizer.bos, *ids[:-1]]
      places = [NOT_SCORED] * len(inputs)
      made.append(Row(n, inputs, [0] * len(inputs), ids, scored, places))
    return made

  def prompt(records):
    asked = tokenizer.encode(around['assistant'][0])
    begun = []
    for record in records:
      kept = fit(turns(record)[:-1], length - 1 - len(asked))
      ids = [i for _, part, _ in kept for i in part]
      begun.append([tokenizer.bos, *ids, *asked][-length:])
    return objectives.padded(begun, tokenizer.pad)

  return Form(rows, None, prompt=prompt)


def prefer(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  template: str = '{source}\n',
) -> Form:
  """Makes rows of two answers to a question, for `models.preference`.

  Document 1 is `bos template answer eos` of the better answer, document 2 of
  the worse; answers and their eos are of kind 1. Each has half of the row, and
  an answer at least half of that: a question loses its beginning, an answer its
  end.

  Args:
    tokenizer, length: of `make`.
    template: has '{source}' where the question goes.

  Raises:
    ValueError: the template has no place for the question.
  """
  if '{source}' not in template:
    raise ValueError(f"template={template[:60]!r} has no '{{source}}' in it")
  half = length // 2

  def rows(records):
    made = []
    for n, record in enumerate(records):
      asked = tokenizer.encode(template.replace('{source}', record.source))
      asked = [tokenizer.bos, *asked[-(half - half // 2 - 1) :]]
      ids, token_types, documents = [], [], []
      for number, text in enumerate((record.chosen, record.rejected)):
        answer = [*tokenizer.encode(text), tokenizer.eos][: half - len(asked)]
        ids += asked + answer
        token_types += [0] * len(asked) + [1] * len(answer)
        documents += [number] * (len(asked) + len(answer))
      places = [NOT_SCORED] * len(ids)
      row = Row(n, ids, token_types, [0], [1.0], places, documents=documents)
      made.append(row)
    return made

  return Form(rows, 1, ('chosen', 'rejected'), token_types=True, packs=False)


@functools.lru_cache(4096)
def pieces(passage: str) -> tuple[tuple[int, int], ...]:
  """Cuts a passage where an answer may begin and end: (first, stop) each.

  A word is one piece; so is a sign, and a Chinese character.
  """
  return tuple(found.span() for found in _PIECES.finditer(passage))


def overlapping(
  size: int, room: int, stride: int | None
) -> Iterator[tuple[int, int, range]]:
  """Cuts `size` tokens in rows of at most `room`.

  Args:
    size: of the record.
    room: of a row.
    stride: from one row to the next; None is half of `room`.

  Yields:
    first and stop of a row, and those of its tokens that no other row shows in
    more of their surroundings.
  """
  step = max(1, min(room, room // 2 if stride is None else stride))
  firsts = list(range(0, max(size - room, 0) + step, step)) if size else [0]
  firsts = [min(first, max(size - room, 0)) for first in firsts]
  firsts = list(dict.fromkeys(firsts))
  edge = 0
  for n, first in enumerate(firsts):
    stop = min(first + room, size)
    # Half way into what it shares with the next row.
    after = size if n + 1 == len(firsts) else (firsts[n + 1] + stop + 1) // 2
    yield first, stop, range(edge, after)
    edge = after


def _encoded(passage, tokenizer) -> tuple[list[int], list[int]]:
  """Encodes a passage piece by piece: ids, and the piece of each."""
  cut = pieces(passage)
  parts = [
    (' ' if first and passage[first - 1].isspace() else '')
    + passage[first:stop]
    for first, stop in cut
  ]
  ids, owner = [], []
  for n, part in enumerate(tokenizer.encode_batch(parts) if parts else []):
    ids += part
    owner += [n] * len(part)
  return ids, owner


def _inside(record, ids, owner) -> tuple[int, int] | None:
  """Finds the first and the last token of a reading's first answer."""
  start, text = record.answers[0]
  stop = start + len(text)
  inside = [
    n
    for n, (first, last) in enumerate(pieces(record.passage))
    if first < stop and start < last
  ]
  tokens = [i for i in range(len(ids)) if inside and owner[i] in inside]
  return (tokens[0], tokens[-1]) if tokens else None


def _labels(labels, classes) -> tuple[str, ...]:
  if isinstance(labels, Mapping):
    labels = config.build(labels).labels
  order = tuple(labels)
  if len(order) != classes or len(set(order)) != classes:
    raise ValueError(
      f'classes={classes}, and there are {len(set(order))} labels: '
      f'{names.short(", ".join(order))}; make them equal'
    )
  return order


def _unknown(label: str, order: Sequence[str]) -> ValueError:
  return ValueError(
    f'task: label {names.short(label)} is none of the {len(order)} labels '
    f'({names.short(", ".join(order))}): give those of the training records'
  )
