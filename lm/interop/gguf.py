"""Reads Llama-type models from GGUF files, the format of llama.cpp.

The package `gguf` turns quantized tensors into float32.
"""

from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from lm.data.tokenizers import tokenizer_json
from lm.interop import tensors

_BLOCK = {
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
_REST = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
}
# Types of tokens: control tokens occur in no text, and tokens that a user has
# added are taken out of a text as they are.
_CONTROL, _USER = 3, 4


_FREQUENCIES = 'rope_freqs.weight'
# Metadata of a model, by what follows 'llama.': those that are read, and those
# that are supported with some values only, or say nothing of what it computes.
_READ = frozenset(
  (
    'attention.head_count',
    'attention.head_count_kv',
    'attention.key_length',
    'attention.layer_norm_rms_epsilon',
    'attention.value_length',
    'block_count',
    'context_length',
    'embedding_length',
    'feed_forward_length',
    'rope.dimension_count',
    'rope.freq_base',
    'rope.scale_linear',
    'rope.scaling.factor',
    'rope.scaling.original_context_length',
    'rope.scaling.type',
    'rope.scaling.yarn_beta_fast',
    'rope.scaling.yarn_beta_slow',
  )
)
_FIXED = {
  'attention.causal': (True,),
  'attention.layer_norm_epsilon': None,  # of another norm
  'expert_count': (0,),
  'expert_used_count': (0,),
  'rope.scaling.attn_factor': (1.0,),
  'rope.scaling.finetuned': None,
  'rope.scaling.yarn_attn_factor': (1.0,),
  'rope.scaling.yarn_ext_factor': (1.0,),
  'tensor_data_layout': ('Meta AI original pth',),
  'use_parallel_residual': (False,),
  'vocab_size': None,  # the tokens are counted
}
_WORDS = 'tokenizer.ggml.'
# Metadata of a tokenizer, by what follows that. Those of ids around a text, and
# of tokens with a name, change no ids of a text.
_OF_WORDS = frozenset(
  (
    'add_bos_token',
    'add_eos_token',
    'add_sep_token',
    'add_space_prefix',
    'merges',
    'model',
    'pre',
    'scores',
    'token_type',
    'token_type_count',
    'tokens',
  )
)
_ENDS = ('eos', 'eot', 'eom')  # tokens at which llama.cpp ends a text


class _Reader(gguf.GGUFReader):
  """Reads nothing behind the end of a file.

  The package takes that for values of no bytes, and appends as many of them to
  a list as a number in the file says: a short file could take all memory.
  """

  def _get(self, offset, dtype, count=1, override_order=None):
    if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
      raise ValueError('it ends early')
    return super()._get(offset, dtype, count, override_order)


class File(NamedTuple):
  """An open file. Its fields have been read, which takes seconds."""

  path: Path
  reader: gguf.GGUFReader


def open_file(path: Path) -> File:
  """Opens a file.

  Raises:
    ValueError: the file is missing or broken; one line.
  """
  try:
    return File(path, _Reader(path))
  except OSError as error:
    raise ValueError(f'{path}: cannot be read ({error.strerror})') from error
  # A broken file may fail anywhere in that package.
  except Exception as error:
    raise ValueError(
      f'{path}: not a sound GGUF file ({type(error).__name__}: {error!s:.60});'
      ' fetch it again'
    ) from error


