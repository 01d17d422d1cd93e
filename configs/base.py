"""Declares every key of a config, with its default.

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
      # 'deterministic': the same bits on 1, 2, 4 or 8 devices of one kind that
      # cut rows (data, fsdp, expert), see lm.training.deterministic
      'numerics': 'fast',
      'logical_shards': 8,  # that a deterministic batch is cut into
      'save_every': 250,  # steps; the last step is always saved
      'grace_seconds': 25.0,  # from SIGTERM to the end, with a save in between
      'keep': 3,  # newest checkpoints that stay, at least two
      'keep_every': 0,  # steps whose multiples stay for ever; 0: none
      'log_every': 10,  # steps that one line of metrics.jsonl sums up
      # Where metrics go beside metrics.jsonl, see docs/monitoring.md.
      'log': {
        'to': (),  # some of 'tensorboard', 'wandb', 'trackio'
        'project': 'lm',  # that W&B and trackio list the run under
        'name': None,  # of the run there; None: that of its folder
        'writer': None,  # spec of a writer of yours
        # steps after which norms of gradients, parameters and updates are
        # written by layer; 0: never
        'norms_every': 0,
      },
      'profile': (),  # first and last step of a trace, such as (100, 110)
      'eval_every': 0,  # steps; 0 leaves evaluation to lm.evaluate
      # A run that is evaluated in training can end with its best checkpoint.
      'early': {
        'metric': None,  # such as 'valid/loss_nats'; None: ends with the last
        'higher': False,  # whether higher is better
        'patience': 3,  # evaluations without a better one that end the run
      },
      'max_skipped': 20,  # updates in a row that may be dropped
      'max_rollbacks': 2,  # times a run goes back when more are dropped
      # A run that hangs prints the stacks of all threads and ends with code 10.
      'watchdog': {
        'factor': 20.0,  # times its usual time that a step may take; 0: any
        'least_seconds': 300.0,  # that it may take, however short it usually is
        # that it may take while no usual time is known; the start, too
        'first_seconds': 14400.0,
      },
      'threads': 2,  # that read batches ahead
      'prefetch': 4,  # batches held ready
      'fit': None,  # spec of what lm.fit does instead of training by gradients
      'init_from': None,  # workdir of a run whose parameters to start from
      'init_paths': (),  # which: 'theirs=ours' or 'both'; (): the whole tree
      'branch_from': None,  # workdir of a run whose whole state to go on from
      'branch_step': None,  # its step that this is
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
        # other weights from a step on: ((5000, {'train': 2.0}),)
        'changes': (),
        # other lengths of rows from a step on: ((0, 64), (500, 256))
        'lengths': (),
        # T: sources are read by weight * tokens^(1 / T), so that 1 follows
        # their sizes and more evens them out; None: by weight alone
        'temperature': None,
        # epochs of a source in the whole run at most; what exceeds goes to the
        # others; None: no limit
        'max_epochs': None,
      },
      'model': decoder(),
      'loss': {
        'fn': 'lm.loss:make',
        'z_weight': 0.0,
        'smoothing': 0.0,
        'chunks': None,  # parts of a row, scored in turn; None chooses
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
          'chunks': None,  # as in the loss
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
      # The runs that lm.evaluate evaluates, beside its --workdir.
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


# Parts of models. Each call makes a new dict: one dict in two places would be
# one part of the config, and loading refuses that.


def attention(**changes: Any) -> dict[str, Any]:
  """Softmax attention of a text by itself."""
  return {
    'fn': 'lm.layers.attention:make',
    'heads': 4,  # query heads
    'kv_heads': None,  # heads of keys and values; None: as many as heads
    'head_width': None,  # features a head; None: width / heads
    'bias': False,  # biases in the four projections
    'window': None,  # positions that are seen, in tokens; None: all
    'positions': None,  # rotary() or relative(); None: none here
    'qk_norm': None,  # norm of queries and keys; None: none
    'gate': 'none',  # of its output: none, a number a head, or an element
    'value_embed': False,  # whether values have an embedding of their token
    'scores': scores(),
  } | changes


def cross_attention(**changes: Any) -> dict[str, Any]:
  """Attention of the decoder's text to the encoder's."""
  return {
    'fn': 'lm.layers.attention:cross',
    'heads': 4,
    'head_width': None,  # features a head; None: width / heads
    'bias': False,
    'scores': scores(),
  } | changes


def scores(**changes: Any) -> dict[str, Any]:
  """How an attention computes its scores."""
  return {
    'fn': 'lm.layers.attention:scores',
    'scale': None,  # factor; None: 1 / sqrt(head_width)
    'softcap': None,  # bound of a score; None: none
    'sink': False,  # whether heads have a score without a value
    'kernel': 'auto',  # or einsum, blockwise, splash (TPU), cudnn (GPU)
  } | changes


def rotary(**changes: Any) -> dict[str, Any]:
  """Rotary positions."""
  return {
    'fn': 'lm.layers.positions:rotary',
    'base': 10_000.0,  # of the frequencies
    'fraction': 1.0,  # share of a head's features that is rotated
    'scaling': None,  # {'kind', 'factor', ...}: longer texts; None: none
  } | changes


def relative(**changes: Any) -> dict[str, Any]:
  """T5's relative positions."""
  return {
    'fn': 'lm.layers.positions:relative',
    'buckets': 32,  # distances that are told apart
    'max_distance': 128,  # tokens; all that is farther is one bucket
  } | changes


