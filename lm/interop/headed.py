"""Classes of transformers with a head, such as a classifier, on a model."""

from typing import Any

from lm.interop import fields, layout


def with_head(
  bare: fields.Architecture,
  head: str,
  outputs: str = '',
  *,
  bias: bool = True,
  ignored: str = '(?!)',
  **fixed: Any,
) -> fields.Architecture:
  """Makes the architecture of a model with a head.

  Args:
    bare: the model without outputs.
    head: the name of our head in `lm.models.heads`.
    outputs: the name of the scores' tensors; '' if the head has no scores.
    bias: whether the scores have a bias.
    ignored: see `fields.Architecture`; is added to that of the bare model.
    fixed: settings of the head that follow from the class.
  """
  has_classes = head in ('classify', 'tag')
  places = {
    'task/scores/kernel': layout.linear(f'{outputs}.weight'),
    'task/pooler/kernel': layout.linear(f'{bare.prefix}pooler.dense.weight'),
    'task/pooler/bias': layout.vector(f'{bare.prefix}pooler.dense.bias'),
  }
  if bias:
    places['task/scores/bias'] = layout.vector(f'{outputs}.bias')

  def table(spec):
    body = bare.table(spec['body']).items()
    return {f'body/{path}': place for path, place in body} | places

  def settings(config, names):
    head_settings = dict(fixed) if bias else {**fixed, 'bias': False}
    if has_classes:
      known = 'single_label_classification'
      if config.get('problem_type') is not None:
        fields.require(config, problem_type=known)
      head_settings['classes'] = len(fields.labels(config))
      # Its loss is a squared error, unless a problem_type says otherwise.
      if head == 'classify' and head_settings['classes'] == 1:
        raise ValueError(
          'config.json: a model of one label is a regression, which is not '
          'supported; only classes are'
        )
    body = {'fn': bare.fn, **bare.settings(config, names)}
    if 'tied' in body:
      body['tied'] = True  # it has no outputs that could differ
    return {**head_settings, 'body': body}

  def config(spec):
    content = bare.config(spec['body'])
    if has_classes:
      names = [f'LABEL_{n}' for n in range(spec['classes'])]
      content |= fields.label_fields(names)
    return content

  return fields.Architecture(
    fn=f'lm.models.heads:{head}',
    table=table,
    settings=settings,
    config=config,
    prefix=bare.prefix,
    duplicates={},
    ignored=f'{bare.ignored}|{ignored}',
    body=bare.fn,
    rotary=bare.rotary,
  )
