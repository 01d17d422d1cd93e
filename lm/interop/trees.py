"""Turns flat settings of a model into our tree of parts, and back.

A config.json of transformers has one list of settings for a whole model, and
our spec has settings for each of its parts. `grow` makes a spec from such a
list. `flatten` makes the list, if the model is one that a list can describe.
"""

from collections.abc import Mapping
from typing import Any

from lm import config
from lm.layers import positions, transfer

Spec = Mapping[str, Any]

# Settings of training and speed, which files of others do not have.
OURS = (
  'kernel',
  'dropout',
  'dtype',
  'init',
  'compute_dtype',
  'remat',
  'scan',
  'std',
  'temperature',
)
_DECODER = 'lm.models.decoder:make'
_ENCODER = 'lm.models.encoder:make'
_ENCDEC = 'lm.models.encdec:make'
# The settings that `grow` takes where a file has none.
_USUAL = {
  _DECODER: {
    'kv_heads': None,
    'head_width': None,
    'mlp': None,
    'norm': 'layernorm',
    'norm_epsilon': None,
    'norm_offset': 0.0,
    'norm_order': 'pre',
    'positions': 'learned',
    'rope_base': 10_000.0,
    'rope_scaling': None,
    'window': None,
    'window_rope_base': None,
    'global_every': None,
    'embed_scale': 1.0,
    'activation': 'gelu',
    'bias': True,
    'qk_norm': False,
    'attention_scale': None,
    'attention_softcap': None,
    'logit_softcap': None,
    'tied': True,
  },
  _ENCODER: {
    'mlp': None,
    'token_types': 2,
    'norm_epsilon': 1e-12,
    'norm_order': 'post',
    'activation': 'gelu_exact',
    'transform': True,
    'next_sentence': False,
  },
  _ENCDEC: {
    'decoder_depth': None,
    'head_width': None,
    'mlp': None,
    'norm': 'layernorm',
    'norm_epsilon': None,
    'norm_order': 'post',
    'positions': 'sinusoids',
    'buckets': 32,
    'max_distance': 128,
    'embed_scale': None,
    'activation': 'relu',
    'bias': True,
    'attention_scale': None,
    'tied': True,
    'output_scale': 1.0,
  },
}


def grow(flat: Spec) -> dict[str, Any]:
  """Makes the spec of a model from its settings, and fills it.

  Args:
    flat: `fn` and settings of `flatten`; or a head around such a `body`.
  """
  if 'body' in flat:
    return fill({**flat, 'body': grow(flat['body'])})
  settings = {**_USUAL.get(flat['fn'], {}), **flat}
  make = {_DECODER: _decoder, _ENCODER: _encoder, _ENCDEC: _encdec}
  return fill({'fn': flat['fn'], **make[flat['fn']](settings)})


def fill(spec: Spec) -> dict[str, Any]:
  """Adds the defaults of all parts."""
  return config.fill({'model': dict(spec)}).model.to_dict()


def flatten(spec: Spec) -> dict[str, Any]:
  """Lists the settings of a model, with numbers where None stands for one.

  Raises:
    ValueError: it has parts that settings of a whole model cannot say; one
      line.
  """
  if 'body' in spec:
    return {**fill(spec), 'body': flatten(spec['body'])}
  make = {_DECODER: _of_decoder, _ENCODER: _of_encoder, _ENCDEC: _of_encdec}
  if spec['fn'] not in make:
    raise ValueError(f'{spec["fn"]} has no counterpart in transformers')
  transfer.check_portable(fill(spec))
  tree = resolved(spec)
  try:
    flat = {'fn': spec['fn'], **make[spec['fn']](tree)}
    other = _first_difference('', tree, resolved(grow(flat)))
  except (KeyError, TypeError) as error:
    raise ValueError(
      f'its parts have no counterpart in transformers ({error!s:.40})'
    ) from error
  if other:
    raise ValueError(f'{other} has no counterpart in transformers')
  return flat