def mlp(**changes: Any) -> dict[str, Any]:
  """The mlp of a block."""
  return {
    'fn': 'lm.layers.mlp:make',
    'width': None,  # hidden features; None: four times the model's width
    'activation': 'gelu',  # gelu_exact, relu, relu2; gated: swiglu, geglu
    'bias': False,
  } | changes


def experts(**changes: Any) -> dict[str, Any]:
  """A mixture of experts, in the place of an mlp."""
  return {
    'fn': 'lm.layers.experts:make',
    'count': 8,  # experts
    'width': None,  # hidden features of one; None: four times the model's width
    'activation': 'swiglu',
    'shared_experts': 0,  # that all tokens read
    'capacity': None,  # tokens a row, times the even share; None: no limit
    'router': router(),
  } | changes


def router(**changes: Any) -> dict[str, Any]:
  """How tokens choose experts."""
  return {
    'fn': 'lm.layers.routing:router',
    'top_k': 2,  # experts that a token reads
    'scoring': 'softmax',  # or sigmoid
    'normalize': True,  # weights of a token's experts sum to 1
    'balance_weight': 0.01,  # of the loss that balances loads; 0: none
    'balance_bias': False,  # balances loads by a bias of the choice
    'z_weight': 0.0,  # of the loss that keeps logits small; 0: none
  } | changes


def rmsnorm(**changes: Any) -> dict[str, Any]:
  """RMSNorm."""
  return {
    'fn': 'lm.layers.norms:rmsnorm',
    'epsilon': 1e-6,  # added to the mean square
    'offset': 0.0,  # added to the scale; 1 of Gemma
  } | changes


def layernorm(**changes: Any) -> dict[str, Any]:
  """LayerNorm."""
  return {
    'fn': 'lm.layers.norms:layernorm',
    'epsilon': 1e-5,  # added to the variance
    'bias': True,
  } | changes


def block(
  mixer: dict[str, Any],
  mlp: dict[str, Any],
  norm: dict[str, Any],
  **changes: Any,
) -> dict[str, Any]:
  """A kind of block."""
  return {
    'fn': 'lm.layers.blocks:make',
    'mixer': mixer,  # moves information along the text
    'mlp': mlp,  # works on each token alone
    'norm': norm,
    'order': 'pre',  # norms before parts; post: after them; both
    'cross': None,  # cross_attention() of a decoder with an encoder
  } | changes


