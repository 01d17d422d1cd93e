"""The config of a run of the experiment.

  config.py:VARIANT    VARIANT is one of `VARIANTS`

A small decoder reads novels by bytes: four blocks of width 64, rows of 256.
"""

from typing import Any

from configs import base

WIDTH, DEPTH, LENGTH, HEADS = 64, 4, 256, 4
DATA = 'data/hybrids'
# Which blocks are attention, and what those of attention have.
VARIANTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
  'attention': (('main',), {}),
  'hybrid': (('delta', 'delta', 'delta', 'main'), {}),
  'gate_element': (('main',), {'gate': 'element'}),
  'gate_head': (('main',), {'gate': 'head'}),
  'sink': (('main',), {'scores': base.scores(sink=True)}),
  'value_embed': (('main',), {'value_embed': True}),
  'hybrid_gate': (('delta', 'delta', 'delta', 'main'), {'gate': 'element'}),
}


def model(variant: str, length: int = LENGTH) -> dict[str, Any]:
  """Returns the spec of the model of a variant."""
  pattern, parts = VARIANTS[variant]
  spec = base.modern(
    heads=HEADS,
    width=WIDTH,
    depth=DEPTH,
    length=length,
    head=base.output(tied=False),
  )
  spec['blocks']['main']['mixer'] |= parts
  delta = {'fn': 'lm.layers.delta:make', 'heads': HEADS}
  if 'delta' in pattern:
    mlp = base.mlp(activation='relu2')
    spec['blocks']['delta'] = base.block(delta, mlp, base.rmsnorm())
  return spec | {'pattern': pattern}


def get_config(variant: str):
  """Returns the config of a variant."""
  c = base.get_config()
  c.batch_size = 8
  c.tokenizer = {'fn': 'lm.data.tokenizers.utf8_bytes:make'}
  c.data.sources = {'train': {'path': f'{DATA}/train', 'weight': 1.0}}
  c.data.length = LENGTH
  c.evals.valid.path = f'{DATA}/valid'
  c.evals.valid.length = LENGTH
  c.model = model(variant)
  c.optim.warmup = 0.05
  c.optim.final = 0.0
  c.log_every = 50
  return c.lock()
