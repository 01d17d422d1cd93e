"""Forms of pairs, conversations and preferences: rows for models that write.

See `lm.data.finetuning.forms` for what a form is.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from lm import types
from lm.data import names, objectives
from lm.data.finetuning import batching

# What stands before and after the text of a turn, by role.
TURNS = MappingProxyType(
  {'system': '{}\n', 'user': 'User: {}\n', 'assistant': 'Assistant: {}\n'}
)

# The role of an encoded turn, its ids, and whether each id is scored.
_Turn = tuple[str, list[int], list[bool]]


def translate(
  *, tokenizer: types.Tokenizer, length: int, source: int, prefix: str = ''
) -> batching.Form:
  """Makes rows of pairs for an encoder and a decoder: text to text.

  The source is `prefix text eos`. The decoder reads bos and the target, and its
  targets end with eos. Texts that are too long lose their end. Of several
  targets, the first is trained on.

  Args:
    tokenizer: of the model.
    length: L, positions of the decoder.
    source: S, positions of the encoder.
    prefix: names the task, such as 'summarize: '.

  Raises:
    ValueError: a length is too short.

  Reference: Raffel et al. 2020, arXiv 1910.10683, section 2.4.
  """
  objectives.check_whole('source', source, 2)

  def encoded(records):
    return tokenizer.encode_batch([prefix + r.source for r in records])

  def ended(ids):
    return [*ids[: source - 1], tokenizer.eos]

  def rows(records):
    targets = tokenizer.encode_batch([r.targets[0] for r in records])
    whole = encoded(records)
    result = []
    for n, (target, ids) in enumerate(zip(targets, whole, strict=True)):
      cut = max(0, len(target) - (length - 1)) + max(0, len(ids) - (source - 1))
      target = target[: length - 1]
      size = len(target) + 1
      result.append(
        batching.Row(
          record=n,
          ids=[tokenizer.bos, *target],
          token_types=[0] * size,
          targets=[*target, tokenizer.eos],
          weights=[1.0] * size,
          places=[batching.NOT_SCORED] * size,
          source=ended(ids),
          cut=cut,
        )
      )
    return result

  def prompt(records):
    beginning = batching.Row(
      record=0,
      ids=[tokenizer.bos],
      token_types=[0],
      targets=[0],
      weights=[0.0],
      places=[batching.NOT_SCORED],
    )
    groups = [[beginning._replace(source=ended(x))] for x in encoded(records)]
    return batching.assemble(groups, form, 1, tokenizer)

  form = batching.Form(rows, None, source=source, prompt=prompt)
  return form


def reply(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  template: str = '{source}\n',
  room: int | None = None,
) -> batching.Form:
  """Makes rows of pairs for a decoder, of which only the target is scored.

  A row is `bos template target eos`. A source that is too long loses its
  beginning, so that the end of the template stays; a target loses its end.

  Args:
    tokenizer: of the model.
    length: L, tokens a row.
    template: text with '{source}' in the place of the source.
    room: tokens that are kept free for the target; None is half of the row.

  Raises:
    ValueError: the template has no '{source}', or the room is not a part of the
      row.
  """
  _check_template(template)
  kept = length // 2 if room is None else room
  if not 0 < kept < length:
    raise ValueError(f'room={room} must be above 0 and below length={length}')

  def encoded(records):
    texts = [template.replace('{source}', r.source) for r in records]
    return tokenizer.encode_batch(texts)

  def begun(ids):
    return [tokenizer.bos, *_end(ids, length - kept - 1)]

  def rows(records):
    answers = tokenizer.encode_batch([r.targets[0] for r in records])
    result = []
    both = zip(answers, encoded(records), strict=True)
    for n, (answer, whole) in enumerate(both):
      source = begun(whole)
      text = [*source, *answer, tokenizer.eos]
      ids = [*source, *answer][:length]
      size = len(ids)
      # Position p predicts token p + 1, so the last one of the source predicts
      # the first one of the target.
      scored = [float(p + 1 >= len(source)) for p in range(size)]
      result.append(
        batching.Row(
          record=n,
          ids=ids,
          token_types=[0] * size,
          targets=text[1 : size + 1],
          weights=scored,
          places=[batching.NOT_SCORED] * size,
          cut=1 + len(whole) + len(answer) - size,
        )
      )
    return result

  def prompt(records):
    prompts = [begun(ids) for ids in encoded(records)]
    return objectives.padded(prompts, tokenizer.pad)

  return batching.Form(rows, None, prompt=prompt)


def chat(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  template: Mapping[str, str] = TURNS,
) -> batching.Form:
  """Makes rows of conversations for a decoder, which learns the answers.

  A row is bos and the turns in their templates. A turn of the assistant ends
  with eos instead of what its template has after the text. In each of its
  turns, the text and the eos are scored. A conversation that is too long loses
  its first turns, except a system's turn. If the last turn does not fit either,
  it loses its end, and a system's turn that takes more than half of the row
  goes too.

  Args:
    tokenizer: of the model.
    length: L, tokens a row.
    template: by role, text with '{}' in the place of the turn's text.

  Raises:
    ValueError: a role has no template, or a template has no '{}'.
  """
  around = _split_templates(template)

  def encode(record) -> list[_Turn]:
    turns = []
    for role, text in record.turns:
      if role not in around:
        raise ValueError(
          f'{record.id}: role {names.short(role)} is unknown; give one of '
          f'{", ".join(TURNS)}'
        )
      before, after = around[role]
      answers = role == 'assistant'
      parts = [
        (tokenizer.encode(before), False),
        (tokenizer.encode(text), answers),
        ([tokenizer.eos] if answers else tokenizer.encode(after), answers),
      ]
      ids = [i for part, _ in parts for i in part]
      turns.append((role, ids, [x for part, x in parts for _ in part]))
    return turns

  def rows(records):
    result = []
    for n, record in enumerate(records):
      turns = encode(record)
      whole = sum(len(part) for _, part, _ in turns)
      turns = _fitted(turns, length)
      ids = [i for _, part, _ in turns for i in part][:length]
      scored = [float(x) for _, _, part in turns for x in part][:length]
      inputs = [tokenizer.bos, *ids[:-1]]
      result.append(
        batching.Row(
          record=n,
          ids=inputs,
          token_types=[0] * len(inputs),
          targets=ids,
          weights=scored,
          places=[batching.NOT_SCORED] * len(inputs),
          cut=whole - len(ids),
        )
      )
    return result

  def prompt(records):
    opening = tokenizer.encode(around['assistant'][0])
    prompts = []
    room = max(0, length - 1 - len(opening))
    for record in records:
      turns = _fitted(encode(record)[:-1], room)
      ids = [i for _, part, _ in turns for i in part][:room]
      prompts.append([tokenizer.bos, *ids, *opening][:length])
    return objectives.padded(prompts, tokenizer.pad)

  return batching.Form(rows, None, prompt=prompt)


def prefer(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  template: str = '{source}\n',
) -> batching.Form:
  """Makes rows of two answers to a question, for `lm.models.preference`.

  Document 1 is `bos template answer eos` with the better answer, document 2 the
  same with the worse one. Answers and their eos have token type 1. Each
  document has half of the row, and its answer at least half of that: a question
  loses its beginning, an answer its end.

  Args:
    tokenizer: of the model.
    length: L, tokens a row.
    template: text with '{source}' in the place of the question.

  Raises:
    ValueError: the template has no '{source}'.
  """
  _check_template(template)
  half = length // 2

  def rows(records):
    result = []
    for n, record in enumerate(records):
      whole = tokenizer.encode(template.replace('{source}', record.source))
      question = [tokenizer.bos, *_end(whole, half - half // 2 - 1)]
      ids, token_types, documents = [], [], []
      cut = 1 + len(whole) - len(question)
      kept = []
      for number, text in enumerate((record.chosen, record.rejected)):
        answer = [*tokenizer.encode(text), tokenizer.eos]
        cut += max(0, len(answer) - (half - len(question)))
        answer = answer[: half - len(question)]
        kept.append(answer)
        ids += question + answer
        token_types += [0] * len(question) + [1] * len(answer)
        documents += [number] * (len(question) + len(answer))
      result.append(
        batching.Row(
          record=n,
          ids=ids,
          token_types=token_types,
          targets=[0],
          weights=[1.0],
          places=[batching.NOT_SCORED] * len(ids),
          documents=documents,
          cut=cut,
          lost=kept[0] == kept[1],
        )
      )
    return result

  labels = ('chosen', 'rejected')
  return batching.Form(rows, 1, labels, token_types=True, packs=False)


def _fitted(turns: Sequence[_Turn], room: int) -> list[_Turn]:
  """Leaves first turns out until the others have room, see `chat`."""
  size = sum(len(ids) for _, ids, _ in turns)
  kept = 1 if len(turns) > 1 and turns[0][0] == 'system' else 0
  start = kept
  while start < len(turns) - 1 and size > room:
    size -= len(turns[start][1])
    start += 1
  if size > room and kept and len(turns[0][1]) > room // 2:
    kept = 0  # so that most of the last turn stays
  return [*turns[:kept], *turns[start:]]


def _end(ids: Sequence[int], count: int) -> Sequence[int]:
  """Returns the last ids, at most `count` of them, which may be none."""
  return ids[max(0, len(ids) - count) :]


def _split_templates(template: Mapping[str, str]) -> dict[str, list[str]]:
  """Returns by role what stands before and after a turn's text.

  Raises:
    ValueError: a role has no template, or a template has no '{}'.
  """
  for role in TURNS:
    if template.get(role, '').count('{}') != 1:
      raise ValueError(f'template: {role} needs one {{}} for the text')
  return {role: template[role].split('{}') for role in TURNS}


def _check_template(template: str) -> None:
  if '{source}' not in template:
    raise ValueError(f"template={template[:60]!r} has no '{{source}}' in it")
