"""T5 and T5 v1.1 in files of Hugging Face transformers.

Reference: Raffel et al. 2020, arXiv 1910.10683; Shazeer 2020, arXiv 2002.05202.
"""

from lm.interop import fields, layout

_ACTIVATIONS = {'relu': 'relu', 'gated-gelu': 'geglu', 'gated-silu': 'swiglu'}


def _table(gated: bool) -> layout.Table:
  table = {
    'embed/table': layout.Place('shared.weight'),
    'head/kernel': layout.linear('lm_head.weight'),
  }
  for side, parts in (
    ('encoder', (('attention', 'SelfAttention'),)),
    ('decoder', (('attention', 'SelfAttention'), ('cross', 'EncDecAttention'))),
  ):
    ours, theirs = f'{side}/layers_{{i}}', f'{side}.block.{{i}}.layer'
    first = f'{side}.block.0.layer.0.SelfAttention'
    table |= {
      f'{side}/relative/table': layout.Place(
        f'{first}.relative_attention_bias.weight'
      ),
      f'{side}/final_norm/scale': layout.vector(
        f'{side}.final_layer_norm.weight'
      ),
    }
    for n, (name, there) in enumerate(parts):
      table[f'{ours}/{name}_norm/scale'] = layout.vector(
        f'{theirs}.{n}.layer_norm.weight'
      )
      for kernel, inputs in (('q', 1), ('k', 1), ('v', 1), ('o', 2)):
        table[f'{ours}/{name}/{kernel}'] = layout.linear(
          f'{theirs}.{n}.{there}.{kernel}.weight', inputs
        )
    last = f'{theirs}.{len(parts)}'
    table[f'{ours}/mlp_norm/scale'] = layout.vector(f'{last}.layer_norm.weight')
    kernels = {'gate': 'wi_0', 'up': 'wi_1'} if gated else {'up': 'wi'}
    for name, there in (kernels | {'down': 'wo'}).items():
      table[f'{ours}/mlp/{name}'] = layout.linear(
        f'{last}.DenseReluDense.{there}.weight'
      )
  return table


def _settings(config, names):
  width = fields.count(config, 'd_model')
  depth = fields.count(config, 'num_layers')
  # Before transformers 5, a tied head also meant scaled outputs. Version 5 has
  # a key for the scale, and ties a head that has no tensor of its own.
  tied = fields.flag(config, 'tie_word_embeddings', True)
  scaled = fields.flag(config, 'scale_decoder_outputs', tied)
  return {
    'width': width,
    'depth': depth,
    'heads': fields.count(config, 'num_heads'),
    'decoder_depth': fields.count(config, 'num_decoder_layers', depth),
    'head_width': fields.count(config, 'd_kv'),
    'mlp': fields.count(config, 'd_ff'),
    'norm': 'rmsnorm',
    'norm_epsilon': fields.number(config, 'layer_norm_epsilon', 1e-6),
    'norm_order': 'pre',
    'positions': 'relative',
    'buckets': fields.count(config, 'relative_attention_num_buckets', 32),
    'max_distance': fields.count(
      config, 'relative_attention_max_distance', 128
    ),
    'activation': fields.choice(
      config, 'feed_forward_proj', _ACTIVATIONS, 'relu'
    ),
    'bias': False,
    'attention_scale': 1.0,
    'tied': 'lm_head.weight' not in names or (tied and scaled),
    'output_scale': width**-0.5 if scaled else 1.0,
  }


def _config(spec):
  return {
    'model_type': 't5',
    'is_encoder_decoder': True,
    'd_model': spec['width'],
    'num_layers': spec['depth'],
    'num_heads': spec['heads'],
    'num_decoder_layers': spec['decoder_depth'],
    'd_kv': spec['head_width'],
    'd_ff': spec['mlp'],
    'layer_norm_epsilon': spec['norm_epsilon'],
    'relative_attention_num_buckets': spec['buckets'],
    'relative_attention_max_distance': spec['max_distance'],
    'feed_forward_proj': fields.name_of(_ACTIVATIONS, spec['activation']),
    'scale_decoder_outputs': spec['output_scale'] != 1,
    'tie_word_embeddings': spec['tied'],
  }


ARCHITECTURES = {
  'T5ForConditionalGeneration': fields.Architecture(
    fn='lm.models.encdec:make',
    table=lambda spec: _table(spec['activation'] != 'relu'),
    settings=_settings,
    config=_config,
    prefix='',
    duplicates={
      'encoder.embed_tokens.weight': 'shared.weight',
      'decoder.embed_tokens.weight': 'shared.weight',
      'lm_head.weight': 'shared.weight',
    },
  )
}