def model(file: File) -> tensors.Source:
  """Returns the model in the form of a folder of transformers.

  Raises:
    ValueError: the model has another architecture, or a field is broken; one
      line.
  """
  config = _config(file)
  names = {
    _name(t.name): t for t in file.reader.tensors if t.name != _FREQUENCIES
  }
  heads = {
    'q_proj.weight': config['num_attention_heads'],
    'k_proj.weight': config['num_key_value_heads'],
  }

  # A frequency below 0 turns a pair of features the other way around. So does
  # one above 0, if the two features change places.
  divisors = _frequencies(file)
  turned = np.array(divisors or [1.0])[:, None] < 0

  def read(name: str) -> np.ndarray:
    tensor = names[name]
    try:
      x = gguf.dequantize(tensor.data, tensor.tensor_type)
    except (NotImplementedError, ValueError) as error:
      raise ValueError(
        f'tensor {name}: {tensor.tensor_type.name} is not read ({error})'
      ) from error
    x = np.asarray(x, np.float32).reshape(_shape(tensor))
    for end, count in heads.items():
      if name.endswith(end):
        # llama.cpp rotates pairs of neighbouring dimensions, and lm rotates the
        # first half with the second: the same model in another order.
        pairs = x.reshape(count, -1, 2, x.shape[-1]).swapaxes(1, 2)
        x = np.where(turned, pairs[:, ::-1], pairs).reshape(x.shape)
    return x

  config['tie_word_embeddings'] = 'lm_head.weight' not in names
  return tensors.Source(
    where=str(file.path),
    config=config,
    shapes={name: _shape(t) for name, t in names.items()},
    read=read,
    dtype='float32',
  )


def tokenizer(file: File) -> dict[str, Any]:
  """Makes the content of a tokenizer.json from the tokenizer in the file.

  Raises:
    ValueError: the file has no tokenizer of a known kind; one line.
  """

  def listed(key, kind):
    values = _value(file, f'tokenizer.ggml.{key}', list)
    if not all(isinstance(x, kind) for x in values):
      raise ValueError(
        f'{file.path}: tokenizer.ggml.{key} must be a list of {kind.__name__}'
      )
    return values

  kind = _value(file, 'tokenizer.ggml.model', str)
  for key in file.reader.fields:
    name = key.removeprefix(_WORDS)
    if name != key and name not in _OF_WORDS and not name.endswith('_token_id'):
      raise ValueError(f'{file.path}: {key} is not supported')
  tokens, kinds = listed('tokens', str), listed('token_type', int)
  if kind == 'gpt2':
    control, user = (
      {i for i, kind in enumerate(kinds[: len(tokens)]) if kind == wanted}
      for wanted in (_CONTROL, _USER)
    )
    return tokenizer_json.byte_level(
      tokens,
      listed('merges', str),
      control,
      _value(file, 'tokenizer.ggml.pre', str, 'default'),
      added=user,
    )
  if kind == 'llama':
    return tokenizer_json.metaspace(
      tokens,
      listed('scores', float),
      kinds,
      prefix=_value(file, 'tokenizer.ggml.add_space_prefix', bool, True),
    )
  raise ValueError(
    f'{file.path}: a tokenizer of kind {kind!r:.40} is not read; gpt2 and llama'
    ' are'
  )


def chat_template(file: File) -> str | None:
  """Returns the template of chats in the file, if it has one."""
  return _value(file, 'tokenizer.chat_template', str | None)


def _value(file, key, kind, default=None):
  field = file.reader.fields.get(key)
  try:
    value = default if field is None else field.contents()
  except Exception as error:
    raise ValueError(f'{file.path}: {key} is broken ({error!s:.60})') from error
  if not isinstance(value, kind):
    name = getattr(kind, '__name__', 'number')
    raise ValueError(f'{file.path}: {key} is missing or not a {name}')
  return value


