"""Bytes and operations of hand-written programs, whose traffic is known."""

from __future__ import annotations

import pytest

from psla_jax.plan.devices import DEVICES
from psla_jax.plan.hlo import Array, HloError, arrays, parse
from psla_jax.plan.summary import AS_FORWARD, FILTER_GRADIENT, FORWARD, INPUT_GRADIENT, Collective, summarise
from psla_jax.plan.traffic import fusion_traffic, kernels, unknown_loops

HEADER = "HloModule jit_f, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias), {1}: (2, {}, must-alias) }"


def program(entry: str, *computations: str):
    """Parses a program whose entry computation has these lines; arguments are `%x` and `%y`, f32[8,16] each."""
    lines = ["%x = f32[8,16]{1,0} parameter(0)", "%y = f32[8,16]{1,0} parameter(1)", *entry.strip().splitlines()]
    body = "\n".join(f"  {line.strip()}" for line in lines)
    return parse(f"{HEADER}\n\n{''.join(computations)}\nENTRY %main (x: f32[8,16]) -> f32[8,16] {{\n{body}\n}}\n")


def computation(name: str, lines: str) -> str:
    body = "\n".join(f"  {line.strip()}" for line in lines.strip().splitlines())
    return f"%{name} (p: f32[8,16]) -> f32[8,16] {{\n{body}\n}}\n\n"


def traffic(lines: str) -> tuple[float, float]:
    """Bytes that a fused computation reads and writes."""
    found = parse(
        f"{HEADER}\n\nENTRY %fused (p: f32[8]) -> f32[8] {{\n  " + "\n  ".join(lines.strip().splitlines()) + "\n}"
    )
    return fusion_traffic(found.entry)


def test_shapes_have_types_dimensions_and_bytes():
    assert arrays("(f32[8,16]{1,0:T(8,128)S(1)}, /*index=1*/bf16[3]{0}, token[], s8[])") == (
        Array("f32", (8, 16), on_chip=True),
        Array("bf16", (3,)),
        Array("s8", ()),
    )
    assert [array.nbytes for array in arrays("(f32[8,16], bf16[3], s8[], f64[2], pred[0])")] == [512, 6, 1, 16, 0]


def test_a_program_is_parsed_with_its_operands_attributes_and_donations():
    found = program(
        """
        %c = (f32[8,16]{1,0:T(8,128)}, u8[64]{0}) custom-call(%x, /*index=1*/%y), ATTRIBUTES
        %g = f32[8,16]{1,0} get-tuple-element(%c), index=0
        ROOT %t = (f32[8,16]{1,0}, f32[8,16]{1,0}, f32[]) tuple(%g, %x, %y)
        """.replace(
            "ATTRIBUTES",
            'custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(f)/a(b)/dot" source_line=1}, '
            'backend_config={"gemm_backend_config":{"n":"(2"}}',
        )
    )
    call = found.entry.by_name["c"]
    assert call.operands == ("x", "y")
    assert call.scope == "jit(f)/a(b)/dot"
    assert call.target == "__cublas$lt$matmul"
    assert call.backend_config == {"gemm_backend_config": {"n": "(2"}}
    assert (found.num_outputs, found.num_donated) == (3, 2)
    with pytest.raises(HloError, match="no entry computation"):
        parse("HloModule empty")


def test_elementwise_kernels_read_their_operands_and_write_their_results():
    found = kernels(program("%s = f32[8,16]{1,0} add(%x, %y)\nROOT %c = f32[8,16]{1,0} copy(%s)"))
    assert [(kernel.read, kernel.written) for kernel in found] == [(1024, 512), (512, 512)]


def test_views_and_the_ends_of_asynchronous_operations_cost_nothing():
    found = kernels(
        program(
            """
            %b = f32[128]{0} bitcast(%x)
            %start = (f32[8,16]{1,0}, f32[8,16]{1,0}, u32[]) copy-start(%y)
            %done = f32[8,16]{1,0} copy-done(%start)
            ROOT %t = (f32[128]{0}, f32[8,16]{1,0}) tuple(%b, %done)
            """
        )
    )
    assert [(kernel.instruction.name, kernel.read, kernel.written) for kernel in found] == [("start", 512, 512)]


