"""What a plan counts of a program, against hand counts: operations, traffic and collectives."""

import json
import os
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cipo_jax import plan
from cipo_jax.plan import flops, movement
from cipo_jax.plan.loops import run_once
from tests import ROOT

pytestmark = pytest.mark.slow

SMOKE = ROOT / "configs" / "smoke.yaml"
HAS_TPU_COMPILER = platform.system() == "Linux" and platform.machine() == "x86_64"


# Operations


def counted(function, *args, trips=run_once):
    return flops.count(jax.jit(function).trace(*args).jaxpr, trips).flops


X, W = jnp.ones((6, 8)), jnp.ones((8, 8))


def test_products_count_in_loops():
    product = 2 * 6 * 8 * 8
    assert counted(lambda x, w: x @ w, X, W) == product

    def scanned(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=5)[0]

    assert counted(scanned, X, W) == 5 * product

    def nested(x, w):
        return jax.lax.scan(lambda x, _: (scanned(x, w), None), x, None, length=3)[0]

    assert counted(nested, X, W) == 15 * product
    assert counted(lambda x, w: jax.checkpoint(nested)(x, w), X, W) == 15 * product
    # Control: the compiler's own figure takes every body once.
    once = jax.jit(nested).lower(X, W).compile().cost_analysis()["flops"]
    assert product <= once < 2 * product


def test_gradients_count_what_they_compute():
    product = 2 * 6 * 8 * 8
    loss = jax.grad(lambda w, x: jnp.sum(jnp.sin(x @ w)), argnums=(0, 1))
    assert counted(loss, W, X) == 3 * product


def test_loops_of_unknown_length_take_the_stated_one():
    def steps(x, w, n):
        first = jax.lax.fori_loop(0, n, lambda _, x: x @ w, x)
        _, x = jax.lax.while_loop(
            lambda state: (state[0] < 7) & (state[1].sum() > 0),
            lambda state: (state[0] + 1, state[1] @ w),
            (0, first),
        )
        return x

    product = 2 * 6 * 8 * 8
    bounds = []

    def trips(found):
        bounds.extend(found)
        return [10, 3]

    assert counted(steps, X, W, 4, trips=trips) == 13 * product
    assert bounds == [None, 7]
    with pytest.raises(ValueError, match="2 loops whose length is data"):
        counted(steps, X, W, 4, trips=lambda bounds: [10])
    with pytest.raises(ValueError, match="how often they run is unknown"):
        counted(steps, X, W, 4)


def test_branches_devices_convolutions_and_groups_count():
    product = 2 * 6 * 8 * 8

    def branches(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert counted(branches, X, W) == 2 * product
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    rows, whole = PartitionSpec("a"), PartitionSpec()
    each = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(rows, whole), out_specs=rows, axis_names={"a"}
    )
    assert counted(each, X, W) == product
    groups = jnp.array([2, 4])
    weights = jnp.ones((2, 8, 5))
    assert counted(lambda x: jax.lax.ragged_dot(x, weights, groups), X) == 2 * 6 * 5 * 8
    image, kernel = jnp.ones((1, 3, 9, 9)), jnp.ones((4, 3, 2, 2))
    convolved = counted(lambda x, k: jax.lax.conv(x, k, (1, 1), "VALID"), image, kernel)
    assert convolved == 2 * 4 * 8 * 8 * 3 * 2 * 2


def test_kernels_count_for_each_place_of_their_grid():
    def kernel(x_ref, w_ref, o_ref):
        @pl.when(pl.program_id(0) > 0)
        def _():
            o_ref[...] = x_ref[...] @ w_ref[...]

    def product(x, w):
        rows = pl.BlockSpec((2, 8), lambda i: (i, 0))
        whole = pl.BlockSpec((8, 8), lambda i: (0, 0))
        shape = jax.ShapeDtypeStruct((6, 8), jnp.float32)
        call = pl.pallas_call(
            kernel, grid=(3,), in_specs=[rows, whole], out_specs=rows, out_shape=shape,
            interpret=True,
        )  # fmt: skip
        return call(x, w)

    assert counted(product, X, W) == 2 * 6 * 8 * 8


# Movement


def moved(function, *args, trips=run_once):
    return movement.of(jax.jit(function).lower(*args).compile().as_text(), trips)