def _config(file):
  kind = _value(file, 'general.architecture', str)
  if kind != 'llama':
    raise ValueError(
      f'{file.path}: architecture {kind!r:.40} is not read from GGUF; llama is'
    )

  for key, field in file.reader.fields.items():
    name = key.removeprefix('llama.')
    if name == key or name in _READ:
      continue
    known = _FIXED.get(name, ())
    if known is not None and field.contents() not in known:
      raise ValueError(
        f'{file.path}: {key}={field.contents()!r:.40} is not supported'
      )

  def count(key, default=None):
    return _value(file, f'llama.{key}', int, default)

  heads = count('attention.head_count')
  width = count('embedding_length')
  head_width = count('attention.key_length', width // heads if heads else 0)
  for key in ('attention.value_length', 'rope.dimension_count'):
    if count(key, head_width) != head_width:
      raise ValueError(
        f'{file.path}: llama.{key}={count(key)} is not supported; only '
        f'{head_width}, the width of a head, is'
      )
  return {
    'architectures': ['LlamaForCausalLM'],
    'vocab_size': len(_value(file, 'tokenizer.ggml.tokens', list)),
    'max_position_embeddings': count('context_length'),
    'hidden_size': width,
    'num_hidden_layers': count('block_count'),
    'num_attention_heads': heads,
    'num_key_value_heads': count('attention.head_count_kv', heads),
    'head_dim': head_width,
    'intermediate_size': count('feed_forward_length'),
    'rms_norm_eps': _value(
      file, 'llama.attention.layer_norm_rms_epsilon', float
    ),
    'rope_parameters': _rope(file, count('context_length')),
    'bos_token_id': _id(file, 'bos'),
    'eos_token_id': [_id(file, name) for name in _ENDS],
    'pad_token_id': _id(file, 'padding'),
  }


def _id(file: File, name: str) -> int:
  """Reads the id of a special token; -1 if there is none."""
  return _value(file, f'{_WORDS}{name}_token_id', int, -1)


def _rope(file: File, length: int) -> dict[str, Any]:
  """Reads rotary positions, as a config.json of transformers has them.

  Raises:
    ValueError: their scaling is not supported.
  """

  def number(key, default):
    return float(_value(file, f'llama.rope.{key}', int | float, default))

  kind = _value(file, 'llama.rope.scaling.type', str, 'linear')
  # The older key is of files without the newer one; 0 stands for none.
  factor = number('scaling.factor', number('scale_linear', 0)) or 1.0
  content = {'rope_theta': number('freq_base', 1e4)}
  factors = _frequencies(file)
  if kind in ('none', 'linear'):
    factor = 1.0 if kind == 'none' else factor
    if factors is None:
      content |= {'rope_type': 'default'}
      if factor != 1:
        content |= {'rope_type': 'linear', 'factor': factor}
      return content
    # Llama 3.1: each frequency has a divisor of its own.
    factors = [factor * abs(x) for x in factors]
    return content | {
      'rope_type': 'longrope',
      'short_factor': factors,
      'long_factor': factors,
      'attention_factor': 1.0,
    }
  if kind == 'yarn' and factors is None:
    original = number('scaling.original_context_length', 0) or length
    return content | {
      'rope_type': 'yarn',
      'factor': factor,
      'original_max_position_embeddings': original,
      'beta_fast': number('scaling.yarn_beta_fast', 32),
      'beta_slow': number('scaling.yarn_beta_slow', 1),
    }
  more = '' if factors is None else f' with {_FREQUENCIES}'
  raise ValueError(
    f'{file.path}: rope scaling of type {kind!r:.40}{more} is not supported; '
    'only none, linear, yarn are'
  )


def _frequencies(file: File) -> list[float] | None:
  """Reads the divisors of the frequencies, if the file has them."""
  for tensor in file.reader.tensors:
    if tensor.name == _FREQUENCIES:
      return [float(x) for x in np.asarray(tensor.data, np.float32).ravel()]
  return None


def _name(name: str) -> str:
  if name in _REST:
    return _REST[name]
  head, _, rest = name.partition('.')
  number, _, rest = rest.partition('.')
  part = rest.removesuffix('.weight')
  if head == 'blk' and part in _BLOCK and rest.endswith('.weight'):
    return f'model.layers.{number}.{_BLOCK[part]}.weight'
  return name  # unknown: `layout.check` reports it


def _shape(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
  return tuple(int(n) for n in reversed(tensor.shape))
