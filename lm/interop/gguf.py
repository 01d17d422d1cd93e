"""Llama-type models in GGUF files, the format of llama.cpp, for import.

Quantized tensors become float32, as `gguf` makes them.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from lm.data import tokenizer_json
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
_CONTROL, _USER = 3, 4  # of tokens: made of no text; taken as they stand


def open_file(path: Path) -> tensors.Source:
  """Opens a file as if it were a folder of transformers.

  Raises:
    ValueError: it is broken, or of another architecture; one line.
  """
  reader = _reader(path)
  config = _config(reader, path)
  names = {_name(t.name): t for t in reader.tensors}
  heads = {
    'q_proj.weight': config['num_attention_heads'],
    'k_proj.weight': config['num_key_value_heads'],
  }

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
        # llama.cpp rotates neighbours where we rotate halves.
        x = x.reshape(count, -1, 2, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)
    return x

  config['tie_word_embeddings'] = 'lm_head.weight' not in names
  return tensors.Source(
    where=str(path),
    config=config,
    shapes={name: _shape(t) for name, t in names.items()},
    read=read,
    dtype='float32',
  )


def tokenizer(path: Path) -> dict[str, Any]:
  """Makes the content of a tokenizer.json from what the file carries.

  Raises:
    ValueError: it has none of a kind that is known; one line.
  """
  reader = _reader(path)

  def listed(key, kind):
    found = _value(reader, path, f'tokenizer.ggml.{key}', list)
    if not all(isinstance(x, kind) for x in found):
      raise ValueError(f'{path}: tokenizer.ggml.{key} is no list of {kind}')
    return found

  kind = _value(reader, path, 'tokenizer.ggml.model', str)
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
      _value(reader, path, 'tokenizer.ggml.pre', str, 'default'),
      added=user,
    )
  if kind == 'llama':
    return tokenizer_json.metaspace(
      tokens,
      listed('scores', float),
      kinds,
      prefix=_value(
        reader, path, 'tokenizer.ggml.add_space_prefix', bool, True
      ),
    )
  raise ValueError(
    f'{path}: a tokenizer of kind {kind!r:.40} is not read; gpt2 and llama are'
  )


def _reader(path: Path) -> gguf.GGUFReader:
  try:
    return gguf.GGUFReader(path)
  except OSError as error:
    raise ValueError(f'{path}: cannot be read ({error.strerror})') from error
  # A broken file leads anywhere in it.
  except Exception as error:
    raise ValueError(
      f'{path}: not a sound GGUF file ({type(error).__name__}: {error!s:.60});'
      ' fetch it again'
    ) from error


def _value(reader, path, key, kind, default=None):
  field = reader.fields.get(key)
  try:
    value = default if field is None else field.contents()
  except Exception as error:
    raise ValueError(f'{path}: {key} is broken ({error!s:.60})') from error
  if not isinstance(value, kind):
    raise ValueError(f'{path}: {key} is missing or is no {kind.__name__}')
  return value


def _config(reader, path):
  kind = _value(reader, path, 'general.architecture', str)
  if kind != 'llama':
    raise ValueError(
      f'{path}: architecture {kind!r:.40} is not read from GGUF; llama is'
    )

  def count(key, default=None):
    return _value(reader, path, f'llama.{key}', int, default)

  heads = count('attention.head_count')
  width = count('embedding_length')
  if _value(reader, path, 'llama.rope.scaling.type', str, 'none') != 'none':
    raise ValueError(f'{path}: rope scaling is not supported')
  return {
    'architectures': ['LlamaForCausalLM'],
    'vocab_size': len(_value(reader, path, 'tokenizer.ggml.tokens', list)),
    'max_position_embeddings': count('context_length'),
    'hidden_size': width,
    'num_hidden_layers': count('block_count'),
    'num_attention_heads': heads,
    'num_key_value_heads': count('attention.head_count_kv', heads),
    'head_dim': count('rope.dimension_count', width // heads if heads else 0),
    'intermediate_size': count('feed_forward_length'),
    'rms_norm_eps': _value(
      reader, path, 'llama.attention.layer_norm_rms_epsilon', float
    ),
    'rope_theta': _value(reader, path, 'llama.rope.freq_base', float, 1e4),
    **{
      f'{name}_token_id': _value(
        reader, path, f'tokenizer.ggml.{key}_token_id', int, -1
      )
      for name, key in (('bos', 'bos'), ('eos', 'eos'), ('pad', 'padding'))
    },
  }


def _name(name: str) -> str:
  if name in _REST:
    return _REST[name]
  head, _, rest = name.partition('.')
  number, _, rest = rest.partition('.')
  part = rest.removesuffix('.weight')
  if head == 'blk' and part in _BLOCK and rest.endswith('.weight'):
    return f'model.layers.{number}.{_BLOCK[part]}.weight'
  return name  # not expected, and `layout.check` says so


def _shape(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
  return tuple(int(n) for n in reversed(tensor.shape))