def resolved(spec: Spec) -> dict[str, Any]:
  """Writes out what None stands for, and blocks in their order.

  Settings of training and speed are left out.
  """
  tree = {k: v for k, v in fill(spec).items() if k not in OURS}
  width = tree['width']
  for name in ('encoder', 'decoder'):
    if name in tree:
      tree[name] = _ordered(tree[name], width)
  if 'blocks' in tree:
    tree = _ordered(tree, width)
  embed = tree['embed']
  usual = width**0.5 if embed['positions'] == 'sinusoids' else 1.0
  scale = usual if embed['scale'] is None else embed['scale']
  return _without_ours({**tree, 'embed': {**embed, 'scale': scale}})


def _ordered(side: dict[str, Any], width: int) -> dict[str, Any]:
  """Replaces names of blocks and their pattern by the list of all blocks."""
  side = dict(side)
  blocks, first = side.pop('blocks'), list(side.pop('first'))
  pattern = side.pop('pattern')
  rest = side['depth'] - len(first)
  names = [*first, *(pattern[n % len(pattern)] for n in range(rest))]
  known = {name: _block(blocks[name], width) for name in dict.fromkeys(names)}
  return {**side, 'layers': {str(n): known[x] for n, x in enumerate(names)}}


def _block(block: Spec, width: int) -> dict[str, Any]:
  block = dict(block)
  for name in ('mixer', 'cross'):
    if block.get(name) is None or 'heads' not in block[name]:
      continue
    part = dict(block[name])
    H = part['head_width'] or width // part['heads']
    part['head_width'] = H
    if 'kv_heads' in part:
      part['kv_heads'] = part['kv_heads'] or part['heads']
    scores = dict(part['scores'] or fill({'fn': 'lm.layers.attention:scores'}))
    if scores['scale'] is None:
      scores['scale'] = H**-0.5
    places = part.get('positions')
    if places and places.get('scaling'):
      scaling = positions.make_scaling(**places['scaling'])._asdict()
      part['positions'] = {**places, 'scaling': scaling}
    block[name] = {**part, 'scores': scores}
  if block['mlp'].get('width', 1) is None:
    block['mlp'] = {**block['mlp'], 'width': 4 * width}
  return block


def _without_ours(tree: Spec) -> dict[str, Any]:
  return {
    k: _without_ours(v) if isinstance(v, Mapping) else v
    for k, v in tree.items()
    if k not in OURS
  }


def _first_difference(where: str, a: Any, b: Any) -> str:
  """Names the first key at which two trees differ; '' if there is none."""
  if not (isinstance(a, Mapping) and isinstance(b, Mapping)):
    return '' if a == b else f'{where}={a!r:.40}'
  for key in sorted(a.keys() | b.keys()):
    there = f'{where}.{key}' if where else key
    if found := _first_difference(there, a.get(key), b.get(key)):
      return found
  return ''


def _norm(s: Spec, bias: bool = True) -> dict[str, Any]:
  epsilon = {} if s['norm_epsilon'] is None else {'epsilon': s['norm_epsilon']}
  if s.get('norm', 'layernorm') == 'rmsnorm':
    offset = s.get('norm_offset', 0.0)
    return {'fn': 'lm.layers.norms:rmsnorm', 'offset': offset, **epsilon}
  return {'fn': 'lm.layers.norms:layernorm', 'bias': bias, **epsilon}


def _of_norm(norm: Spec) -> dict[str, Any]:
  name = norm['fn'].rpartition(':')[2]
  return {'norm': name, 'norm_epsilon': norm['epsilon']}


def _mlp(s: Spec, bias: bool) -> dict[str, Any]:
  return {
    'fn': 'lm.layers.mlp:make',
    'width': s['mlp'],
    'activation': s['activation'],
    'bias': bias,
  }


def _scores(s: Spec) -> dict[str, Any]:
  return {
    'fn': 'lm.layers.attention:scores',
    'scale': s.get('attention_scale'),
    'softcap': s.get('attention_softcap'),
  }


