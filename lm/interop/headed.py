"""Classes of transformers that put a head on a model, in place of outputs."""

from typing import Any

from lm.interop import fields, layout


def made(
  bare: fields.Architecture,
  head: str,
  outputs: str = '',
  *,
  bias: bool = True,
  unread: str = '(?!)',
  **fixed: Any,
) -> fields.Architecture:
  """Makes the class of a model with a head.

  Args:
    bare: the model without outputs of its own.
    head: ours, of `lm.models.heads`.
    outputs: what its scores are called there; '': it has none.
    bias: whether they have one.
    unread: see `fields.Architecture`; added to those of the bare model.
    fixed: settings of the head that follow from the class.
  """
  has_classes = head in ('classify', 'tag')
  places = {
    'task/scores/kernel': layout.linear(f'{outputs}.weight'),
    'task/pooler/kernel': layout.linear(f'{bare.base}pooler.dense.weight'),
    'task/pooler/bias': layout.vector(f'{bare.base}pooler.dense.bias'),
  }
  if bias:
    places['task/scores/bias'] = layout.vector(f'{outputs}.bias')

  def table(spec):
    body = bare.table(spec['body']).items()
    return {f'body/{path}': place for path, place in body} | places

  def settings(config, names):
    found = dict(fixed) if bias else {**fixed, 'bias': False}
    if has_classes:
      known = 'single_label_classification'
      if config.get('problem_type') is not None:
        fields.only(config, problem_type=known)
      found['classes'] = len(fields.labels(config))
    body = {'fn': bare.fn, **bare.settings(config, names)}
    if 'tied' in body:
      body['tied'] = True  # for it has no outputs that could differ
    return {**found, 'body': body}

  def config(spec):
    found = bare.config(spec['body'])
    if has_classes:
      names = [f'LABEL_{n}' for n in range(spec['classes'])]
      found |= fields.labelled(names)
    return found

  return fields.Architecture(
    fn=f'lm.models.heads:{head}',
    table=table,
    settings=settings,
    config=config,
    base=bare.base,
    same={},
    unread=f'{bare.unread}|{unread}',
    body=bare.fn,
  )