def embedding(**changes: Any) -> dict[str, Any]:
  """From tokens to vectors."""
  return {
    'fn': 'lm.layers.vocabulary:embedding',
    'positions': 'none',  # learned, sinusoids, or none here
    'token_types': 0,  # kinds of token, such as sentence A and B; 0: none
    'scale': None,  # factor; None: 1, or sqrt(width) with sinusoids
    'std': 0.02,  # standard deviation of the initial tables
  } | changes


def output(**changes: Any) -> dict[str, Any]:
  """From vectors to logits."""
  return {
    'fn': 'lm.layers.vocabulary:output',
    'tied': True,  # the output layer is the embedding table
    'scale': 1.0,  # factor on what the output layer reads
    'softcap': None,  # bound of a logit; None: none
    'bias': False,  # one for each entry of the vocabulary
    'std': None,  # initial standard deviation if not tied; None: init's
  } | changes


def init(**changes: Any) -> dict[str, Any]:
  """Initial values of kernels."""
  return {
    'fn': 'lm.layers.parts:init',
    'std': 0.02,  # standard deviation; None: 1 / sqrt(inputs)
    'outputs': 'scaled',  # last kernels: / sqrt(2 depth); or plain, or zero
  } | changes


def mup(base_width: int = 64, **changes: Any) -> dict[str, Any]:
  """Initial values of a model whose learning rates were tuned at a width."""
  return {
    'fn': 'lm.layers.transfer:mup',
    'base_width': base_width,  # of the model that rates were tuned for
    'base_depth': None,  # its blocks, to transfer over depth; None: not
    'base_head_width': None,  # its features a head, if heads grow; None: not
    'std': 0.02,  # standard deviation in the base; None: 1 / sqrt(inputs)
    'outputs': 'scaled',  # last kernels: / sqrt(2 depth); or plain, or zero
  } | changes


# Models.


def decoder(heads: int = 4, **changes: Any) -> dict[str, Any]:
  """A GPT-2-like decoder."""
  main = block(attention(heads=heads, bias=True), mlp(bias=True), layernorm())
  return {
    'fn': 'lm.models.decoder:make',
    'length': 256,  # longest text, in tokens
    'width': 256,  # features of the stream
    'depth': 4,  # blocks
    'blocks': {'main': main},  # kinds of block, by name
    'pattern': ('main',),  # kinds in their order, repeated to the depth
    'first': (),  # kinds of the first blocks, before the pattern
    'norm': layernorm(),  # after the last block
    'embed': embedding(positions='learned'),
    'head': output(),
    'init': init(),
    'dropout': 0.0,  # rate on embeddings and branches
    'scan': False,  # compile repetitions of the pattern once
    'remat': 'none',  # compute again in the backward pass: full, dots
    'dtype': 'float32',  # of activations; or bfloat16
    'compute_dtype': 'float32',  # of factors; bfloat16, int8, fp8
  } | changes


def modern(heads: int = 4, **changes: Any) -> dict[str, Any]:
  """A small decoder of 2026.

  RMSNorm, RoPE, QK-norm, ReLU^2, no biases, output projections that start at
  zero: of modded-nanogpt's record runs.
  """
  mixer = attention(heads=heads, positions=rotary(), qk_norm=rmsnorm())
  main = block(mixer, mlp(activation='relu2'), rmsnorm())
  return (
    decoder()
    | {
      'blocks': {'main': main},
      'norm': rmsnorm(),
      'embed': embedding(),
      'init': init(std=None, outputs='zero'),
    }
    | changes
  )


def llama(
  mixer: dict[str, Any],
  mlp: dict[str, Any],
  epsilon: float = 1e-6,
  **changes: Any,
) -> dict[str, Any]:
  """A decoder with RMSNorm and positions in its attention, such as Llama."""
  main = block(mixer, mlp, rmsnorm(epsilon=epsilon))
  return (
    decoder()
    | {
      'blocks': {'main': main},
      'norm': rmsnorm(epsilon=epsilon),
      'embed': embedding(),
    }
    | changes
  )


