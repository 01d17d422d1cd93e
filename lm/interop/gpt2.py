"""GPT-2 in files of Hugging Face transformers.

Reference: Radford et al. 2019.
"""

from lm.interop import fields, headed, layout

_ACTIVATIONS = {
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'gelu': 'gelu_exact',
  'relu': 'relu',
}
_BLOCK = 'transformer.h.{i}'


def _table() -> layout.Table:
  ours, theirs = 'layers_{i}', _BLOCK
  table = {
    'embed/table': layout.Place('transformer.wte.weight'),
    'embed/positions': layout.Place('transformer.wpe.weight'),
    **layout.norm('final_norm', 'transformer.ln_f'),
    'head/kernel': layout.linear('lm_head.weight'),
    **layout.norm(f'{ours}/attention_norm', f'{theirs}.ln_1'),
    **layout.norm(f'{ours}/mlp_norm', f'{theirs}.ln_2'),
    f'{ours}/attention/o': layout.conv(f'{theirs}.attn.c_proj.weight', 2),
    f'{ours}/attention/o_bias': layout.vector(f'{theirs}.attn.c_proj.bias'),
  }
  for n, name in enumerate('qkv'):
    table |= {
      f'{ours}/attention/{name}': layout.conv(
        f'{theirs}.attn.c_attn.weight', part=(n, 3)
      ),
      f'{ours}/attention/{name}_bias': layout.vector(
        f'{theirs}.attn.c_attn.bias', part=(n, 3)
      ),
    }
  for name, there in (('up', 'c_fc'), ('down', 'c_proj')):
    table |= {
      f'{ours}/mlp/{name}': layout.conv(f'{theirs}.mlp.{there}.weight'),
      f'{ours}/mlp/{name}_bias': layout.vector(f'{theirs}.mlp.{there}.bias'),
    }
  return table


def _settings(config, names):
  del names
  fields.require(
    config,
    scale_attn_weights=True,
    scale_attn_by_inverse_layer_idx=False,
    reorder_and_upcast_attn=False,
    add_cross_attention=False,
  )
  width = fields.count(config, 'n_embd')
  return {
    'length': fields.count(config, 'n_positions'),
    'width': width,
    'depth': fields.count(config, 'n_layer'),
    'heads': fields.count(config, 'n_head'),
    'mlp': fields.count(config, 'n_inner', 4 * width),
    'norm_epsilon': fields.number(config, 'layer_norm_epsilon', 1e-5),
    'activation': fields.choice(
      config, 'activation_function', _ACTIVATIONS, 'gelu_new'
    ),
    'tied': fields.flag(config, 'tie_word_embeddings', True),
  }


def _config(spec):
  return {
    'model_type': 'gpt2',
    'n_positions': spec['length'],
    'n_ctx': spec['length'],
    'n_embd': spec['width'],
    'n_layer': spec['depth'],
    'n_head': spec['heads'],
    'n_inner': spec['mlp'],
    'layer_norm_epsilon': spec['norm_epsilon'],
    'activation_function': fields.name_of(_ACTIVATIONS, spec['activation']),
    'tie_word_embeddings': spec['tied'],
  }


_TABLE = _table()
_BARE = fields.Architecture(
  fn='lm.models.decoder:make',
  table=lambda spec: _TABLE,
  settings=_settings,
  config=_config,
  prefix='transformer.',
  duplicates={},
  # These are buffers of the causal mask.
  ignored=r'\.attn\.(bias|masked_bias)$',
)
ARCHITECTURES = {
  'GPT2LMHeadModel': _BARE._replace(
    duplicates={'lm_head.weight': 'transformer.wte.weight'}
  ),
  'GPT2ForSequenceClassification': headed.with_head(
    _BARE, 'classify', 'score', bias=False, pool='last'
  ),
  'GPT2ForTokenClassification': headed.with_head(_BARE, 'tag', 'classifier'),
}
