"""Forms of records with labels: rows for the heads of `lm.models.heads`.

A form says how records become rows of tokens, targets and weights; a config
names it. Each row is a function of its record alone. The forms of models that
write are in `lm.data.finetuning.pair_forms`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lm import config, types
from lm.data import names
from lm.data.finetuning import batching, passages

_UNKNOWN = -1  # the target of a label that is none of the classes


def classify(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  classes: int,
  labels: Mapping[str, Any] | Sequence[str],
  token_types: bool = False,
  ends: bool = True,
) -> batching.Form:
  """Makes rows of texts for `lm.models.heads:classify`.

  A row is `bos text eos`, or `bos text eos text eos` for a pair, whose second
  text has token type 1. Texts that are too long lose their end; of a pair, the
  longer text is cut first. A label that is none of the classes is not scored.

  Args:
    tokenizer: of the model.
    length: L, tokens a row.
    classes: C of the model, the number of labels.
    labels: in the order of the classes; or the spec of a reader, whose sorted
      labels are taken.
    token_types: tells the model which text of a pair a token belongs to, as
      BERT does.
    ends: whether a row ends with eos. A decoder's last position stands for the
      text, and the last word does that better than an eos, which is the same in
      all texts.

  Raises:
    ValueError: the number of labels is not C.
  """
  order = _labels(labels, classes)
  number = {label: n for n, label in enumerate(order)}

  def rows(records):
    texts = [text for record in records for text in record.texts]
    encoded = iter(tokenizer.encode_batch(texts))
    result = []
    for n, record in enumerate(records):
      parts = [list(next(encoded)) for _ in record.texts]
      whole = sum(map(len, parts))
      while sum(map(len, parts)) > length - len(parts) - ends:
        max(parts, key=len).pop()
      cut = whole - sum(map(len, parts))
      ids, sides = [tokenizer.bos], [0]
      for side, part in enumerate(parts):
        ids += [*part, tokenizer.eos]
        sides += [side] * (len(part) + 1)
      ids, sides = (x[: len(x) - (not ends)] for x in (ids, sides))
      result.append(
        batching.Row(
          record=n,
          ids=ids,
          token_types=sides,
          targets=[number.get(record.label, 0)],
          weights=[float(record.label in number)],
          places=[batching.NOT_SCORED] * len(ids),
          cut=cut,
        )
      )
    return result

  return batching.Form(rows, 1, order, token_types)


def tag(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  classes: int,
  labels: Mapping[str, Any] | Sequence[str],
  join: str = ' ',
  stride: int | None = None,
) -> batching.Form:
  """Makes rows of sentences for `lm.models.heads:tag`.

  Only the first token of each word is scored; its place is the number of the
  word. A sentence that is longer than a row becomes rows that overlap, and each
  word is scored in the row that shows most of its context. A label that is none
  of the classes is not scored.

  Args:
    tokenizer: of the model.
    length: L, tokens a row.
    classes: C of the model, the number of labels.
    labels: the same as in `classify`.
    join: what stands between words; '' in Chinese.
    stride: tokens from one row of a sentence to the next; None is half a row.

  Raises:
    ValueError: the number of labels is not C.

  Reference: Devlin et al. 2019, arXiv 1810.04805, section 5.3.
  """
  order = _labels(labels, classes)
  number = {label: n for n, label in enumerate(order)}
  room = length - 2  # beside bos and eos

  def rows(records):
    words = [
      word if n == 0 else join + word
      for record in records
      for n, word in enumerate(record.words)
    ]
    encoded = iter(tokenizer.encode_batch(words))
    result = []
    for n, record in enumerate(records):
      ids, places, targets = [], [], []
      for place, label in enumerate(record.tags):
        # A word that the tokenizer drops has a tag all the same, so it needs a
        # token on which it is scored.
        pieces = list(next(encoded)) or [tokenizer.pad]
        ids += pieces
        places += [place] + [batching.NOT_SCORED] * (len(pieces) - 1)
        targets += [number.get(label, _UNKNOWN)] * len(pieces)
      for first, stop, scored in passages.overlapping(len(ids), room, stride):
        part = slice(first, stop)
        inside = [
          place if i in scored else batching.NOT_SCORED
          for i, place in enumerate(places[part], first)
        ]
        result.append(
          batching.Row(
            record=n,
            ids=[tokenizer.bos, *ids[part], tokenizer.eos],
            token_types=[0] * (stop - first + 2),
            targets=[0, *(max(target, 0) for target in targets[part])],
            weights=[
              0.0,
              *(
                float(place >= 0 and target != _UNKNOWN)
                for place, target in zip(inside, targets[part], strict=True)
              ),
            ],
            places=[batching.NOT_SCORED, *inside, batching.NOT_SCORED],
          )
        )
    return result

  return batching.Form(rows, None, order)


def span(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  question: int = 64,
  stride: int | None = None,
  token_types: bool = False,
) -> batching.Form:
  """Makes rows of questions and passages for `lm.models.heads:span`.

  A row is `bos question eos passage eos`, whose passage has token type 1. The
  place of a token is the number of its piece of the passage, see
  `passages.pieces`. A passage that is longer than the row becomes rows that
  overlap. Targets are the first and the last token of the first answer, or
  position 0 twice where the row does not contain the whole answer, or the
  passage has none. Among questions without an answer, the rows of one whose
  answer is whole in none of them are not scored.

  Args:
    tokenizer: of the model.
    length: L, tokens a row.
    question: most tokens of a question, which loses its end.
    stride: tokens from one row of a passage to the next; None is half of the
      passage's part of a row.
    token_types: tells the model the question and the passage apart.

  Raises:
    ValueError: the question leaves no room for a passage.

  Reference: Devlin et al. 2019, arXiv 1810.04805, sections 4.2 and 4.3.
  """
  if question > length - 4:
    raise ValueError(f'question={question} leaves no room in length={length}')

  def rows(records):
    encoded: dict[str, tuple[list[int], list[int]]] = {}
    result = []
    questions = tokenizer.encode_batch([r.question for r in records])
    some_have_none = not all(r.answers for r in records)
    for n, (record, ids) in enumerate(zip(records, questions, strict=True)):
      # Many questions are about the same passage.
      if record.passage not in encoded:
        encoded[record.passage] = passages.encode(record.passage, tokenizer)
      text, owners = encoded[record.passage]
      before = [tokenizer.bos, *ids[:question], tokenizer.eos]
      answer = passages.find_answer(record, owners)
      room = length - len(before) - 1
      parts = list(passages.overlapping(len(text), room, stride))
      fits = [
        answer is not None and first <= answer[0] and answer[1] < stop
        for first, stop, _ in parts
      ]
      lost = bool(record.answers) and not any(fits)
      # To score such a row would teach that the question has no answer.
      weight = float(not (lost and some_have_none))
      for (first, stop, _), has_answer in zip(parts, fits, strict=True):
        targets = [0, 0]
        if answer is not None and has_answer:
          targets = [x - first + len(before) for x in answer]
        no_place = [batching.NOT_SCORED]
        result.append(
          batching.Row(
            record=n,
            ids=[*before, *text[first:stop], tokenizer.eos],
            token_types=[0] * len(before) + [1] * (stop - first + 1),
            targets=targets,
            weights=[weight, weight],
            places=no_place * len(before) + owners[first:stop] + no_place,
            # The question is cut once, though each row has it.
            cut=max(0, len(ids) - question) if first == 0 else 0,
            lost=lost,
          )
        )
    return result

  return batching.Form(rows, 2, token_types=token_types, packs=False)


def _labels(
  labels: Mapping[str, Any] | Sequence[str], classes: int
) -> tuple[str, ...]:
  """Lists the labels in the order of the classes, see `classify`.

  Raises:
    ValueError: their number is not that of the classes.
  """
  if isinstance(labels, Mapping):
    labels = config.build(labels).labels
  order = tuple(labels)
  if len(order) != classes or len(set(order)) != classes:
    raise ValueError(
      f'classes={classes}, and there are {len(set(order))} labels: '
      f'{names.short(", ".join(order))}; make them equal'
    )
  return order
