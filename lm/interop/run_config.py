"""Makes the config of an imported run: what fits the model that was imported.

The config is that of a run to come: it trains on from the import, evaluates
nothing until an evaluator is named, and reads the kind of data that the model
is made for. Only the paths of the data are missing.
"""

from typing import Any

from lm import config, types
from lm.interop import transfer

_TEXTS = 'data/train'  # where README lets the data be prepared
_RECORDS = 'data/train.jsonl'
_PEAK = 1e-4  # of fine-tuning; one of pretraining would undo what was learnt


def make(
  base: config.Config | None,
  imported: transfer.Imported,
  spec: dict[str, Any],
  tokenizer: types.Tokenizer,
) -> config.Config:
  """Makes the config of a run.

  Args:
    base: the config whose other settings are kept; None is configs/base.py
      with a learning rate for tuning.
    imported: the model.
    spec: of the tokenizer.
    tokenizer: what `spec` builds.
  """
  c = config.load('configs/base.py') if base is None else base
  c = c.copy_and_resolve_references().unlock()
  if base is None:
    c.optim.peak = _PEAK
  _, body = config.innermost(imported.model)
  length = min(c.data.length, body.get('length') or c.data.length)
  c.model, c.tokenizer = imported.model, spec
  # Evaluators of the base name data of another tokenizer.
  c.evals = {}
  form = _form(imported, length)
  if form is None:
    path = _TEXTS if base is None else c.data.sources.train.path
    c.data = {
      'fn': 'lm.data.stream:make',
      'sources': {'train': {'path': path, 'weight': 1.0}},
      **_objective(imported.model, tokenizer, length),
      'changes': (),
      'lengths': (),
      'temperature': None,
      'max_epochs': None,
    }
  else:
    c.data = {
      'fn': 'lm.data.finetuning.tasks:make',
      'records': {**form.pop('records'), 'path': _RECORDS},
      'form': form,
      'length': length,
    }
  return c.lock()


def _form(imported: transfer.Imported, length: int) -> dict[str, Any] | None:
  """Describes the records that a head learns from; None: the model has none."""
  model = imported.model
  name = model['fn'].rpartition(':')[2] if 'body' in model else ''
  if name not in ('classify', 'tag', 'span'):
    return None
  reader = {'classify': 'texts', 'tag': 'conll', 'span': 'squad'}[name]
  form: dict[str, Any] = {
    'fn': f'lm.data.finetuning.forms:{name}',
    'records': {'fn': f'lm.data.finetuning.readers:{reader}'},
  }
  if name == 'span':
    form['question'] = min(64, length // 4)  # the passage has the rest
  else:
    form |= {'classes': len(imported.labels), 'labels': imported.labels}
  if name != 'tag':
    # BERT tells two texts apart.
    form['token_types'] = model['body']['fn'] == 'lm.models.encoder:make'
  if name == 'classify':
    form['ends'] = model['pool'] != 'last'
  return form


def _objective(
  model: dict[str, Any], tokenizer: types.Tokenizer, length: int
) -> dict[str, Any]:
  """Chooses the objective of a model that reads texts, and its length."""
  _, body = config.innermost(model)
  if body['fn'] == 'lm.models.encdec:make':
    short = max(length // 4, 3)
    for fn in ('span_corruption', 'continuation'):
      objective = {'fn': f'lm.data.corruption:{fn}', 'source': length}
      try:
        config.build(objective, tokenizer=tokenizer, length=short)
      except ValueError:
        continue  # it has too few sentinels: the second needs none
      return {'objective': objective, 'length': short}
  name = 'objectives:causal'
  if body['fn'] == 'lm.models.encoder:make' and tokenizer.mask is not None:
    pairs = body['head']['next_sentence']
    name = 'masking:next_sentence' if pairs else 'masking:masked'
  return {'objective': {'fn': f'lm.data.{name}'}, 'length': length}
