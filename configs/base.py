"""What every config starts from: each key declared, each default in sight.

A config file imports this, changes what it is about, and returns it locked:
a misspelt key is an error there as it is on the command line.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict


def get_config() -> Any:
  """Returns the defaults as a ConfigDict; new keys cannot be added."""
  return config_dict.ConfigDict(
    {
      'seed': 0,  # of initial parameters, of the data's order and of dropout
      'steps': 1_000,
      'batch_size': 16,  # rows a step, over all devices and microbatches
      'microbatches': 1,  # parts of a batch that are computed in turn
      # 'deterministic': the same bits on any mesh, lm.training.deterministic
      'numerics': 'fast',
      'logical_shards': 8,  # that a deterministic batch is cut into
      'save_every': 250,  # steps; the last step is always saved
      'keep': 3,  # newest checkpoints that stay
      'keep_every': 0,  # steps whose multiples stay for ever; 0: none
      'log_every': 10,  # steps that one line of metrics.jsonl sums up
      'eval_every': 0,  # steps; 0 leaves judging to lm.evaluate
      # A run that is judged while it trains can end with its best checkpoint.
      'early': {
        'metric': None,  # such as 'valid/loss_nats'; None: ends with the last
        'higher': False,  # whether higher is better
        'patience': 3,  # evaluations without a better one that end the run
      },
      'max_skipped': 20,  # updates in a row that may be non-finite
      'threads': 2,  # that read batches ahead
      'prefetch': 4,  # batches held ready
      'fit': None,  # spec of what lm.fit does instead of training by gradients
      'init_from': None,  # workdir of a run whose parameters to start from
      'init_paths': (),  # which: 'theirs=ours' or 'both'; (): the whole tree
      'allow': (),  # key prefixes that may differ from the checkpoint resumed
      'tokenizer': {
        'fn': 'lm.data.tokenizers.sentencepiece:make',
        'path': 'data/embedded/tokenizer.model',
        'reserved': 0,  # ids for masks and sentinels, beside those of the text
      },
      'data': {
        'fn': 'lm.data.stream:make',
        'sources': {'train': {'path': 'data/embedded/train', 'weight': 1.0}},
        'length': 256,
        'objective': {'fn': 'lm.data.objectives:causal'},
        'changes': (),
        'lengths': (),
      },
      'model': decoder(),
      'loss': {
        'fn': 'lm.loss:make',
        'z_weight': 0.0,
        'smoothing': 0.0,
        'chunks': 1,
      },
      'optim': adamw(),
      # spec of how gradients are made private, see lm.training.privacy
      'privacy': None,
      'evals': {
        'valid': {
          'fn': 'lm.evals.likelihood:make',
          'path': 'data/embedded/valid',
          'batch_size': 16,
          'length': 256,
          'objective': {'fn': 'lm.data.objectives:causal'},
          'chunks': 1,
        },
      },
      'mesh': {
        'data': None,  # all devices that are left
        'stage': 1,
        'fsdp': 1,
        'expert': 1,
        'sequence': 1,
        'tensor': 1,
        'slices': 1,
      },
      # What lm.plan plans for: the smallest machine that this is meant for,
      # and the size of the vocabulary where the tokenizer is not at hand.
      'plan': {'target': 'cpu:1', 'vocab': None},
      # What lm.evaluate judges, beside the folders of its --workdir.
      'evaluate': {
        'workdirs': (),  # folders of runs, and patterns such as 'runs/base-*'
        'steps': None,  # None: all; 'last'; or which, such as (500, 1000)
      },
      'sharding': {
        'layers': 'stage',
        'vocab': 'tensor',
        'embed': 'fsdp',
        'heads': 'tensor',
        'kv_heads': 'tensor',
        'mlp': 'tensor',
        'expert': 'expert',
      },
    }
  )


def decoder() -> dict[str, Any]:
  """A GPT-2-like decoder, every setting of `lm.models.decoder.make` shown."""
  return {
    'fn': 'lm.models.decoder:make',
    'length': 256,
    'width': 256,
    'depth': 4,
    'heads': 4,
    'kv_heads': None,
    'head_width': None,
    'mlp': None,
    'experts': None,
    'dense_layers': 0,
    'norm': 'layernorm',
    'norm_epsilon': None,
    'norm_offset': 0.0,
    'norm_order': 'pre',
    'positions': 'learned',
    'rope_base': 10_000.0,
    'rope_share': 1.0,
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
    'attention_kernel': 'auto',
    'logit_softcap': None,
    'tied': True,
    'dropout': 0.0,
    'kernel_std': 0.02,
    'zero_outputs': False,
    'scan': False,
    'remat': 'none',
    'dtype': 'float32',
    'compute_dtype': 'float32',
  }


def experts() -> dict[str, Any]:
  """A mixture of experts, every setting of `lm.layers.experts.make` shown."""
  return {
    'fn': 'lm.layers.experts:make',
    'experts': 8,
    'top_k': 2,
    'width': None,
    'shared': 0,
    'scoring': 'softmax',
    'normalize': True,
    'dispatch': 'dropless',
    'capacity': 1.25,
    'balance_weight': 0.01,
    'balance_bias': False,
    'z_weight': 0.0,
  }


def ngram() -> tuple[config_dict.ConfigDict, config_dict.ConfigDict]:
  """Kneser-Ney with 5-grams: `model` and `fit` of a config."""
  model = config_dict.ConfigDict({'fn': 'lm.models.ngram:make', 'order': 5})
  fit = {
    'fn': 'lm.models.ngram:fit',
    'order': model.get_ref('order'),  # --config.model.order changes both
    'method': 'kneser_ney',
    'k': 1.0,
  }
  return model, config_dict.ConfigDict(fit)


def glove() -> tuple[config_dict.ConfigDict, config_dict.ConfigDict]:
  """GloVe's vectors: `model` and `fit` of a config."""
  model = config_dict.ConfigDict(
    {'fn': 'lm.models.embeddings:vectors', 'width': 128}
  )
  fit = {
    'fn': 'lm.models.embeddings:glove',
    'width': model.get_ref('width'),  # --config.model.width changes both
    'window': 10,
    'cap': 100.0,
    'power': 0.75,
    'epochs': 25,
    'rate': 0.05,
    'seed': 0,
  }
  return model, config_dict.ConfigDict(fit)