def _decoder(s: Spec) -> dict[str, Any]:
  rotates = s['positions'] == 'rope'

  def block(window, base, scaling):
    rotary = {'fn': 'lm.layers.positions:rotary', 'base': base}
    mixer = {
      'fn': 'lm.layers.attention:make',
      'heads': s['heads'],
      'kv_heads': s['kv_heads'],
      'head_width': s['head_width'],
      'bias': s['bias'],
      'window': window,
      'positions': {**rotary, 'scaling': scaling} if rotates else None,
      'qk_norm': _norm({**s, 'norm': 'rmsnorm'}) if s['qk_norm'] else None,
      'scores': _scores(s),
    }
    return {
      'fn': 'lm.layers.blocks:make',
      'mixer': mixer,
      'mlp': _mlp(s, s['bias']),
      'norm': _norm(s, s['bias']),
      'order': s['norm_order'],
    }

  main = block(None, s['rope_base'], s['rope_scaling'])
  blocks, pattern = {'main': main}, ('main',)
  if s['window'] is not None:
    base = s['rope_base']
    if s['window_rope_base'] is not None:
      base = s['window_rope_base']
    local = block(s['window'], base, None)
    every = s['global_every']
    blocks = {'local': local, **(blocks if every else {})}
    pattern = ('local',) * (every - 1) + ('main',) if every else ('local',)
  return {
    **{k: s[k] for k in ('length', 'width', 'depth')},
    'blocks': blocks,
    'pattern': pattern,
    'norm': _norm(s, s['bias']),
    'embed': {
      'fn': 'lm.layers.vocabulary:embedding',
      'positions': 'none' if rotates else 'learned',
      'scale': s['embed_scale'],
    },
    'head': {
      'fn': 'lm.layers.vocabulary:output',
      'tied': s['tied'],
      'softcap': s['logit_softcap'],
    },
    'init': {'fn': 'lm.layers.parts:init'},
  }


def _of_decoder(tree: Spec) -> dict[str, Any]:
  layers = list(tree['layers'].values())
  windows = [layer['mixer']['window'] for layer in layers]
  local = next((x for x in layers if x['mixer']['window'] is not None), None)
  whole = next((x for x in layers if x['mixer']['window'] is None), None)
  main = whole or local
  assert main is not None
  mixer = main['mixer']
  rotary = mixer['positions'] or {'base': 10_000.0, 'scaling': None}
  nearby = rotary if local is None else local['mixer']['positions'] or rotary
  norm = _of_norm(main['norm'])
  every = windows.index(None) + 1 if local and None in windows else None
  return {
    **{k: tree[k] for k in ('length', 'width', 'depth')},
    'heads': mixer['heads'],
    'kv_heads': mixer['kv_heads'],
    'head_width': mixer['head_width'],
    'mlp': main['mlp']['width'],
    **norm,
    'norm_offset': main['norm'].get('offset', 0.0),
    'norm_order': main['order'],
    'positions': 'rope' if mixer['positions'] else 'learned',
    'rope_base': rotary['base'],
    'rope_scaling': rotary['scaling'],
    'window': None if local is None else local['mixer']['window'],
    'window_rope_base': nearby['base'],
    'global_every': every,
    'embed_scale': tree['embed']['scale'],
    'activation': main['mlp']['activation'],
    'bias': mixer['bias'],
    'qk_norm': mixer['qk_norm'] is not None,
    'attention_scale': mixer['scores']['scale'],
    'attention_softcap': mixer['scores']['softcap'],
    'logit_softcap': tree['head']['softcap'],
    'tied': tree['head']['tied'],
  }