def encoder(
  heads: int = 4, order: str = 'post', **changes: Any
) -> dict[str, Any]:
  """A BERT."""

  def norm():
    return layernorm(epsilon=1e-12)

  main = block(
    attention(heads=heads, bias=True),
    mlp(activation='gelu_exact', bias=True),
    norm(),
    order=order,
  )
  return {
    'fn': 'lm.models.encoder:make',
    'length': 256,  # longest text, in tokens
    'width': 256,  # features of the stream
    'depth': 4,  # blocks
    'blocks': {'main': main},
    'pattern': ('main',),
    'first': (),
    'norm': norm(),  # of embeddings, of the transform, and the final one
    'final_norm': order != 'post',  # after the last block
    'embed': embedding(positions='learned', token_types=2),
    'head': {
      'fn': 'lm.models.encoder:head',
      'transform': True,  # a layer before the output layer
      'activation': 'gelu_exact',  # of that layer
      'next_sentence': False,  # the first position tells it
    },
    'init': init(outputs='plain'),
    'dropout': 0.0,
    'scan': False,
    'remat': 'none',
    'dtype': 'float32',
    'compute_dtype': 'float32',
  } | changes


def side(main: dict[str, Any], norm: dict[str, Any] | None, depth: int = 4):
  """The blocks of an encoder-decoder's encoder or decoder."""
  return {
    'fn': 'lm.models.encdec:side',
    'depth': depth,  # blocks
    'blocks': {'main': main},
    'pattern': ('main',),
    'first': (),
    'norm': norm,  # after the last block; None: none
  }


def transformer(
  heads: int = 4,
  *,
  depth: int = 4,
  mlp_width: int | None = None,
  order: str = 'post',
  **changes: Any,
) -> dict[str, Any]:
  """The Transformer of 2017, but for initial values."""

  def one_side(**cross):
    main = block(
      attention(heads=heads, bias=True),
      mlp(width=mlp_width, activation='relu', bias=True),
      layernorm(),
      order=order,
      **cross,
    )
    return side(main, None if order == 'post' else layernorm(), depth)

  return {
    'fn': 'lm.models.encdec:make',
    'width': 256,  # features of both streams
    'encoder': one_side(),
    'decoder': one_side(cross=cross_attention(heads=heads, bias=True)),
    'embed': embedding(positions='sinusoids'),
    'head': output(std=0.02),
    'init': init(std=None, outputs='plain'),
    'dropout': 0.0,
    'scan': False,
    'remat': 'none',
    'dtype': 'float32',
    'compute_dtype': 'float32',
  } | changes


def t5(
  heads: int = 4,
  *,
  depth: int = 4,
  head_width: int | None = None,
  mlp_width: int | None = None,
  gated: bool = False,
  scale: float = 1.0,
  **changes: Any,
) -> dict[str, Any]:
  """T5; `gated`, with a head that is not tied, is T5 v1.1.

  `scale` multiplies what the output layer reads: 1 / sqrt(width) of T5.
  """

  def one_side(**cross):
    mixer = attention(
      heads=heads,
      head_width=head_width,
      positions=relative(),
      scores=scores(scale=1.0),
    )
    activation = 'geglu' if gated else 'relu'
    thinks = mlp(width=mlp_width, activation=activation)
    return side(block(mixer, thinks, rmsnorm(), **cross), rmsnorm(), depth)

  cross = cross_attention(
    heads=heads, head_width=head_width, scores=scores(scale=1.0)
  )
  return (
    transformer()
    | {
      'encoder': one_side(),
      'decoder': one_side(cross=cross),
      'embed': embedding(),
      'head': output(std=0.02, tied=not gated, scale=scale),
    }
    | changes
  )