@pytest.mark.parametrize("length", [5, 10])
def test_traffic_counts_in_loops_and_slices(length):
    def scanned(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    x, w = jnp.ones((256, 512)), jnp.ones((length, 512, 512))
    activations, weights = 4 * x.size, 4 * w[0].size
    # Per layer: the slice is read and written, then read by the product, with x, and the result
    # written, read and written by tanh. That the stack is not read whole each time is the point.
    expected = length * (3 * weights + 4 * activations)
    assert moved(scanned, x, w).traffic_bytes == pytest.approx(expected, rel=0.05)


def test_collectives_count_in_loops():
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))

    def arrays(length):
        x = jax.ShapeDtypeStruct(
            (64, 32), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("a"))
        )
        spec = PartitionSpec(None, None, "a")
        w = jax.ShapeDtypeStruct((length, 32, 32), jnp.float32, sharding=NamedSharding(mesh, spec))
        return x, w

    def scanned(x, w):
        def layer(x, w):
            y = jnp.tanh(x @ w)
            return jax.lax.with_sharding_constraint(
                y, NamedSharding(mesh, PartitionSpec("a"))
            ), None

        return jax.lax.scan(layer, x, w)[0]

    for length in (3, 6):
        collectives = moved(scanned, *arrays(length)).collectives
        (gather,) = [c for c in collectives if c.kind == "all-gather"]
        assert (gather.group, gather.result_bytes, gather.static) == (8, 4 * 32 * 32, 1)
        assert gather.runs == length
        assert gather.sent_bytes == length * 4 * 32 * 32 * 7 / 8


def test_asynchronous_collectives_count_once_and_reductions_say_what_they_send():
    text = """\
HloModule m, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%inside (p: bf16[2,4]) -> bf16[8,4] {
  %p = bf16[2,4]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %g = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%all-reduce-scatter (q: f32[32]) -> f32[8] {
  %q = f32[32]{0} parameter(0)
  %r = f32[32]{0} all-reduce(%q), channel_id=9, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %d = f32[8]{0} slice(%r), slice={[0:8]}
}

ENTRY %main (x: bf16[2,4], y: f32[32]) -> f32[32] {
  %x = bf16[2,4]{1,0} parameter(0)
  %y = f32[32]{0} parameter(1)
  %start = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%x), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
  %middle = bf16[8,4]{1,0:S(1)} fusion(%x), kind=kCustom, calls=%inside
  %done = bf16[8,4]{1,0} all-gather-done(%start)
  %scattered = f32[8]{0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter
  ROOT %sum = f32[32]{0} all-reduce(%y), channel_id=11, replica_groups=mesh['i'=2,'j'=4] {'j'}, to_apply=%add
}
"""  # noqa: E501
    found = {c.kind: c for c in movement.of(text, run_once).collectives}
    assert set(found) == {"all-gather", "reduce-scatter", "all-reduce"}
    gather, scatter, reduce = found["all-gather"], found["reduce-scatter"], found["all-reduce"]
    assert (gather.runs, gather.group, gather.sent_bytes) == (1, 4, 64 * 3 / 4)
    assert (scatter.runs, scatter.result_bytes, scatter.sent_bytes) == (1, 32, 32 * 3)
    assert (reduce.runs, reduce.group, reduce.sent_bytes) == (1, 4, 2 * 128 * 3 / 4)
    in_another_order = text.replace("'j'=4]", "'j'=4], device_ids=([4,2]T(1,0))")
    assert movement.of(in_another_order, run_once) == movement.of(text, run_once)


def test_collectives_of_a_shard_map_count_each_for_itself():
    """They all have channel 1."""
    text = """\
HloModule m, is_scheduled=true

%middle (p: bf16[2,4]) -> bf16[8,4] {
  %p = bf16[2,4]{1,0} parameter(0)
  ROOT %g = bf16[8,4]{1,0} all-gather(%p), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}, metadata={op_name="reference/all_gather" stack_frame_id=7}
}

ENTRY %main (x: bf16[2,4]) -> bf16[8,4] {
  %x = bf16[2,4]{1,0} parameter(0)
  %one = bf16[8,4]{1,0} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}, metadata={op_name="policy/all_gather" stack_frame_id=5}
  %start = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}, metadata={op_name="reference/all_gather" stack_frame_id=7}
  %next = bf16[8,4]{1,0} fusion(%x), kind=kCustom, calls=%middle
  ROOT %done = bf16[8,4]{1,0} all-gather-done(%start)
}
"""  # noqa: E501
    (gathers,) = movement.of(text, run_once).collectives
    assert (gathers.static, gathers.runs) == (2, 2)
    same_line = text.replace(
        'policy/all_gather" stack_frame_id=5', 'reference/all_gather" stack_frame_id=7'
    )
    assert movement.of(same_line, run_once).collectives[0].runs == 1
    other_devices = same_line.replace("[2,4]<=[8]", "[2,4]<=[4,2]T(1,0)", 1)
    assert other_devices.index("T(1,0)") < other_devices.index("ENTRY")
    assert movement.of(other_devices, run_once).collectives[0].runs == 2