def _encoder(s: Spec) -> dict[str, Any]:
  main = {
    'fn': 'lm.layers.blocks:make',
    'mixer': {
      'fn': 'lm.layers.attention:make',
      'heads': s['heads'],
      'bias': True,
      'scores': {'fn': 'lm.layers.attention:scores'},
    },
    'mlp': _mlp(s, True),
    'norm': _norm(s),
    'order': s['norm_order'],
  }
  return {
    **{k: s[k] for k in ('length', 'width', 'depth')},
    'blocks': {'main': main},
    'pattern': ('main',),
    'norm': _norm(s),
    'final_norm': s['norm_order'] != 'post',
    'embed': {
      'fn': 'lm.layers.vocabulary:embedding',
      'positions': 'learned',
      'token_types': s['token_types'],
    },
    'head': {
      'fn': 'lm.models.encoder:head',
      'transform': s['transform'],
      'activation': s['activation'],
      'next_sentence': s['next_sentence'],
    },
    'init': {'fn': 'lm.layers.parts:init', 'outputs': 'plain'},
  }


def _of_encoder(tree: Spec) -> dict[str, Any]:
  main = tree['layers']['0']
  return {
    **{k: tree[k] for k in ('length', 'width', 'depth')},
    'heads': main['mixer']['heads'],
    'mlp': main['mlp']['width'],
    'token_types': tree['embed']['token_types'],
    'norm_epsilon': main['norm']['epsilon'],
    'norm_order': main['order'],
    'activation': main['mlp']['activation'],
    'transform': tree['head']['transform'],
    'next_sentence': tree['head']['next_sentence'],
  }


def _encdec(s: Spec) -> dict[str, Any]:
  attention = {
    'heads': s['heads'],
    'head_width': s['head_width'],
    'bias': s['bias'],
    'scores': _scores(s),
  }
  relative = None
  if s['positions'] == 'relative':
    relative = {
      'fn': 'lm.layers.positions:relative',
      'buckets': s['buckets'],
      'max_distance': s['max_distance'],
    }
  mixer = {'fn': 'lm.layers.attention:make', **attention}

  def side(depth, **cross):
    main = {
      'fn': 'lm.layers.blocks:make',
      'mixer': {**mixer, 'positions': relative},
      'mlp': _mlp(s, s['bias']),
      'norm': _norm(s, s['bias']),
      'order': s['norm_order'],
      **cross,
    }
    last = None if s['norm_order'] == 'post' else _norm(s, s['bias'])
    return {
      'fn': 'lm.models.encdec:side',
      'depth': depth,
      'blocks': {'main': main},
      'pattern': ('main',),
      'norm': last,
    }

  cross = {'fn': 'lm.layers.attention:cross', **attention}
  return {
    'width': s['width'],
    'encoder': side(s['depth']),
    'decoder': side(s['decoder_depth'] or s['depth'], cross=cross),
    'embed': {
      'fn': 'lm.layers.vocabulary:embedding',
      'positions': 'sinusoids' if relative is None else 'none',
      'scale': s['embed_scale'],
    },
    'head': {
      'fn': 'lm.layers.vocabulary:output',
      'tied': s['tied'],
      'scale': s['output_scale'],
      'std': 0.02,
    },
    'init': {'fn': 'lm.layers.parts:init', 'std': None, 'outputs': 'plain'},
  }


def _of_encdec(tree: Spec) -> dict[str, Any]:
  main = tree['encoder']['layers']['0']
  mixer = main['mixer']
  relative = mixer['positions'] or {'buckets': 32, 'max_distance': 128}
  return {
    'width': tree['width'],
    'depth': tree['encoder']['depth'],
    'decoder_depth': tree['decoder']['depth'],
    'heads': mixer['heads'],
    'head_width': mixer['head_width'],
    'mlp': main['mlp']['width'],
    **_of_norm(main['norm']),
    'norm_order': main['order'],
    'positions': 'relative' if mixer['positions'] else 'sinusoids',
    'buckets': relative['buckets'],
    'max_distance': relative['max_distance'],
    'embed_scale': tree['embed']['scale'],
    'activation': main['mlp']['activation'],
    'bias': mixer['bias'],
    'attention_scale': mixer['scores']['scale'],
    'tied': tree['head']['tied'],
    'output_scale': tree['head']['scale'],
  }
