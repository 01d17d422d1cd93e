"""A Llama-shaped model of 1.2B parameters, in the shape of Llama 3.2 1B.

  python -m lm.train --config=configs/gpt/llama_1b.py --workdir=runs/llama

Data and tokenizer are yours to prepare (tools/prepare_data.py), with a
vocabulary of up to 128,256. Not trained by us; built at full size in the tests.

Reference: Dubey et al. 2024, arXiv 2407.21783, section 3.2; the 1B's shape is
that of its published model card.
"""

from configs import base


def get_config():
  """Returns the config."""
  c = base.get_config()
  c.steps = 100_000
  c.batch_size = 256
  c.save_every = 1_000
  c.tokenizer.path = 'data/llama/tokenizer.model'
  c.data.sources.train.path = 'data/llama/train'
  c.data.length = 4096
  c.model = base.llama(
    base.attention(heads=32, kv_heads=8, positions=base.rotary(base=500_000.0)),
    base.mlp(width=8192, activation='swiglu'),
    length=4096,
    width=2048,
    depth=16,
    scan=True,
    remat='dots',
    dtype='bfloat16',
    compute_dtype='bfloat16',
  )
  c.optim.peak = 3e-4
  c.optim.warmup = 2_000
  c.mesh.fsdp = 8
  c.plan.target, c.plan.vocab = 'v5p:4x4x4', 128_256
  c.evals.valid.path = 'data/llama/valid'
  c.evals.valid.length = 4096
  return c.lock()