def test_what_stays_on_the_chip_of_a_tpu_moves_nothing():
    found = kernels(
        program(
            """
            %start = (f32[8,16]{1,0:T(8,128)S(1)}, f32[8,16]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
            %done = f32[8,16]{1,0:T(8,128)S(1)} copy-done(%start)
            %n = f32[8,16]{1,0:T(8,128)S(1)} negate(%done)
            ROOT %m = f32[8,16]{1,0:T(8,128)} add(%n, %y)
            """
        )
    )
    assert [(kernel.read, kernel.written) for kernel in found] == [(512, 0), (0, 0), (512, 512)]


def test_the_workspace_of_a_library_is_not_moved():
    line = 'ROOT %c = (f32[8,16]{1,0}, s8[4194304]{0}) custom-call(%x, %y), custom_call_target="__cublas$lt$matmul"'
    (kernel,) = kernels(program(line))
    assert (kernel.read, kernel.written) == (1024, 512)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        # A fused chain reads its parameters once, however often they are used, and writes its root only.
        (
            """%p = f32[100]{0} parameter(0)
  %a = f32[100]{0} add(%p, %p)
  ROOT %m = f32[100]{0} multiply(%a, %p)""",
            (400, 400),
        ),
        # Of a parameter that is sliced, the slice is read; two slices of it add up.
        (
            """%p = f32[100]{0} parameter(0)
  %a = f32[10]{0} slice(%p), slice={[0:10]}
  %b = f32[10]{0} slice(%p), slice={[50:60]}
  ROOT %m = f32[10]{0} multiply(%a, %b)""",
            (80, 40),
        ),
        # ... but never more than the whole.
        (
            """%p = f32[12]{0} parameter(0)
  %a = f32[10]{0} slice(%p), slice={[0:10]}
  %b = f32[10]{0} slice(%p), slice={[2:12]}
  ROOT %m = f32[10]{0} multiply(%a, %b)""",
            (48, 40),
        ),
        # A reduction reads all of its input; a broadcast reads its operand once.
        (
            """%p = f32[8,16]{1,0} parameter(0)
  %q = f32[16]{0} parameter(1)
  %z = f32[] constant(0)
  %b = f32[8,16]{1,0} broadcast(%q), dimensions={1}
  %m = f32[8,16]{1,0} multiply(%p, %b)
  ROOT %r = f32[8]{0} reduce(%m, %z), dimensions={1}, to_apply=%sum""",
            (512 + 64, 32),
        ),
        # Several results: a tuple writes each of them; a reduction of two inputs reads both.
        (
            """%p = f32[8,16]{1,0} parameter(0)
  %q = f32[8,16]{1,0} parameter(1)
  %z = f32[] constant(0)
  %r = (f32[8]{0}, f32[8]{0}) reduce(%p, %q, %z, %z), dimensions={1}, to_apply=%sum
  %g = f32[8]{0} get-tuple-element(%r), index=0
  %h = f32[8]{0} get-tuple-element(%r), index=1
  ROOT %t = (f32[8]{0}, f32[8]{0}) tuple(%g, %h)""",
            (1024, 64),
        ),
        # An update in place reads and writes the update only, also behind a view.
        (
            """%p = f32[1000]{0} parameter(0)
  %u = f32[10]{0} parameter(1)
  %i = s32[] parameter(2)
  %d = f32[1000]{0} dynamic-update-slice(%p, %u, %i)
  ROOT %b = f32[10,100]{1,0} bitcast(%d)""",
            (40 + 4, 40),
        ),
        # Padding is not read; a concatenation reads its parts.
        (
            """%p = f32[10]{0} parameter(0)
  %q = f32[20]{0} parameter(1)
  %z = f32[] constant(0)
  %a = f32[16]{0} pad(%p, %z), padding=3_3
  ROOT %c = f32[36]{0} concatenate(%a, %q), dimensions={0}""",
            (40 + 80, 144),
        ),
        # What is cut off behind a transpose is not read; types count.
        (
            """%p = bf16[8,16]{1,0} parameter(0)
  %t = bf16[16,8]{1,0} transpose(%p), dimensions={1,0}
  %s = bf16[4,8]{1,0} slice(%t), slice={[0:4], [0:8]}
  ROOT %c = f32[4,8]{1,0} convert(%s)""",
            (64, 128),
        ),
    ],
)
def test_a_fusion_reads_what_its_result_needs(lines: str, expected: tuple[float, float]):
    assert traffic(lines) == expected


BODY = computation("body", "%p = f32[8,16]{1,0} parameter(0)\nROOT %n = f32[8,16]{1,0} negate(%p)")


