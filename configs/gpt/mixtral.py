"""A mixture of experts of 46.7B parameters, in the shape of Mixtral 8x7B.

  python -m lm.train --config=configs/gpt/mixtral.py --workdir=runs/mixtral

A token reads 12.9B of them: two of eight experts in every layer. Data and
tokenizer are yours to prepare (tools/prepare_data.py), with a vocabulary of up
to 32,000. Not trained by us; built at full size in the tests.

Reference: Jiang et al. 2024, arXiv 2401.04088, section 2, whose training is not
told: the balance loss is Switch's (arXiv 2101.03961), the rest Llama's.
"""

from configs import base


def get_config():
  """Returns the config."""
  c = base.get_config()
  c.steps = 100_000
  c.batch_size = 256
  c.save_every = 1_000
  c.tokenizer.path = 'data/mixtral/tokenizer.model'
  c.data.sources.train.path = 'data/mixtral/train'
  c.data.length = 4096
  c.model = base.llama(
    base.attention(heads=32, kv_heads=8, positions=base.rotary(base=1e6)),
    base.experts(width=14_336),
    epsilon=1e-5,
    length=4096,
    width=4096,
    depth=32,
    head=base.output(tied=False),
    scan=True,
    remat='full',
    dtype='bfloat16',
    compute_dtype='bfloat16',
  )
  c.optim.peak = 3e-4
  c.optim.warmup = 2_000
  c.mesh.update(fsdp=16, expert=8)
  c.plan.target, c.plan.vocab = 'v5p:4x4x8', 32_000
  c.evals.valid.path = 'data/mixtral/valid'
  c.evals.valid.length = 4096
  return c.lock()