@pytest.mark.parametrize("name", ["tpu_custom_call", "__cudnn$fmhaSoftmax", "a.b::c(d)"])
def test_kernels_have_their_whole_names(name):
    text = f"""\
HloModule m, is_scheduled=true

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  ROOT %y = f32[8]{{0}} custom-call(%x), custom_call_target="{name}", backend_config="{{}}"
}}
"""
    assert movement.of(text, run_once).kernels == (name,)


def test_products_in_windows_count_what_goes_round_the_ring():
    """libtpu unrolls such a loop by two: the counter goes 0, 2, 4, 6, and not 0 to 7."""
    text = """\
HloModule m, is_scheduled=true

%windowed_dot_general_body_rs.clone (s: (u32[], bf16[4,8])) -> (u32[], bf16[4,8]) {
  %s = (u32[], bf16[4,8]{1,0}) parameter(0)
  %i = u32[] get-tuple-element(%s), index=0
  %piece = bf16[4,8]{1,0} get-tuple-element(%s), index=1
  %two = u32[] constant(2)
  %next = u32[] add(%i, %two)
  %start = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[], u32[]) collective-permute-start(%piece), channel_id=3, source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}
  %done = bf16[4,8]{1,0} collective-permute-done(%start)
  ROOT %t = (u32[], bf16[4,8]{1,0}) tuple(%next, %done)
}

%windowed_dot_general_cond_rs.clone (c: (u32[], bf16[4,8])) -> pred[] {
  %c = (u32[], bf16[4,8]{1,0}) parameter(0)
  %j = u32[] get-tuple-element(%c), index=0
  %eight = u32[] constant(8)
  ROOT %less = pred[] compare(%j, %eight), direction=LT
}

ENTRY %main (x: bf16[4,8]) -> bf16[4,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  %zero = u32[] constant(0)
  %state = (u32[], bf16[4,8]{1,0}) tuple(%zero, %x)
  %loop = (u32[], bf16[4,8]{1,0}) while(%state), condition=%windowed_dot_general_cond_rs.clone, body=%windowed_dot_general_body_rs.clone
  %last = bf16[4,8]{1,0} get-tuple-element(%loop), index=1
  ROOT %moved = bf16[4,8]{1,0} collective-permute(%last), channel_id=4, source_target_pairs={{0,1},{1,0}}
}
"""  # noqa: E501
    pieces, last = movement.of(text, run_once).collectives
    assert (pieces.kind, pieces.group, pieces.runs) == ("reduce-scatter in pieces", 4, 4)
    assert pieces.sent_bytes == 4 * 64
    assert (last.kind, last.group, last.runs) == ("collective-permute", 2, 1)
    by_ones = text.replace("constant(2)", "constant(1)")
    assert movement.of(by_ones, run_once).collectives[0].runs == 8


