"""Peers in torch: a small GPT under torch.compile, and transformers' GPT-2.

The GPT uses what torch users expect to be fast: fused attention, one product
for q, k and v, fused AdamW, bfloat16 by autocast. It runs in an environment of
its own, without `lm` or jax.
"""

from collections.abc import Mapping
import importlib
from typing import Any

from tools.bench import protocol
from tools.bench import spec as specs

# Imported by name, since neither type checkers nor most users have torch here.
torch: Any = importlib.import_module('torch')
nn = torch.nn
functional = nn.functional

_DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


class _Block(nn.Module):
  def __init__(self, s: specs.Spec):
    super().__init__()
    self.heads = s.heads
    self.attention_norm = nn.LayerNorm(s.width)
    self.qkv = nn.Linear(s.width, 3 * s.width)
    self.o = nn.Linear(s.width, s.width)
    self.mlp_norm = nn.LayerNorm(s.width)
    self.up = nn.Linear(s.width, s.mlp)
    self.down = nn.Linear(s.mlp, s.width)

  def forward(self, x_BLD):
    B, L, D = x_BLD.shape
    q_BNLH, k_BNLH, v_BNLH = (
      y.view(B, L, self.heads, -1).transpose(1, 2)
      for y in self.qkv(self.attention_norm(x_BLD)).split(D, dim=2)
    )
    mixed_BNLH = functional.scaled_dot_product_attention(
      q_BNLH, k_BNLH, v_BNLH, is_causal=True
    )
    x_BLD = x_BLD + self.o(mixed_BNLH.transpose(1, 2).reshape(B, L, D))
    h_BLF = functional.gelu(self.up(self.mlp_norm(x_BLD)), approximate='tanh')
    return x_BLD + self.down(h_BLF)


class _Decoder(nn.Module):
  def __init__(self, s: specs.Spec):
    super().__init__()
    self.table = nn.Embedding(s.vocab, s.width)
    self.positions = nn.Embedding(s.length, s.width)
    self.blocks = nn.ModuleList(_Block(s) for _ in range(s.depth))
    self.final_norm = nn.LayerNorm(s.width)
    for name, parameter in self.named_parameters():
      if name.endswith('bias'):
        nn.init.zeros_(parameter)
      elif parameter.dim() > 1:
        output = name.endswith(('.o.weight', '.down.weight'))
        scale = (2 * s.depth) ** -0.5 if output else 1.0
        nn.init.normal_(parameter, std=0.02 * scale)

  def forward(self, tokens_BL, targets_BL):
    places_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
    x_BLD = self.table(tokens_BL) + self.positions(places_L)
    for block in self.blocks:
      x_BLD = block(x_BLD)
    logits_BLV = functional.linear(self.final_norm(x_BLD), self.table.weight)
    return functional.cross_entropy(
      logits_BLV.flatten(0, 1), targets_BL.flatten()
    )


def training(spec: list[Any], precision: str) -> protocol.Workload:
  """Trains on random tokens; arguments are those of `ours.training`."""
  torch.manual_seed(0)
  torch.set_float32_matmul_precision('high')  # as jax's default on GPU: TF32
  s = specs.Spec(*spec)
  model = _Decoder(s).to(_DEVICE)
  matrices = [p for p in model.parameters() if p.dim() > 1]
  vectors = [p for p in model.parameters() if p.dim() < 2]
  optimizer = torch.optim.AdamW(
    [{'params': matrices, 'weight_decay': 0.1}, {'params': vectors}],
    lr=1e-3,
    betas=(0.9, 0.95),
    weight_decay=0.0,
    fused=True,
  )
  compiled = torch.compile(model)
  ids_BL = torch.randint(0, s.vocab, (s.batch, s.length + 1)).to(_DEVICE)
  tokens_BL, targets_BL = ids_BL[:, :-1], ids_BL[:, 1:]

  on_gpu = _DEVICE == 'cuda'
  steps = specs.AHEAD if on_gpu else 1

  def advance() -> Mapping[str, float]:
    loss: Any = None
    for _ in range(steps):
      with torch.autocast(
        _DEVICE, dtype=torch.bfloat16, enabled=precision == 'bf16'
      ):
        loss = compiled(tokens_BL, targets_BL)
      loss.backward()
      nn.utils.clip_grad_norm_(model.parameters(), 1.0)
      optimizer.step()
      optimizer.zero_grad(set_to_none=True)
    _wait()
    return {'loss_nats': loss.item()}

  parameters = sum(p.numel() for p in model.parameters())
  facts = {'parameters': parameters, 'versions': _versions('torch')}
  return protocol.Workload(
    advance,
    s.batch * s.length * steps,
    facts,
    memory=torch.cuda.max_memory_allocated if on_gpu else lambda: None,
  )


def generation(spec: list[Any], batch: int, new: int) -> protocol.Workload:
  """Generates by transformers; arguments are those of `ours.generation`."""
  transformers: Any = importlib.import_module('transformers')
  transformers.logging.set_verbosity_error()
  torch.manual_seed(0)
  s = specs.Spec(*spec)
  config = transformers.GPT2Config(
    vocab_size=s.vocab,
    n_positions=new + 1,
    n_embd=s.width,
    n_layer=s.depth,
    n_head=s.heads,
    n_inner=s.mlp,
    bos_token_id=None,
    eos_token_id=None,
  )
  model = transformers.GPT2LMHeadModel(config).to(_DEVICE).eval()
  prompts_BL = torch.arange(3, 3 + batch, device=_DEVICE)[:, None]

  def advance() -> Mapping[str, float]:
    with torch.inference_mode():
      text_BL = model.generate(
        prompts_BL,
        attention_mask=torch.ones_like(prompts_BL),
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
      )
    _wait()
    assert text_BL.shape == (batch, new + 1), text_BL.shape
    return {}

  versions = _versions('torch', 'transformers')
  return protocol.Workload(advance, batch * new, {'versions': versions})


def _wait() -> None:
  if _DEVICE == 'cuda':
    torch.cuda.synchronize()


def _versions(*names: str) -> dict[str, str]:
  return {name: importlib.import_module(name).__version__ for name in names}


if __name__ == '__main__':
  protocol.serve({'training': training, 'generation': generation})
