"""BERT in files of Hugging Face transformers.

Reference: Devlin et al. 2019, arXiv 1810.04805.
"""

from lm.interop import fields, headed, layout

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
    'embed/token_types': layout.Place(
      f'{embeddings}.token_type_embeddings.weight'
    ),
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
  fields.require(
    config,
    position_embedding_type='absolute',
    is_decoder=False,
    add_cross_attention=False,
    tie_word_embeddings=True,
  )
  return {
    'length': fields.count(config, 'max_position_embeddings'),
    'width': fields.count(config, 'hidden_size'),
    'depth': fields.count(config, 'num_hidden_layers'),
    'heads': fields.count(config, 'num_attention_heads'),
    'mlp': fields.count(config, 'intermediate_size'),
    'token_types': fields.count(config, 'type_vocab_size', 2),
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
    'type_vocab_size': spec['token_types'],
    'layer_norm_eps': spec['norm_epsilon'],
    'hidden_act': fields.name_of(_ACTIVATIONS, spec['activation']),
  }


_TABLE = _table()


def _architecture(*, transform, next_sentence, ignored):
  def settings(config, names):
    del names
    return _settings(config, transform=transform, next_sentence=next_sentence)

  return fields.Architecture(
    fn='lm.models.encoder:make',
    table=lambda spec: _TABLE,
    settings=settings,
    config=_config,
    prefix='bert.',
    duplicates={
      f'{_DECODER}.weight': 'bert.embeddings.word_embeddings.weight',
      f'{_DECODER}.bias': 'cls.predictions.bias',
    },
    ignored=ignored,
  )


_POOLER = r'^bert\.pooler\.'
_BARE = _architecture(transform=False, next_sentence=False, ignored='(?!)')
# The published files have both heads, whichever class their config names.
ARCHITECTURES = {
  'BertForMaskedLM': _architecture(
    transform=True,
    next_sentence=False,
    ignored=rf'{_POOLER}|^cls\.seq_relationship\.',
  ),
  'BertForPreTraining': _architecture(
    transform=True, next_sentence=True, ignored='(?!)'
  ),
  'BertModel': headed.with_head(_BARE, 'embed', ignored=_POOLER),
  'BertForSequenceClassification': headed.with_head(
    _BARE, 'classify', 'classifier', pool='first', hidden=True
  ),
  'BertForTokenClassification': headed.with_head(
    _BARE, 'tag', 'classifier', ignored=_POOLER
  ),
  'BertForQuestionAnswering': headed.with_head(
    _BARE, 'span', 'qa_outputs', ignored=_POOLER
  ),
}
