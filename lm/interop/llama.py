"""Llama, Qwen3 and Gemma 3 in files of Hugging Face transformers.

Reference: Touvron et al. 2023, arXiv 2302.13971; Yang et al. 2025, arXiv
2505.09388; Gemma 3, arXiv 2503.19786.
"""

from collections.abc import Mapping

from lm.interop import fields, headed, layout

_FULL, _SLIDING = 'full_attention', 'sliding_attention'
# The settings of rotary scaling, with their names in config.json.
_SCALINGS = {
  'linear': {},
  'llama3': {
    'length': 'original_max_position_embeddings',
    'low': 'low_freq_factor',
    'high': 'high_freq_factor',
  },
  'yarn': {
    'length': 'original_max_position_embeddings',
    'low': 'beta_slow',
    'high': 'beta_fast',
  },
}


def _table(norms: Mapping[str, str]) -> layout.Table:
  ours, theirs = 'layers_{i}', 'model.layers.{i}'
  table = {
    'embed/table': layout.Place('model.embed_tokens.weight'),
    'final_norm/scale': layout.vector('model.norm.weight'),
    'head/kernel': layout.linear('lm_head.weight'),
  }
  for name, inputs in (('q', 1), ('k', 1), ('v', 1), ('o', 2)):
    there = f'{theirs}.self_attn.{name}_proj'
    table |= {
      f'{ours}/attention/{name}': layout.linear(f'{there}.weight', inputs)
    }
  for name in 'qk':
    table[f'{ours}/attention/{name}_norm/scale'] = layout.vector(
      f'{theirs}.self_attn.{name}_norm.weight'
    )
  for name in ('gate', 'up', 'down'):
    table[f'{ours}/mlp/{name}'] = layout.linear(
      f'{theirs}.mlp.{name}_proj.weight'
    )
  for name, there in norms.items():
    table[f'{ours}/{name}/scale'] = layout.vector(f'{theirs}.{there}.weight')
  return table


def _shared(config, tied):
  """Reads the settings that all three classes have."""
  fields.require(
    config,
    attention_bias=False,
    mlp_bias=False,
    partial_rotary_factor=1.0,
    pretraining_tp=1,
  )
  return {
    'length': fields.count(config, 'max_position_embeddings'),
    'width': fields.count(config, 'hidden_size'),
    'depth': fields.count(config, 'num_hidden_layers'),
    'heads': fields.count(config, 'num_attention_heads'),
    'kv_heads': fields.count(
      config, 'num_key_value_heads', config.get('num_attention_heads')
    ),
    'mlp': fields.count(config, 'intermediate_size'),
    'norm': 'rmsnorm',
    'norm_epsilon': fields.number(config, 'rms_norm_eps', 1e-6),
    'positions': 'rope',
    'bias': False,
    'tied': fields.flag(config, 'tie_word_embeddings', tied),
  }


def _rope(config, kind=None):
  """Reads base and scaling of rotary positions, in either form of the file.

  transformers 5 puts them into `rope_parameters`, and 4 beside each other.
  """
  rope = config.get('rope_parameters') or {}
  rope = rope.get(kind, rope) if isinstance(rope, dict) else rope
  scaling = config.get('rope_scaling') or rope
  for tree in (rope, scaling):
    if not isinstance(tree, dict):
      raise ValueError('config.json: rope_parameters must be an object')
  fields.require(rope, partial_rotary_factor=1.0)
  local = kind == _SLIDING
  old = 'rope_local_base_freq' if local else 'rope_theta'
  usual = 1e4 if local or kind is None else 1e6
  base = fields.number(rope, 'rope_theta', fields.number(config, old, usual))
  name = scaling.get('rope_type', scaling.get('type', 'default'))
  if local or name == 'default':
    return base, None
  if name not in tuple(_SCALINGS):
    raise ValueError(
      f'config.json: rope of type {name!r:.40} is not supported; only default, '
      f'{", ".join(_SCALINGS)} are'
    )
  usual = {}
  if name == 'yarn':
    usual = {'low': 1.0, 'high': 32.0}
    plain = ('attention_factor', 'mscale', 'mscale_all_dim')
    fields.require(scaling, truncate=True, **dict.fromkeys(plain))
  ours = {'factor': fields.number(scaling, 'factor'), 'kind': name}
  for key, there in _SCALINGS[name].items():
    ours[key] = fields.number(scaling, there, usual.get(key))
  return base, ours


def _rope_written(spec):
  """Writes base and scaling as transformers 4, which version 5 reads too."""
  ours = spec['rope_scaling']
  content = {'rope_theta': spec['rope_base']}
  # A scaling without a name there is left out. `transfer.save` finds that out
  # when it reads the config again.
  if ours is None or ours['kind'] not in _SCALINGS:
    return content
  names = _SCALINGS[ours['kind']]
  theirs = {
    'rope_type': ours['kind'],
    'factor': ours['factor'],
    **{there: ours[key] for key, there in names.items()},
  }
  if 'length' in names:
    # transformers wants a whole number.
    theirs[names['length']] = round(ours['length'])
  return {**content, 'rope_scaling': theirs}


