"""Readings of compiled programs are compared with what must be there."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from lm import sharding
from lm.planning import hlo

TEXT = """
HloModule jit_f, is_scheduled=true

%cond (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0}) parameter(0)
  %n = s32[]{:T(128)} constant(5)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%body (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  %q = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%q), index=1
  %r = f32[8]{0} all-reduce(%x), channel_id=1, {GROUPS}, to_apply=%add
  ROOT %t = (s32[], f32[8]{0}) tuple(%q, %r)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %s = (s32[], f32[8]{0}) tuple(%a, %a)
  %w = (s32[], f32[8]{0}) while(%s), condition=%cond, body=%body{KNOWN}
  %g = f32[32]{0} all-gather(%a), replica_groups={{0,1,2,3},{4,5,6,7}}
  ROOT %o = f32[8]{0} get-tuple-element(%w), index=1
}
"""
MESH = {'data': 2, 'tensor': 4}


@pytest.mark.parametrize(
  ('groups', 'axes', 'parts'),
  [
    ('replica_groups={{0,1,2,3},{4,5,6,7}}', ('tensor',), 4),
    ('replica_groups=[2,4]<=[8]', ('tensor',), 4),
    ('replica_groups=[4,2]<=[2,4]T(1,0)', ('data',), 2),
    ('replica_groups={}', ('data', 'tensor'), 8),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}", ('data',), 2),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", ('data', 'tensor'), 8),
  ],
)
@pytest.mark.parametrize(
  ('known', 'times'),
  [('', 5), (', backend_config={"known_trip_count":{"n":"7"}}', 7)],
)
def test_collectives_of_a_loop_count_as_often_as_they_run(
  groups, axes, parts, known, times
):
  text = TEXT.replace('{GROUPS}', groups).replace('{KNOWN}', known)
  found = {item.kind: item for item in hlo.collectives(text, MESH)}
  assert found['all-reduce'] == hlo.Collective(
    'all-reduce', axes, parts, times, times * 2 * 32 * (parts - 1) // parts
  )
  # A device sends its part of the result on, and the two that it was given.
  assert found['all-gather'] == hlo.Collective(
    'all-gather', ('tensor',), 4, 1, 96
  )


def test_a_compiled_loop_moves_what_its_turns_move():
  if jax.device_count() < 8:
    pytest.skip('needs eight devices: CPU simulates them')
  mesh = sharding.make_mesh(data=2, tensor=4)

  def place(*spec):
    return NamedSharding(mesh, PartitionSpec(*spec))

  def f(x, w_):
    def turn(x, w):
      # The sum is over a dimension that `tensor` cuts.
      return jax.lax.with_sharding_constraint(
        jnp.tanh(x @ w), place('data', 'tensor')
      ), None

    return jax.lax.scan(turn, x, w_)[0]

  compiled = (
    jax.jit(f)
    .lower(
      jax.ShapeDtypeStruct(
        (8, 64), np.float32, sharding=place('data', 'tensor')
      ),
      jax.ShapeDtypeStruct(
        (6, 64, 64), np.float32, sharding=place(None, 'tensor', None)
      ),
    )
    .compile()
  )
  text = compiled.as_text()
  assert text is not None
  found = hlo.collectives(text, dict(mesh.shape))
  assert {item.axes for item in found} == {('tensor',)}
  assert sum(item.count for item in found) % 6 == 0
  # Six products read a quarter of their weights each, at the least.
  assert hlo.traffic(text) >= 6 * 64 * 64 * 4 // 4


def test_traffic_counts_reads_and_writes():
  text = """
ENTRY %main (a: f32[100]) -> f32[100] {
  %a = f32[100]{0} parameter(0)
  %b = f32[100]{0} negate(%a)
  ROOT %c = bf16[100]{0} convert(%b)
}
"""
  assert hlo.traffic(text) == 400 + 400 + 400 + 200
