"""Llama, Qwen3 and Gemma 3 in files of Hugging Face transformers.

Reference: Touvron et al. 2023, arXiv 2302.13971; Yang et al. 2025, arXiv
2505.09388; Gemma 3, arXiv 2503.19786.
"""

from collections.abc import Mapping

from lm.interop import fields, headed, layout, rope

_FULL, _SLIDING = rope.FULL, rope.SLIDING


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
    **rope.written(spec),
    'tie_word_embeddings': spec['tied'],
    'attention_bias': False,
  }


def _llama(config, names):
  fields.require(config, hidden_act='silu')
  width, heads = config.get('hidden_size'), config.get('num_attention_heads')
  spec = _shared(config, tied=False)
  base, scaling = rope.read(config)
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
  spec = _shared(config, tied=False)
  if config.get('layer_types') is not None:
    kinds = _layer_types(config, spec['depth'])
    if kinds.count(_FULL) < len(kinds):
      raise ValueError(
        f'config.json: layer_types={kinds!r:.40} is not supported; only '
        f'{_FULL} in each layer is'
      )
  base, scaling = rope.read(config)
  return spec | {
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
  base, scaling = rope.read(config, _FULL)
  return spec | {
    'head_width': fields.count(config, 'head_dim', 256),
    'norm_offset': 1.0,
    'norm_order': 'both',
    'rope_base': base,
    'rope_scaling': scaling,
    'window': window,
    'window_rope_base': rope.read(config, _SLIDING)[0],
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
  if config.get('layer_types') is None:
    every = fields.count(config, 'sliding_window_pattern', 6)
    return window, every if every <= depth else None
  kinds = _layer_types(config, depth)
  every = kinds.index(_FULL) + 1 if _FULL in kinds else None
  if kinds != _kinds(depth, every):
    raise ValueError(
      'config.json: layer_types must repeat: some with a window, one without'
    )
  return window, every


def _layer_types(config, depth):
  """Reads the kind of each layer."""
  kinds = config['layer_types']
  if not isinstance(kinds, list) or len(kinds) != depth:
    raise ValueError(
      f'config.json: layer_types={kinds!r:.40}: are not those of {depth} layers'
    )
  return kinds


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
    rotary=rope.KEYS if name == 'Gemma3ForCausalLM' else rope.KEYS[:-1],
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
