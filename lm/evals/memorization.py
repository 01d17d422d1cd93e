"""Evaluates how well a model remembers texts that were put into its training.

{'fn': 'lm.evals.memorization:exposure', 'path': 'canaries.jsonl',
 'batch_size': 32, 'length': 64}
"""

from collections.abc import Callable, Mapping
import math
from typing import Any

import numpy as np

from lm import types
from lm.data import names, objectives
from lm.data.finetuning import fields, record_files
from lm.data.finetuning import records as record_lib
from lm.evals import context as context_lib
from lm.evals import results, scoring

REFERENCE = 'reference'  # the group of the texts that were never trained on


def exposure(
  *,
  context: context_lib.Context,
  path: str,
  batch_size: int,
  length: int,
  objective: Mapping[str, Any] = objectives.CAUSAL,
) -> Callable[[types.Params], results.Result]:
  """Makes an evaluator that ranks planted texts among others like them.

  The file has a JSON object a line:

    {"id": "c1", "group": "16", "prompt": "The secret words of X are",
     "text": " a b c."}

  The group is 'reference' if the model was not trained on the text. All other
  texts are planted, and their group says for instance how often. `prompt` may
  be left out; it is read by the model and not scored.

  A text's rank is its place among the references and itself, by nats per byte,
  the likeliest first. Carlini et al. rank by the nats of texts that have all
  the same form; the bytes here make up for lengths that differ.

  Args:
    context: the run that is evaluated.
    path: of the file, or a pattern.
    batch_size: rows at a time; changes nothing but speed.
    length: L, the most positions that the model reads.
    objective: spec of the objective that the model was trained for.

  Returns:
    `params -> Result`, whose metrics are means over planted texts, also for
    each group:

      exposure: log2(R + 1) - log2(rank) in bits, with R references. One who
        guesses the planted text needs so many bits less with the model. Its
        mean is about 1.44 for texts that the model does not know, and it cannot
        exceed log2(R + 1).
      known: the share of references that are less likely than the text, where
        equal ones count half: 0.5 if the model does not know it. The mean over
        texts is the area under the ROC curve of an attack by the loss, which
        asks whether the model was trained on a text.
      verbatim: the share of texts that greedy decoding writes exactly, after
        the prompt.
      nats_per_byte: of the text.

    `nats_per_byte/reference` is that of the references. An item is a planted
    text, with all of these.

  Raises:
    ValueError: the file has no references or nothing planted, a field is
      missing, or see `scoring.make`.

  Reference: Carlini et al. 2019, arXiv 1802.08232, section 4.
  """
  score = scoring.make(
    context, batch_size=batch_size, length=length, objective=objective
  )
  card = record_lib.dataset_card(
    'memorization', path, 'planted by the user', '', 'exposure'
  )
  rows = _read(path)
  pairs = [(prompt, text) for _, _, prompt, text in rows]
  is_reference = np.array([group == REFERENCE for _, group, _, _ in rows])

  def evaluate(params: types.Params) -> results.Result:
    scores = score(params, pairs)
    costs = np.array([x.nats / max(x.bytes, 1) for x in scores])
    references = np.sort(costs[is_reference])
    items = [
      {
        'id': f'memorization/{name}',
        'category': group,
        **_known(cost, references),
        'verbatim': int(x.greedy),
        'nats_per_byte': float(cost),
      }
      for (name, group, _, _), cost, x in zip(rows, costs, scores, strict=True)
      if group != REFERENCE
    ]
    found = ('exposure', 'known', 'verbatim', 'nats_per_byte')
    metric = results.means(items, *found, by='category')
    metric[f'nats_per_byte/{REFERENCE}'] = float(references.mean())
    return results.Result(metric, items, card._asdict())

  return evaluate


def _known(cost: float, references: np.ndarray) -> dict[str, float]:
  """Places a text among the sorted costs of references."""
  less = int(np.searchsorted(references, cost, 'left'))
  equal = int(np.searchsorted(references, cost, 'right')) - less
  count = len(references)
  # Equal references are counted as likelier, so that a model that knows nothing
  # exposes nothing.
  rank = less + equal + 1
  return {
    'exposure': math.log2(count + 1) - math.log2(rank),
    'known': (count - less - equal / 2) / count,
  }


def _read(path: str) -> list[tuple[str, str, str, str]]:
  """Reads (id, group, prompt, text) of each line."""
  rows, where = [], names.short(path)
  for n, row in enumerate(record_files.json_lines(path)):
    try:
      prompt = fields.text(row, 'prompt') if 'prompt' in row else ''
      name, group = fields.label(row, 'id'), fields.label(row, 'group')
      rows.append((name, group, prompt, fields.text(row, 'text')))
    except fields.FieldError as error:
      raise ValueError(f'task {where}: line {n + 1}: {error}') from error
  planted = sum(group != REFERENCE for _, group, _, _ in rows)
  if not 0 < planted < len(rows):
    raise ValueError(
      f'task {where}: {planted} of {len(rows)} texts are planted; give planted '
      f'texts and others, whose group is {REFERENCE!r}'
    )
  return rows