def test_loops_count_their_iterations_and_conditions_the_larger_branch():
    large = computation("large", "%p = f32[8,16]{1,0} parameter(0)\nROOT %n = f32[8,16]{1,0} copy(%p)")
    small = computation("small", "%p = f32[] parameter(0)\nROOT %n = f32[] negate(%p)")
    found = program(
        """
        %w = f32[8,16]{1,0} while(%x), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"7"}}
        %u = f32[8,16]{1,0} while(%y), condition=%c, body=%body
        ROOT %d = f32[8,16]{1,0} conditional(%i, %x, %y), branch_computations={%small, %large}
        """,
        BODY,
        large,
        small,
    )
    assert [(k.instruction.operation, k.times, k.moved) for k in kernels(found)] == [
        ("negate", 7, 7 * 1024),
        ("negate", 1, 1024),
        ("copy", 1, 1024),
    ]
    assert unknown_loops(found) == 1
    summary = summarise(found)
    assert (summary.kernels, summary.read, summary.written, summary.unknown_loops) == (9, 9 * 512, 9 * 512, 1)


def convolution(target: str, shape: str, operands: str, scope: str, window: str = "3x3") -> str:
    return (
        f"%conv = ({shape}{{3,2,1,0}}, u8[64]{{0}}) custom-call({operands}), window={{size={window} pad=1_1x1_1}}, "
        f'dim_labels=b01f_o01i->b01f, feature_group_count=6, custom_call_target="__cudnn$conv{target}", '
        f'metadata={{op_name="{scope}"}}'
    )


IMAGES = "%i = f32[2,10,20,6]{3,2,1,0} parameter(2)\n%j = f32[2,10,20,6]{3,2,1,0} parameter(3)"
KERNEL = "%k = f32[6,3,3,1]{3,2,1,0} parameter(4)"
FORWARD_SCOPE, BACKWARD_SCOPE = "jit(step)/jvp()/conv", "jit(step)/transpose(jvp())/conv"


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (convolution("Forward", "f32[2,10,20,6]", "%i, %k", FORWARD_SCOPE), FORWARD),
        (convolution("Forward", "f32[2,10,20,6]", "%j, %k", f"{BACKWARD_SCOPE}/rematted_computation/c"), FORWARD),
        (convolution("Forward", "f32[2,10,20,6]", "%j, %k", BACKWARD_SCOPE), INPUT_GRADIENT),
        (convolution("BackwardInput", "f32[2,10,20,6]", "%j, %k", BACKWARD_SCOPE), INPUT_GRADIENT),
        (convolution("BackwardFilter", "f32[6,3,3,1]", "%i, %j", BACKWARD_SCOPE), FILTER_GRADIENT),
        (convolution("Forward", "f32[1,3,3,6]", "%i, %j", BACKWARD_SCOPE, window="10x20"), AS_FORWARD),
    ],
)
def test_convolutions_have_a_kind_and_operations(line: str, kind: str):
    summary = summarise(program(f"{IMAGES}\n{KERNEL}\n{line}\nROOT %t = () tuple()"))
    assert summary.convolutions == {kind: 1}
    if kind != AS_FORWARD:
        # Every value of the depthwise convolution's output is a sum of nine products, fewer at the borders.
        assert summary.flops == {"f32": 2 * 2 * 6 * (3 * 10 - 2) * (3 * 20 - 2)}


@pytest.mark.parametrize(
    ("image", "kernel", "output", "window", "labels", "products"),
    [
        # Stride 2 over five values padded to seven: the first and the last window miss one tap each.
        ("1,5,4", "3,4,8", "1,3,8", "size=3 stride=2 pad=1_1", "b0f_0io->b0f", 8 * 4 * (2 + 3 + 2)),
        # Three values with zeros in between, as in the gradient of a stride: 1, 0, 2, 0, 3.
        ("1,3,4", "3,4,8", "1,5,8", "size=3 pad=1_1 lhs_dilate=2", "b0f_0io->b0f", 8 * 4 * (1 + 2 + 1 + 2 + 1)),
        # A dilated kernel over six values.
        ("1,6,4", "3,4,8", "1,2,8", "size=3 rhs_dilate=2", "b0f_0io->b0f", 8 * 4 * 6),
        # A matrix product of TPUs, and one of 16 matrices, for which the batch is an axis that is not summed over.
        ("8,32", "32,64", "8,64", "", "bf_io->bf", 8 * 32 * 64),
        (
            "16,34,25",
            "25,16,96",
            "16,34,96",
            "size=16 stride=15 pad=0_0 lhs_dilate=16",
            "0bf_i0o->0bf",
            16 * 34 * 25 * 96,
        ),
    ],
)
def test_products_with_padding_and_inserted_zeros_do_not_count(image, kernel, output, window, labels, products):
    attributes = ", ".join(filter(None, [f"window={{{window}}}" if window else "", f"dim_labels={labels}"]))
    found = program(
        f"""
        %a = f32[{image}] parameter(2)
        %b = f32[{kernel}] parameter(3)
        ROOT %c = f32[{output}] convolution(%a, %b), {attributes}
        """
    )
    assert summarise(found).flops == {"f32": 2 * products}