PROGRAMS = """
import dataclasses, json, sys
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from cipo_jax.config import configfile
from cipo_jax.mesh.collectives import reduce_scatter
from cipo_jax.plan import devices, hardware, movement, programs
from cipo_jax.plan.worker import planned_architecture
from cipo_jax.mesh.sharding import make_mesh

def collectives(*mesh):
    cfg = configfile.load(sys.argv[1], [
        "--train.row-tokens", "256", "--train.rows-per-microbatch", "4", "--train.remat", "none",
        "--train.compute-dtype", "bfloat16", *mesh,
    ])
    # Matrices large enough to be worth a reduce-scatter to the compiler.
    arch = dataclasses.replace(
        planned_architecture(cfg), num_layers=2, model_dim=1024, mlp_dim=2048, vocab_size=4096,
        head_dim=128,
    )
    mesh = make_mesh(cfg.mesh, devices.devices_of(hardware.parse("v5litepod-4")))
    (program,) = programs.programs(cfg, arch, mesh, ["train"])
    with jax.set_mesh(mesh):
        text = program.function.trace(*program.args).lower().compile().as_text()
    return [(c.kind, c.result_bytes) for c in movement.of(text, program.trips).collectives]

def scattered(scatter):
    devices_of_torus = devices.devices_of(hardware.parse("v5litepod-16"))
    mesh = make_mesh(configfile.load(sys.argv[1], ["--mesh.fsdp", "16"]).mesh, devices_of_torus)
    function = jax.shard_map(
        lambda x: scatter(x + 1), mesh=mesh,
        in_specs=PartitionSpec(), out_specs=PartitionSpec("fsdp"), check_vma=False,
    )
    text = jax.jit(function).lower(jax.ShapeDtypeStruct((4096, 1024), jnp.float32)).compile()
    return [(c.kind, c.result_bytes) for c in movement.of(text.as_text(), list).collectives]

print(json.dumps([
    collectives(),
    collectives("--mesh.data", "4", "--mesh.fsdp", "1"),
    collectives("--mesh.tensor", "2"),
    scattered(lambda x: reduce_scatter(x, "fsdp", dimension=0)),
    scattered(lambda x: jax.lax.psum_scatter(x, "fsdp", scatter_dimension=0, tiled=True)),
]))
"""


@pytest.fixture(scope="module")
def sent():
    """Kinds and sizes of what programs exchange. Of train steps for four v5e chips, all along fsdp,
    all along data, and two by two along fsdp and tensor; of sums that are scattered over a torus of
    sixteen, ours and jax's."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAMS, str(SMOKE)],
        env={**os.environ, **plan.ENVIRONMENT},
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout)


def sizes(found, kind):
    return sorted(size for name, size in found if name == kind)


HEAD_ELEMENTS = 4096 * 1024


@pytest.mark.skipif(not HAS_TPU_COMPILER, reason="libtpu is made for Linux x86-64 only")
def test_gradients_over_fsdp_are_scattered_as_they_are_summed(sent):
    sharded, replicated, *_ = sent
    mlp = 2 * 1024 * 2048  # bytes, in bfloat16
    attention = 2 * 1024 * 128 * (4 + 2 + 2 + 4)

    # One for each matrix of the MLP, and one for what is left, put together by the compiler.
    scattered = sizes(sharded, "reduce-scatter")
    assert scattered[-1] >= mlp // 4
    assert sum(scattered) >= (mlp + attention) // 4
    # The head's, summed in float32: half of it to one device, and a quarter to another.
    head = 4 * HEAD_ELEMENTS
    assert sizes(sharded, "collective-permute")[-2:] == [head // 4, head // 2]
    key_matrix = 2 * 1024 * 2 * 128
    assert sizes(sharded, "all-reduce")[-1] < key_matrix, "a gradient is summed whole"
    # Control: where parameters lie whole on every device, their gradients are summed whole.
    assert sizes(replicated, "all-reduce")[-1] >= mlp
    assert not sizes(replicated, "reduce-scatter")


@pytest.mark.skipif(not HAS_TPU_COMPILER, reason="libtpu is made for Linux x86-64 only")
def test_the_vocabulary_stays_split_over_tensor(sent):
    """Each device has the head for its half of the vocabulary, and nobody that for all of it."""
    along_fsdp, _, along_both, *_ = sent
    whole_head = 2 * HEAD_ELEMENTS  # bytes, in bfloat16
    assert sizes(along_both, "all-gather")[-1] == whole_head // 2
    # Control: where the vocabulary is not split, the head that is gathered has all of it.
    assert sizes(along_fsdp, "all-gather")[-1] == whole_head


@pytest.mark.skipif(not HAS_TPU_COMPILER, reason="libtpu is made for Linux x86-64 only")
def test_over_a_whole_torus_a_scattered_sum_is_never_whole(sent):
    *_, ours, built_in = sent
    whole = 4 * 4096 * 1024
    assert sorted(size for _, size in ours) == [whole // 16, whole // 8, whole // 4, whole // 2]
    assert {kind for kind, _ in ours} == {"collective-permute"}
    # Control: left to the compiler, it is. Where that fails, jax's own can take our place.
    assert built_in == [["all-reduce", whole]]
