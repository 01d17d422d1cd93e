"""Many small experts: 16.9B parameters, in the shape of DeepSeekMoE 16B.

  python -m lm.train --config=configs/gpt/deepseek_moe.py --workdir=runs/moe

A token reads 2.8B of them: 6 of 64 experts, and two more that all tokens share.
Unlike there, the first layer has experts too, so that all layers are alike and
can be scanned; and loads are balanced as in DeepSeek-V3, by a bias that follows
them and next to no loss. Data and tokenizer are yours to prepare
(tools/prepare_data.py), with a vocabulary of up to 102,400. Not trained by us;
built at full size in the tests.

Reference: Dai et al. 2024, arXiv 2401.06066, section 5.1; DeepSeek-V3, arXiv
2412.19437, section 2.1.2.
"""

from configs import base


def get_config():
  """Returns the config."""
  c = base.get_config()
  c.steps = 100_000
  c.batch_size = 256
  c.save_every = 1_000
  c.tokenizer.path = 'data/deepseek/tokenizer.model'
  c.data.sources.train.path = 'data/deepseek/train'
  c.data.length = 4096
  router = base.router(
    top_k=6, scoring='sigmoid', balance_weight=1e-4, balance_bias=True
  )
  c.model = base.llama(
    base.attention(heads=16, positions=base.rotary()),
    base.experts(count=64, width=1408, shared_experts=2, router=router),
    length=4096,
    width=2048,
    depth=28,
    head=base.output(tied=False),
    scan=True,
    remat='full',
    dtype='bfloat16',
    compute_dtype='bfloat16',
  )
  c.optim.peak = 4.2e-4
  c.optim.warmup = 2_000
  c.mesh.update(fsdp=8, expert=8)
  c.plan.target, c.plan.vocab = 'v5p:4x4x4', 102_400
  c.evals.valid.path = 'data/deepseek/valid'
  c.evals.valid.length = 4096
  return c.lock()