PRECISE = (
    'custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
    '{"lhs_contracting_dimensions":["1"]},"precision_config":{"operand_precision":["HIGHEST","HIGHEST"]}}}'
)
FRONTEND = 'operand_precision={highest,highest}, metadata={op_name="jit(step)/jit(_log_mel)/dot_general"}'


def test_products_have_operations_type_and_precision():
    found = program(
        f"""
        %a = bf16[8,16]{{1,0}} convert(%x)
        %b = bf16[16,4]{{1,0}} parameter(2)
        %c = f64[8,8]{{1,0}} parameter(3)
        %d = f32[8,4]{{1,0}} dot(%a, %b), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
        %e = (f32[8,8]{{1,0}}, s8[4]{{0}}) custom-call(%x, %y), {PRECISE}
        ROOT %f = f64[8,8]{{1,0}} dot(%c, %c), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}, {FRONTEND}
        """
    )
    summary = summarise(found)
    assert summary.flops == {"bf16": 2 * 8 * 4 * 16, "f32 highest": 2 * 8 * 8 * 16, "f64": 2 * 8 * 8 * 8}
    h100 = DEVICES["h100"]
    assert summary.compute_bound(h100) == pytest.approx(1024 / 989e12 + 2048 / 67e12 + 1024 / 67e12)
    assert summary.memory_bound(h100) == pytest.approx(summary.moved / 3.35232e12)
    assert summary.products == {"bf16 default": 1, "f32 highest": 1}
    assert summary.float64 == 0


def test_float64_outside_the_frontend_is_found_in_fused_computations():
    fused = computation(
        "wide",
        """
        %p = f32[8,16]{1,0} parameter(0)
        %d = f64[8,16]{1,0} convert(%p)
        ROOT %c = f32[8,16]{1,0} convert(%d)
        """,
    )
    line = '%f = f32[8,16]{1,0} fusion(%x), kind=kLoop, calls=%wide, metadata={op_name="jit(step)/SCOPE/mul"}'
    for scope, expected in (("jit(_log_mel)", 0), ("jvp()", 1)):
        assert summarise(program(f"ROOT {line.replace('SCOPE', scope)}", fused)).float64 == expected


def test_collectives_have_a_number_and_bytes():
    found = program(
        """
        %r = f32[8,16]{1,0} all-reduce(%x), replica_groups={}, to_apply=%sum
        %s = (f32[8,16]{1,0}, f32[8,16]{1,0}) all-reduce-start(%x, %y), to_apply=%sum
        %d = (f32[8,16]{1,0}, f32[8,16]{1,0}) all-reduce-done(%s)
        ROOT %g = f32[16,16]{1,0} all-gather(%y), dimensions={0}
        """
    )
    assert summarise(found).collectives == {"all-reduce": Collective(2, 3 * 512), "all-gather": Collective(1, 512)}
    assert [(kernel.read, kernel.written) for kernel in kernels(found)] == [(512, 512), (1024, 1024), (512, 1024)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('%c = f32[8]{0} custom-call(%x), custom_call_target="xla_ffi_gpu_python_callback"', 1),
        ("%c = (f32[8]{0}, token[]) infeed(%x)", 1),
        ("%c = (f32[8]{0}, u32[], token[]) send(%x), channel_id=1, is_host_transfer=true", 1),
        ('%c = f32[8]{0} custom-call(%x), custom_call_target="__cublas$lt$matmul"', 0),
    ],
)
def test_calls_of_the_host_are_found(line: str, expected: int):
    assert summarise(program(f"{line}\nROOT %t = () tuple()")).callbacks == expected