def _written(spec):
  """Writes the settings that all three classes have."""
  return {
    'max_position_embeddings': spec['length'],
    'hidden_size': spec['width'],
    'num_hidden_layers': spec['depth'],
    'num_attention_heads': spec['heads'],
    'num_key_value_heads': spec['kv_heads'],
    'head_dim': spec['head_width'],
    'intermediate_size': spec['mlp'],
    'rms_norm_eps': spec['norm_epsilon'],
    **_rope_written(spec),
    'tie_word_embeddings': spec['tied'],
    'attention_bias': False,
  }


def _llama(config, names):
  fields.require(config, hidden_act='silu')
  width, heads = config.get('hidden_size'), config.get('num_attention_heads')
  spec = _shared(config, tied=False)
  base, scaling = _rope(config)
  usual = max(1, width // heads) if width and heads else None
  return spec | {
    'head_width': fields.count(config, 'head_dim', usual),
    'rope_base': base,
    'rope_scaling': scaling,
    'activation': 'swiglu',
  }


def _llama_config(spec):
  ours = {'model_type': 'llama', 'hidden_act': 'silu', 'mlp_bias': False}
  return ours | _written(spec)


def _qwen3(config, names):
  fields.require(config, hidden_act='silu', use_sliding_window=False)
  base, scaling = _rope(config)
  return _shared(config, tied=False) | {
    'head_width': fields.count(config, 'head_dim', 128),
    'rope_base': base,
    'rope_scaling': scaling,
    'activation': 'swiglu',
    'qk_norm': True,
  }


def _qwen3_config(spec):
  return {'model_type': 'qwen3', 'hidden_act': 'silu'} | _written(spec)


def _gemma3(config, names):
  fields.require(
    config,
    hidden_activation='gelu_pytorch_tanh',
    use_bidirectional_attention=False,
  )
  spec = _shared(config, tied=True)
  window, every = _windows(config, spec['depth'])
  base, scaling = _rope(config, _FULL)
  return spec | {
    'head_width': fields.count(config, 'head_dim', 256),
    'norm_offset': 1.0,
    'norm_order': 'both',
    'rope_base': base,
    'rope_scaling': scaling,
    'window': window,
    'window_rope_base': _rope(config, _SLIDING)[0],
    'global_every': every,
    'embed_scale': spec['width'] ** 0.5,
    'activation': 'geglu',
    'qk_norm': True,
    'attention_scale': fields.number(config, 'query_pre_attn_scalar', 256)
    ** -0.5,
    'attention_softcap': fields.optional(config, 'attn_logit_softcapping'),
    'logit_softcap': fields.optional(config, 'final_logit_softcapping'),
  }


def _windows(config, depth):
  """Reads the window, and every how many layers one has none."""
  window = fields.count(config, 'sliding_window', 4096)
  kinds = config.get('layer_types')
  if kinds is None:
    every = fields.count(config, 'sliding_window_pattern', 6)
    return window, every
  if not isinstance(kinds, list) or len(kinds) != depth:
    raise ValueError(
      f'config.json: layer_types are not those of {depth} layers'
    )
  every = kinds.index(_FULL) + 1 if _FULL in kinds else None
  if kinds != _kinds(depth, every):
    raise ValueError(
      'config.json: layer_types must repeat: some with a window, one without'
    )
  return window, every


def _kinds(depth: int, every: int | None) -> list[str]:
  return [
    _FULL if every and (i + 1) % every == 0 else _SLIDING for i in range(depth)
  ]


def _gemma3_config(spec):
  return _written(spec) | {
    'model_type': 'gemma3_text',
    'hidden_activation': 'gelu_pytorch_tanh',
    'layer_types': _kinds(spec['depth'], spec['global_every']),
    'sliding_window': spec['window'] or spec['length'],
    'rope_local_base_freq': spec['window_rope_base'],
    'query_pre_attn_scalar': round(spec['attention_scale'] ** -2),
    'attn_logit_softcapping': spec['attention_softcap'],
    'final_logit_softcapping': spec['logit_softcap'],
  }


_PRE = {
  'attention_norm': 'input_layernorm',
  'mlp_norm': 'post_attention_layernorm',
}
_BOTH = {
  'attention_norm': 'input_layernorm',
  'attention_after_norm': 'post_attention_layernorm',
  'mlp_norm': 'pre_feedforward_layernorm',
  'mlp_after_norm': 'post_feedforward_layernorm',
}

_MODELS = {
  name: fields.Architecture(
    fn='lm.models.decoder:make',
    table=lambda spec, norms=norms: _table(norms),
    settings=settings,
    config=config,
    prefix='model.',
    duplicates={'lm_head.weight': 'model.embed_tokens.weight'},
  )
  for name, norms, settings, config in (
    ('LlamaForCausalLM', _PRE, _llama, _llama_config),
    ('Qwen3ForCausalLM', _PRE, _qwen3, _qwen3_config),
    ('Gemma3ForCausalLM', _BOTH, _gemma3, _gemma3_config),
  )
}
# Gemma 3's classes with heads are left out: they were never compared.
ARCHITECTURES = _MODELS | {
  f'{name}For{task}Classification': headed.with_head(
    _MODELS[f'{name}ForCausalLM'], head, 'score', **settings
  )
  for name in ('Llama', 'Qwen3')
  for task, head, settings in (
    ('Sequence', 'classify', {'bias': False, 'pool': 'last'}),
    ('Token', 'tag', {}),
  )
}