def skip_gram() -> tuple[config_dict.ConfigDict, config_dict.ConfigDict]:
  """word2vec's vectors: `model` and `data.objective` of a config."""
  model = {'fn': 'lm.models.embeddings:make', 'width': 128}
  objective = {
    'fn': 'lm.data.objectives:skip_gram',
    'context': 5,
    'negatives': 5,
  }
  return config_dict.ConfigDict(model), config_dict.ConfigDict(objective)


def recurrent() -> dict[str, Any]:
  """An LSTM, every setting of `lm.models.recurrent.make` shown."""
  return {
    'fn': 'lm.models.recurrent:make',
    'width': 256,
    'depth': 2,
    'cell': 'lstm',
    'bidirectional': False,
    'tied': True,
    'dropout': 0.0,
    'variational': True,
    'embed_std': 0.1,
    'dtype': 'float32',
    'compute_dtype': 'float32',
  }


def size(word: str, sizes: Mapping[str, Any]) -> Any:
  """Looks the size up that a config's argument names.

  Raises:
    ValueError: it is none of them.
  """
  if word not in sizes:
    raise ValueError(f'{word!r} is no size: give one of {", ".join(sizes)}')
  return sizes[word]


def encoder() -> dict[str, Any]:
  """A BERT, every setting of `lm.models.encoder.make` shown."""
  return {
    'fn': 'lm.models.encoder:make',
    'length': 256,
    'width': 256,
    'depth': 4,
    'heads': 4,
    'mlp': None,
    'token_types': 2,
    'norm_epsilon': 1e-12,
    'norm_order': 'post',
    'activation': 'gelu_exact',
    'transform': True,
    'next_sentence': False,
    'attention_kernel': 'auto',
    'dropout': 0.0,
    'kernel_std': 0.02,
    'scan': False,
    'remat': 'none',
    'dtype': 'float32',
    'compute_dtype': 'float32',
  }


def transformer() -> dict[str, Any]:
  """The Transformer, every setting of `lm.models.encdec.make` shown."""
  return {
    'fn': 'lm.models.encdec:make',
    'width': 256,
    'depth': 4,
    'heads': 4,
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
    'dropout': 0.0,
    'kernel_std': None,
    'scan': False,
    'remat': 'none',
    'dtype': 'float32',
    'compute_dtype': 'float32',
  }


def t5() -> dict[str, Any]:
  """What all sizes of T5 share; an update of `transformer()`.

  `t5_v1_1()` on top of it is T5 v1.1.
  """
  return {
    'norm': 'rmsnorm',
    'norm_epsilon': 1e-6,
    'norm_order': 'pre',
    'positions': 'relative',
    'bias': False,
    'attention_scale': 1.0,
  }


def t5_v1_1() -> dict[str, Any]:
  """What T5 v1.1 changes: a gate, and an output layer of its own."""
  return {'activation': 'geglu', 'tied': False}


def masked() -> dict[str, Any]:
  """BERT's masked language modelling."""
  return {
    'fn': 'lm.data.masking:masked',
    'share': 0.15,
    'mask_share': 0.8,
    'random_share': 0.1,
    'whole_words': False,
    'span': None,
  }


def span_corruption(source: int) -> dict[str, Any]:
  """T5's objective for an encoder of `source` positions."""
  return {
    'fn': 'lm.data.corruption:span_corruption',
    'source': source,
    'noise': 0.15,
    'mean_span': 3.0,
  }


def adamw() -> dict[str, Any]:
  """AdamW with warmup and cosine."""
  return {
    'fn': 'lm.optim.optimizers:adamw',
    'peak': 1e-3,
    'schedule': 'cosine',
    'warmup': 100,
    'final': 0.1,
    'clip': 1.0,
    'decay': 0.1,
    'b1': 0.9,
    'b2': 0.95,
    'eps': 1e-8,
    'moment_dtype': 'float32',
    'l1': 0.0,
    'l2': 0.0,
  }


def modern() -> dict[str, Any]:
  """What small decoders of 2026 share; an update of `decoder()`.

  RMSNorm, RoPE, QK-norm, ReLU^2, no biases, output projections that start at
  zero: of modded-nanogpt's record runs.
  """
  return {
    'norm': 'rmsnorm',
    'positions': 'rope',
    'activation': 'relu2',
    'bias': False,
    'qk_norm': True,
    'kernel_std': None,
    'zero_outputs': True,
  }


def muon() -> dict[str, Any]:
  """Muon on matrices and AdamW on the rest, cooled down to zero."""
  return {
    'fn': 'lm.optim.optimizers:muon',
    'peak': 0.01,
    'adam_peak': 0.005,
    'schedule': 'wsd',
    'decay_fraction': 0.7,
    'warmup': 20,
    'final': 0.0,
    'clip': 1.0,
    'decay': 0.1,
    'momentum': 0.95,
    'b2': 0.99,
  }
