"""BERT in files of transformers.

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
    'token_types': fields.whole(config, 'type_vocab_size', 2),
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
    'hidden_act': fields.inverse(_ACTIVATIONS, spec['activation']),
  }


_TABLE = _table()


def _architecture(*, transform, next_sentence, unread):
  def settings(config, names):
    del names
    return _settings(config, transform=transform, next_sentence=next_sentence)

  return fields.Architecture(
    fn='lm.models.encoder:make',
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


_POOLER = r'^bert\.pooler\.'
_BARE = _architecture(transform=False, next_sentence=False, unread='(?!)')
# The published files hold both heads, whatever class their config names.
ARCHITECTURES = {
  'BertForMaskedLM': _architecture(
    transform=True,
    next_sentence=False,
    unread=rf'{_POOLER}|^cls\.seq_relationship\.',
  ),
  'BertForPreTraining': _architecture(
    transform=True, next_sentence=True, unread='(?!)'
  ),
  'BertModel': headed.made(_BARE, 'embed', unread=_POOLER),
  'BertForSequenceClassification': headed.made(
    _BARE, 'classify', 'classifier', pool='first', hidden=True
  ),
  'BertForTokenClassification': headed.made(
    _BARE, 'tag', 'classifier', unread=_POOLER
  ),
  'BertForQuestionAnswering': headed.made(
    _BARE, 'span', 'qa_outputs', unread=_POOLER
  ),
}