def recurrent(cell: str = 'lstm', **changes: Any) -> dict[str, Any]:
  """A recurrent language model."""
  main = {
    'fn': 'lm.layers.blocks:single',
    # elman, lstm or gru
    'mixer': {'fn': 'lm.layers.recurrent:make', 'cell': cell},
  }
  return {
    'fn': 'lm.models.recurrent:make',
    'width': 256,  # features of embeddings and of every layer
    'depth': 2,  # layers
    'blocks': {'main': main},
    'pattern': ('main',),
    'first': (),
    'bidirectional': False,  # a second stack reads from the right
    'embed': embedding(std=0.1),
    'head': output(bias=True),
    'init': init(std=None, outputs='plain'),
    'dropout': 0.0,  # rate on what each layer and the output read
    'variational': True,  # one dropout mask for all steps
    'scan': False,
    'remat': 'none',
    'dtype': 'float32',
    'compute_dtype': 'float32',
  } | changes


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


def size(word: str, sizes: Mapping[str, Any]) -> Any:
  """Looks the size up that a config's argument names.

  Raises:
    ValueError: it is none of them.
  """
  if word not in sizes:
    raise ValueError(f'{word!r} is no size: give one of {", ".join(sizes)}')
  return sizes[word]


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
    'fn': 'lm.optim.optimizers:make',
    'rule': {
      'fn': 'lm.optim.rules:adamw',
      'b1': 0.9,  # average of gradients
      'b2': 0.95,  # average of their squares
      'eps': 1e-8,
      'moment_dtype': 'float32',  # of the first moment; or bfloat16
    },
    'peak': 1e-3,  # highest learning rate
    'schedule': 'cosine',  # or constant, linear, rsqrt, wsd
    'warmup': 100.0,  # steps before the peak; below 1: their share of all
    'final': 0.1,  # learning rate of the last step, as a part of the peak
    'clip': 1.0,  # largest norm of all gradients together
    'spike_factor': 0.0,  # times the median norm: more is dropped; 0: nothing
    'decay': 0.1,  # weight decay, times the learning rate
    'l1': 0.0,  # weight of a penalty on absolute values
    'l2': 0.0,  # weight of a penalty on squares
    'decay_where': 'everywhere',  # or aligned: cautious weight decay
    'sphere': '',  # or matrix, neuron: what keeps its norm
    'average': '',  # or ema, tail, schedule_free: what the run is used with
    'ema_decay': 0.999,  # of ema: weight of the old average
    'tail': 0.2,  # of tail: updates at the end; below 1: their share
  }


def muon() -> dict[str, Any]:
  """Muon on matrices and AdamW on the rest, cooled down to zero."""
  return {
    'fn': 'lm.optim.optimizers:make',
    'rule': {
      'fn': 'lm.optim.rules:muon',
      'adam_peak': 0.005,  # highest learning rate of all but matrices
      'momentum': 0.95,
      'b2': 0.99,  # AdamW's average of squares
    },
    'peak': 0.01,  # highest learning rate of matrices
    'schedule': 'wsd',  # warmup, stable, decay
    'decay_fraction': 0.7,  # of the steps, at their end
    'warmup': 20.0,  # steps before the peak; below 1: their share of all
    'final': 0.0,  # learning rate of the last step, as a part of the peak
    'clip': 1.0,  # largest norm of all gradients together
    'spike_factor': 0.0,  # times the median norm: more is dropped; 0: nothing
    'decay': 0.1,  # weight decay, times the learning rate
    'decay_where': 'everywhere',  # or aligned: cautious weight decay
    'sphere': '',  # or matrix, neuron: what keeps its norm
    'average': '',  # or ema, tail, schedule_free: what the run is used with
    'ema_decay': 0.999,  # of ema: weight of the old average
    'tail': 0.2,  # of tail: updates at the end; below 1: their share
  }
