"""BERT in files of transformers.

Reference: Devlin et al. 2019, arXiv 1810.04805.
"""

from lm.interop import fields, layout

_ACTIVATIONS = {
  'gelu': 'gelu_exact',
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'relu': 'relu',
}
_DECODER = 'cls.predictions.decoder'


def _table() -> layout.Table:
  ours, theirs = 'layers_{i}', 'bert.encoder.layer.{i}'
  embeddings, transform = 'bert.embeddings', 'cls.predictions.transform'
  table = {
    'embed/table': layout.Place(f'{embeddings}.word_embeddings.weight'),
    'embed/positions': layout.Place(f'{embeddings}.position_embeddings.weight'),
    'embed/kinds': layout.Place(f'{embeddings}.token_type_embeddings.weight'),
    **layout.norm('embed_norm', f'{embeddings}.LayerNorm'),
    **layout.norm('transform_norm', f'{transform}.LayerNorm'),
    'head/bias': layout.vector('cls.predictions.bias'),
    **layout.norm(
      f'{ours}/attention_norm', f'{theirs}.attention.output.LayerNorm'
    ),
    **layout.norm(f'{ours}/mlp_norm', f'{theirs}.output.LayerNorm'),
  }
  for name, there in (
    ('transform', f'{transform}.dense'),
    ('pooler', 'bert.pooler.dense'),
    ('next_sentence', 'cls.seq_relationship'),
  ):
    table |= {
      f'{name}/kernel': layout.linear(f'{there}.weight'),
      f'{name}/bias': layout.vector(f'{there}.bias'),
    }
  for name, there, inputs in (
    ('attention/q', 'attention.self.query', 1),
    ('attention/k', 'attention.self.key', 1),
    ('attention/v', 'attention.self.value', 1),
    ('attention/o', 'attention.output.dense', 2),
    ('mlp/up', 'intermediate.dense', 1),
    ('mlp/down', 'output.dense', 1),
  ):
    table |= {
      f'{ours}/{name}': layout.linear(f'{theirs}.{there}.weight', inputs),
      f'{ours}/{name}_bias': layout.vector(f'{theirs}.{there}.bias'),
    }
  return table


def _settings(config, *, transform, next_sentence):
  fields.only(
    config,
    position_embedding_type='absolute',
    is_decoder=False,
    add_cross_attention=False,
    tie_word_embeddings=True,
  )
  return {
    'length': fields.whole(config, 'max_position_embeddings'),
    'width': fields.whole(config, 'hidden_size'),
    'depth': fields.whole(config, 'num_hidden_layers'),
    'heads': fields.whole(config, 'num_attention_heads'),
    'mlp': fields.whole(config, 'intermediate_size'),
    'kinds': fields.whole(config, 'type_vocab_size', 2),
    'norm_epsilon': fields.number(config, 'layer_norm_eps', 1e-12),
    'activation': fields.choice(config, 'hidden_act', _ACTIVATIONS, 'gelu'),
    'transform': transform,
    'next_sentence': next_sentence,
  }


def _config(spec):
  return {
    'model_type': 'bert',
    'max_position_embeddings': spec['length'],
    'hidden_size': spec['width'],
    'num_hidden_layers': spec['depth'],
    'num_attention_heads': spec['heads'],
    'intermediate_size': spec['mlp'],
    'type_vocab_size': spec['kinds'],
    'layer_norm_eps': spec['norm_epsilon'],
    'hidden_act': fields.inverse(_ACTIVATIONS, spec['activation']),
  }


_TABLE = _table()
_ENCODER = 'lm.models.encoder:make'


def _architecture(*, transform, next_sentence, unread):
  def settings(config, names):
    del names
    return _settings(config, transform=transform, next_sentence=next_sentence)

  return fields.Architecture(
    fn=_ENCODER,
    table=lambda spec: _TABLE,
    settings=settings,
    config=_config,
    base='bert.',
    same={
      f'{_DECODER}.weight': 'bert.embeddings.word_embeddings.weight',
      f'{_DECODER}.bias': 'cls.predictions.bias',
    },
    unread=unread,
  )


def _headed(head, outputs='', *, unread=r'^bert\.pooler\.', **fixed):
  """Makes a class of an encoder without its own outputs, and a head.

  Args:
    head: ours, of `lm.models.heads`.
    outputs: the name of its scores there; '': it has none.
    unread: as of `fields.Architecture`.
    fixed: settings of the head.
  """
  table = {f'body/{path}': place for path, place in _TABLE.items()}
  for ours, theirs in (
    ('scores', outputs),
    ('pooler', 'bert.pooler.dense'),
  ):
    table |= {
      f'task/{ours}/kernel': layout.linear(f'{theirs}.weight'),
      f'task/{ours}/bias': layout.vector(f'{theirs}.bias'),
    }
  has_classes = outputs == 'classifier'

  def settings(config, names):
    del names
    found = dict(fixed)
    if has_classes:
      kinds = (None, 'single_label_classification')
      if config.get('problem_type') not in kinds:
        fields.only(config, problem_type=kinds[1])
      found['classes'] = len(fields.labels(config))
    body = _settings(config, transform=False, next_sentence=False)
    return {**found, 'body': {'fn': _ENCODER, **body}}

  def config(spec):
    found = _config(spec['body'])
    if has_classes:
      names = [f'LABEL_{n}' for n in range(spec['classes'])]
      found |= fields.labelled(names)
    return found

  return fields.Architecture(
    fn=f'lm.models.heads:{head}',
    table=lambda spec: table,
    settings=settings,
    config=config,
    base='bert.',
    same={},
    unread=unread,
    body=_ENCODER,
  )


# The published files hold both heads, whatever class their config names.
ARCHITECTURES = {
  'BertForMaskedLM': _architecture(
    transform=True,
    next_sentence=False,
    unread=r'^bert\.pooler\.|^cls\.seq_relationship\.',
  ),
  'BertForPreTraining': _architecture(
    transform=True, next_sentence=True, unread='(?!)'
  ),
  'BertModel': _headed('embed'),
  'BertForSequenceClassification': _headed(
    'classify', 'classifier', unread='(?!)', pool='first', hidden=True
  ),
  'BertForTokenClassification': _headed('tag', 'classifier'),
  'BertForQuestionAnswering': _headed('span', 'qa_outputs'),
}
