"""Tiny models of transformers, the other side of interop/interop_test.py.

Runs where torch and transformers are installed, which is not where the tests
run: it imports nothing of `lm`, and talks by files.

  python tests/interop_peer.py write tests/golden/interop.json
  python tests/interop_peer.py open FOLDER...

`write` makes the references that are stored: for each model its config, the
shapes of its tensors and its logits, in base64; of torch 2.13.0 and
transformers 5.23.0. Tensors are not stored: both sides compute them by
`tensor`. `open` opens exported folders with from_pretrained and writes their
logits to FOLDER/peer.npy; `words` opens tokenizers likewise.
"""

import base64
import importlib
import json
from pathlib import Path
import sys
from typing import Any

import numpy as np

VOCAB, LENGTH, SOURCE = 64, 12, 9
_DECODER = {
  'vocab_size': VOCAB,
  'hidden_size': 32,
  'intermediate_size': 64,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
}
_GPT2 = {
  'vocab_size': VOCAB,
  'n_positions': 32,
  'n_embd': 32,
  'n_layer': 2,
  'n_head': 4,
  'bos_token_id': 0,
  'eos_token_id': 0,
}
_BERT = {
  'vocab_size': VOCAB,
  'hidden_size': 32,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'intermediate_size': 64,
  'max_position_embeddings': 32,
}
_THREE = {'id2label': {0: 'no', 1: 'yes', 2: 'maybe'}}
_T5 = {
  'vocab_size': VOCAB,
  'd_model': 32,
  'd_kv': 16,
  'd_ff': 64,
  'num_layers': 2,
  'num_heads': 4,
  'relative_attention_num_buckets': 8,
  'relative_attention_max_distance': 10,
  'decoder_start_token_id': 0,
}
# name: (class, settings). Heads wider than D / N, ungrouped queries, two kinds
# of layers: where a wrong layout would show.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
  'gpt2': ('GPT2LMHeadModel', _GPT2),
  'gpt2 classes': (
    'GPT2ForSequenceClassification',
    {**_GPT2, **_THREE, 'pad_token_id': 0},
  ),
  'gpt2 tags': ('GPT2ForTokenClassification', {**_GPT2, **_THREE}),
  'llama': ('LlamaForCausalLM', {**_DECODER, 'rope_theta': 5e4}),
  'llama classes': (
    'LlamaForSequenceClassification',
    {**_DECODER, **_THREE, 'pad_token_id': 0},
  ),
  'qwen3 tags': (
    'Qwen3ForTokenClassification',
    {**_DECODER, **_THREE, 'head_dim': 16},
  ),
  'llama3': (
    'LlamaForCausalLM',
    {
      **_DECODER,
      'head_dim': 16,
      # Of its 8 frequencies some stay, one is between, and some are divided.
      'rope_parameters': {
        'rope_type': 'llama3',
        'rope_theta': 100.0,
        'factor': 8.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 32,
      },
    },
  ),
  'yarn': (
    'LlamaForCausalLM',
    {
      **_DECODER,
      'head_dim': 16,
      'rope_parameters': {
        'rope_type': 'yarn',
        'rope_theta': 100.0,
        'factor': 2.0,
        'beta_slow': 1.0,
        'beta_fast': 4.0,
        'original_max_position_embeddings': 32,
      },
    },
  ),
  'llama tied': (
    'LlamaForCausalLM',
    {**_DECODER, 'tie_word_embeddings': True, 'head_dim': 16},
  ),
  'qwen3': ('Qwen3ForCausalLM', {**_DECODER, 'head_dim': 16}),
  'gemma3': (
    'Gemma3ForCausalLM',
    {
      **_DECODER,
      'num_hidden_layers': 4,
      'head_dim': 16,
      'sliding_window': 4,
      'query_pre_attn_scalar': 24,
      'final_logit_softcapping': 3.0,
      'layer_types': ['sliding_attention', 'full_attention'] * 2,
      'rope_parameters': {
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e3},
        'full_attention': {
          'rope_type': 'linear',
          'rope_theta': 1e5,
          'factor': 4.0,
        },
      },
      'attn_implementation': 'eager',
    },
  ),
  'bert': ('BertForMaskedLM', _BERT),
  'bert pretraining': ('BertForPreTraining', _BERT),
  'bert bare': ('BertModel', _BERT),
  'bert classes': ('BertForSequenceClassification', {**_BERT, **_THREE}),
  'bert tags': ('BertForTokenClassification', {**_BERT, **_THREE}),
  'bert answers': ('BertForQuestionAnswering', _BERT),
  't5': ('T5ForConditionalGeneration', {**_T5, 'num_decoder_layers': 1}),
  't5 v1.1 tied': (
    'T5ForConditionalGeneration',
    {**_T5, 'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False},
  ),
}
# Versions of transformers before 5 left it apart, and 5 reads it so.
UNTIED = 't5 v1.1'


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Computes a tensor's numbers from its name, norms and biases too."""
  size = int(np.prod(shape))
  key = sum((n + 1) * ord(c) for n, c in enumerate(name)) % 9973
  # Sines of the golden angle: no two tensors alike, no order that would hide
  # an exchange of dimensions.
  x = np.sin(2.399963 * np.arange(size) ** 1.1 + key)
  x *= 0.3 if len(shape) > 1 else 0.5
  centre = 1.0 if len(shape) == 1 and name.endswith('weight') else 0.0
  return (x + centre).astype(np.float32).reshape(shape)


def inputs(name: str) -> dict[str, np.ndarray]:
  """Gives what a model is asked, by the names of transformers: int64."""
  ids = 3 + np.arange(2 * LENGTH).reshape(2, LENGTH) * 7 % (VOCAB - 3)
  if name.startswith('t5'):
    source = 3 + np.arange(2 * SOURCE).reshape(2, SOURCE) * 5 % (VOCAB - 3)
    return {'input_ids': source, 'decoder_input_ids': ids}
  if name.startswith('bert'):
    kinds = np.tile(np.arange(LENGTH) >= LENGTH // 2, (2, 1)).astype(np.int64)
    return {'input_ids': ids, 'token_type_ids': kinds}
  return {'input_ids': ids}


def _package(name: str) -> Any:
  """Imports by name: a type checker has no torch to look at."""
  return importlib.import_module(name)


def _answer(model, name):
  """Asks for logits, or hidden vectors where there are none."""
  torch = _package('torch')
  with torch.no_grad():
    out = model.eval()(**{k: torch.tensor(v) for k, v in inputs(name).items()})
  if getattr(out, 'start_logits', None) is not None:
    return torch.stack([out.start_logits, out.end_logits], 1).float().numpy()
  for field in ('logits', 'prediction_logits', 'last_hidden_state'):
    if getattr(out, field, None) is not None:
      return getattr(out, field).float().numpy()
  raise AssertionError(name)


def write(path: str) -> None:
  """Writes the references."""
  torch, transformers = _package('torch'), _package('transformers')
  torch.set_num_threads(1)
  found = {}
  for name, (kind, settings) in [
    *MODELS.items(),
    (UNTIED, MODELS['t5 v1.1 tied']),
  ]:
    class_ = getattr(transformers, kind)
    model = class_(class_.config_class(**settings))
    if name == UNTIED:
      model.lm_head.weight = torch.nn.Parameter(model.shared.weight.clone())
    shapes = {}
    with torch.no_grad():
      for key, x in model.named_parameters():
        shapes[key] = list(x.shape)
        x.copy_(torch.tensor(tensor(key, tuple(x.shape))))
    answer = _answer(model, name)
    model.config.architectures = [kind]
    found[name] = {
      'config': json.loads(model.config.to_json_string()),
      'shapes': shapes,
      'answer': {
        'shape': list(answer.shape),
        'float32': base64.b64encode(answer.astype('<f4').tobytes()).decode(),
      },
    }
  Path(path).write_text(json.dumps(found, indent=1) + '\n')


def open_(folders: list[str]) -> None:
  """Answers for exported folders; the last part of a name is the model's."""
  transformers = _package('transformers')
  for folder in map(Path, folders):
    name = folder.name.replace('_', ' ')
    config = json.loads((folder / 'config.json').read_text())
    class_ = getattr(transformers, config['architectures'][0])
    model, report = class_.from_pretrained(folder, output_loading_info=True)
    wrong = {
      k: [n for n in v if 'pooler' not in n] for k, v in report.items() if v
    }
    if any(wrong.values()):
      raise SystemExit(f'{folder}: {wrong}')
    np.save(folder / 'peer.npy', _answer(model, name))


def words(folders: list[str]) -> None:
  """Encodes FOLDER/texts.json and back with the tokenizer of a folder."""
  transformers = _package('transformers')
  for folder in map(Path, folders):
    there = transformers.AutoTokenizer.from_pretrained(folder)
    texts = json.loads((folder / 'texts.json').read_text(encoding='utf-8'))
    rows = [there(text)['input_ids'] for text in texts]
    found = {
      'ends': [there.bos_token_id, there.eos_token_id, there.pad_token_id],
      'mask': there.mask_token_id,
      'size': len(there),
      'ids': rows,
      'texts': [there.decode(row) for row in rows],
    }
    (folder / 'peer.json').write_text(json.dumps(found))


if __name__ == '__main__':
  if sys.argv[1] == 'write':
    write(sys.argv[2])
  else:
    {'open': open_, 'words': words}[sys.argv[1]](sys.argv[2:])
