"""The kernels of layer norm on the emulator beside an fp64 reference. No GPU takes part."""

from __future__ import annotations

import ctypes

import pytest
import torch
import torch.nn.functional as F
from cuda_kernels import emulated, structures
from cuda_kernels.emulated import faulty_library
from ops.op_checks import FORWARD_RATIO, check_error, normal, seeded
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
EPS, GAP = 1e-5, 8
EXTENTS = ("dense", "sliced", "apart")


def laid_out(values: Tensor, extent: str) -> Tensor:
    """values [N, T, c], or these as channels of wider rows, or as rows of longer images."""
    n, t, c = values.shape
    if extent == "dense":
        return values.contiguous()
    size = (n, t, -(-c // 8) * 8 + GAP) if extent == "sliced" else (n, t + 3, c)
    wide = values.new_full(size, torch.nan)
    wide[:, :t, :c] = values
    return wide[:, :t, :c]


class Case:
    """Inputs of one call; parameters of GAP more channels, which are NaN."""

    def __init__(
        self,
        c: int,
        dtype: torch.dtype = torch.bfloat16,
        *,
        n: int = 2,
        rows: int = 5,
        params: torch.dtype | None = None,
        modulated: bool = True,
        extent: str = "dense",
    ) -> None:
        generator = seeded(c)
        # A mean far from zero: squares that cancel would show.
        self.x = laid_out((normal(generator, n, rows, c) + 4).to(dtype), extent)
        self.grad_y = laid_out(normal(generator, n, rows, c, dtype=dtype), extent)
        self.weight = self.bias = self.scale = self.shift = None
        self.used = slice(c)
        if params is not None:
            self.weight, self.bias = (torch.full((c + GAP,), torch.nan, dtype=params) for _ in "wb")
            self.weight[:c] = normal(generator, c) + 1
            self.bias[:c] = normal(generator, c)
        if modulated:  # columns of a wider tensor
            self.wide = torch.full((n, 2 * c + GAP), torch.nan, dtype=dtype)
            self.wide[:, : 2 * c] = normal(generator, n, 2 * c, dtype=dtype)
            self.scale, self.shift = self.wide[:, :c], self.wide[:, c : 2 * c]
        self.mean, self.rstd = (torch.full((n, rows), torch.nan) for _ in range(2))

    def args(self, out: Tensor, *, backward: bool) -> structures.LayerNormArgs:
        n, rows, c = self.x.shape
        params = self.x.dtype if self.weight is None else self.weight.dtype
        number = emulated.DTYPES[self.x.dtype]
        args = structures.LayerNormArgs(
            dtype=number,
            param_dtype=emulated.DTYPES[params],
            modulation_dtype=number,
            images=1 if self.scale is None else n,
            rows=n * rows if self.scale is None else rows,
            channels=c,
            run=rows,
            x=self.x.data_ptr(),
            x_run_stride=self.x.stride(0),
            x_row_stride=self.x.stride(1),
            eps=EPS,
            mean=self.mean.data_ptr(),
            rstd=self.rstd.data_ptr(),
        )
        if backward:
            args.grad_y, args.grad_x = self.grad_y.data_ptr(), out.data_ptr()
            args.grad_y_run_stride, args.grad_y_row_stride, _ = self.grad_y.stride()
        else:
            args.y = out.data_ptr()
        if self.weight is not None:
            args.weight, args.bias = self.weight.data_ptr(), self.bias.data_ptr()
        if self.scale is not None:
            args.scale, args.shift = self.scale.data_ptr(), self.shift.data_ptr()
            args.modulation_stride = self.wide.stride(0)
        return args

    def reads(self) -> list[Tensor | None]:
        return [self.x, self.weight, self.bias, self.scale, self.shift]

    def forward(
        self,
        library: ctypes.CDLL | None = None,
        *,
        statistics: bool = True,
        overlaps: bool = False,
    ) -> Tensor:
        y = torch.full(self.x.shape, torch.nan, dtype=self.x.dtype)
        args = self.args(y, backward=False)
        if not statistics:
            args.mean = args.rstd = None
        writes = [y, self.mean, self.rstd] if statistics else [y]
        emulated.call("layer_norm_forward", args, self.reads(), writes, library, [int(overlaps)])
        return y

    def gradients(self) -> dict[str, Tensor]:
        """Memory of all gradients but x's: ones to add to, NaN to write over."""
        found = {}
        if self.weight is not None:
            for name in ("grad_weight", "grad_bias"):
                found[name] = torch.full_like(self.weight, torch.nan)
                found[name][self.used] = 1
        if self.scale is not None:
            for name in ("grad_scale", "grad_shift"):
                found[name] = torch.full(self.scale.shape, torch.nan, dtype=self.x.dtype)
        return found

    def backward(self, into: dict[str, Tensor], library: ctypes.CDLL | None = None) -> Tensor:
        grad_x = torch.full(self.x.shape, torch.nan, dtype=self.x.dtype)
        args = self.args(grad_x, backward=True)
        for name, memory in into.items():
            setattr(args, name, memory.data_ptr())
        reads = [*self.reads(), self.grad_y, self.mean, self.rstd]
        emulated.call("layer_norm_backward", args, reads, [grad_x, *into.values()], library)
        return grad_x

    def exact(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Output, gradient of x and the others, the parameters' plus one."""
        c = self.x.shape[-1]
        given = {"x": self.x}
        if self.weight is not None:
            given |= {"weight": self.weight[:c], "bias": self.bias[:c]}
        if self.scale is not None:
            given |= {"scale": self.scale, "shift": self.shift}
        leaves = {name: t.double().requires_grad_() for name, t in given.items()}
        y = modulated_norm(**leaves)
        grads = torch.autograd.grad(y, list(leaves.values()), self.grad_y.double())
        found = dict(zip((f"grad_{name}" for name in leaves), grads, strict=True))
        grad_x = found.pop("grad_x")
        return y.detach(), grad_x, {
            name: grad + 1 if name in ("grad_weight", "grad_bias") else grad
            for name, grad in found.items()
        }  # fmt: skip


def modulated_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """What a user writes."""
    y = F.layer_norm(x, x.shape[-1:], weight, bias, EPS)
    if scale is None or shift is None:
        return y
    return y * (1 + scale[:, None]) + shift[:, None]


def check_close(got: Tensor, exact: Tensor, relative: float, least: float = 0.0) -> None:
    rounding = 0.0 if got.dtype == torch.float32 else 0.51 * torch.finfo(got.dtype).eps
    atol = max(relative * exact.abs().max().item(), least)
    torch.testing.assert_close(got.double(), exact, rtol=rounding, atol=atol)


def check(case: Case, library: ctypes.CDLL | None = None) -> None:
    y, grad_x, grads = case.exact()
    check_close(case.forward(library), y, 4e-6)
    x = case.x.double()
    check_close(case.mean, x.mean(2), 1e-6)
    check_close(case.rstd, (x.var(2, correction=0) + EPS).rsqrt(), 1e-6)
    into = case.gradients()
    # Of one channel it is 0, and what is left is the rounding of what cancels.
    least = 1e-6 * case.rstd.max().item() if x.shape[2] == 1 else 0.0
    check_close(case.backward(into, library), grad_x, 1e-5, least)
    for name, got in into.items():
        check_close(got[..., case.used], grads[name], 1e-5)
        assert got[..., case.used.stop :].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c", [1, 3, 8, 59, 64, 111, 128])
def test_values_and_gradients(dtype, c):
    check(Case(c, dtype, params=dtype, modulated=c % 2 == 0))
    check(Case(c, dtype, params=torch.float32, n=3, rows=3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("packs", [64, 65, 130, 260])
def test_long_rows(dtype, packs):
    """Of as many packs as a lane keeps 2, 4 or 8 of in registers, and of more."""
    c = packs * 16 // dtype.itemsize
    check(Case(c, dtype, params=dtype, n=1, rows=2))
    check(Case(c + 1, dtype, params=dtype, n=1, rows=2))


@pytest.mark.parametrize("params", [None, torch.bfloat16])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("c", [24, 21])
def test_what_may_be_left_out(params, modulated, extent, c):
    check(Case(c, params=params, modulated=modulated, extent=extent))


@pytest.mark.parametrize("rows", [1, 4, 32, 33, 70])
@pytest.mark.parametrize("n", [1, 3])
def test_sums_over_rows(rows, n):
    """Of parts of 32 rows, the last of them shorter."""
    check(Case(16, torch.float32, params=torch.float32, n=n, rows=rows))


@pytest.mark.parametrize("wanted", ["grad_weight", "grad_bias", "grad_scale", "grad_shift"])
def test_only_one_gradient(wanted):
    case = Case(24, torch.float32, params=torch.float32)
    *_, exact = case.exact()
    case.forward()
    into = {wanted: case.gradients()[wanted]}
    case.backward(into)
    check_close(into[wanted][..., case.used], exact[wanted], 1e-5)


def misplaced(value: Tensor) -> Tensor:
    """The same values behind a number of their own."""
    return torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape)


def test_operands_that_are_not_aligned():
    """They are read number by number, whichever of them it is."""
    for name in ("x", "grad_y", "weight", "bias"):
        case = Case(24, torch.float32, params=torch.float32)
        setattr(case, name, misplaced(getattr(case, name)))
        check(case)
    case = Case(24)
    wide = torch.empty(2, 51, dtype=torch.bfloat16)
    wide[:, 1:49] = case.wide[:, :48]
    case.wide, case.scale, case.shift = wide, wide[:, 1:25], wide[:, 25:49]
    check(case)


def test_no_rows():
    emulated.launches()
    case = Case(8, rows=0)
    assert case.forward().numel() == 0
    into = case.gradients()
    case.backward(into)
    assert all(grad.eq(0).all() for grad in into.values())
    assert [name for name, _ in emulated.launches()] == ["clear", "clear"]


def test_launches():
    """One forward; backward one, or two and one for each kind of sums over rows."""
    first = ["layer_norm_grad", "layer_norm_grad_sums"]
    for params, modulated, names in (
        (None, False, first[:1]),
        (torch.bfloat16, False, [*first, "layer_norm_grad_params"]),
        (None, True, [*first, "layer_norm_grad_modulation"]),
    ):
        case = Case(16, params=params, modulated=modulated)
        emulated.launches()
        case.forward()
        assert emulated.launches() == [("layer_norm", False)]
        case.backward(case.gradients())
        assert [name for name, _ in emulated.launches()] == names


def test_as_exact_as_pytorch():
    """Of float32 numbers, whatever their mean; kernels on a GPU round a little differently."""
    for mean, scale in ((4, 1), (-1000, 1), (0, 30)):
        case = Case(72, torch.float32, params=torch.float32, modulated=False, rows=9)
        case.x = case.x * scale + mean
        torchs = modulated_norm(case.x, case.weight[:72], case.bias[:72])
        check_error(case.forward(), torchs, case.exact()[0], FORWARD_RATIO)


def test_repeats():
    case = Case(72, params=torch.bfloat16, n=3, rows=40)
    assert case.forward().equal(case.forward(statistics=False))
    results = []
    for _ in range(2):
        into = case.gradients()
        results.append([case.backward(into), *(g[..., case.used] for g in into.values())])
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_overlaps_the_kernel_before():
    """It waits for that one: the emulator watches every access."""
    case = Case(24, params=torch.bfloat16)
    expected = case.forward()
    with emulated.hopper():
        emulated.launches()
        for overlaps in (True, False):
            assert case.forward(statistics=False, overlaps=overlaps).equal(expected)
        assert emulated.launches() == [("layer_norm", True), ("layer_norm", False)]


KERNELS, HOST, WRONG = "layer_norm_kernels.cuh", "layer_norm.cu", "not close"
# file, a line of it, what a mistake would make of it, and what comes of that
PLANTED = (
    (KERNELS, "there ? p.c : 0}", "p.c}", "what another thread of the launch wrote"),
    (KERNELS, "distance = lanes / 2;", "distance = 16;", WRONG),
    (KERNELS, "mean = near + delta;", "mean = near + rest;", WRONG),
    (KERNELS, "const float d = values[0][i] - near;", "const float d = values[0][i];", WRONG),
    (KERNELS, "if (p.mean && place.lane == 0 && place.c > 0)", "if (p.mean && place.c > 0)",
     "what another thread of the launch wrote"),
    (KERNELS, "fmaf(beta[i], 1.0f + scale[i], shift[i])", "beta[i] + shift[i]", WRONG),
    (KERNELS, "at = image * p.modulation_stride + channel;", "at = channel;", WRONG),
    (KERNELS, "fmaf(-xhat, slope, values[1][i] * affine.gamma[i]) - sum",
     "values[1][i] * affine.gamma[i] - sum", WRONG),
    (KERNELS, "if (index >= p.sum_items) return;", "", "out of bounds"),
    (KERNELS, "rows - first < kPartRows ? rows - first : kPartRows", "kPartRows", "out of bounds"),
    (KERNELS, "  ptx::sync_threads();\n  if (place.row != 0) return sum;",
     "  if (place.row != 0) return sum;", "reads what"),
    (KERNELS, "place.row != 0 || place.channel >= p.c) return;\n  const", "place.row != 0) return;"
     "\n  const", "what another thread of the launch wrote"),
    (KERNELS, "factor_of(p, p.parts.quotient(part), place.channel)",
     "factor_of(p, 0, place.channel)", WRONG),
    (KERNELS, "first = static_cast<int32_t>(image) * parts;", "first = 0;", WRONG),
    (KERNELS, "beta * sum.grad), &rounded", "0.0f), &rounded", WRONG),
    (HOST, "args.channels % pack == 0 && ", "", "out of bounds"),
    (HOST, "aligned(args.weight) &&", "", "not aligned"),
    (HOST, "if (packs <= 2)", "if (packs <= 3)", WRONG + "|reads what nobody"),
)  # fmt: skip


def check_all(library: ctypes.CDLL) -> None:
    """Packs and single channels, rows that fill no warp, long ones, sums over several parts."""
    check(Case(21, params=torch.bfloat16, modulated=False, extent="sliced"), library)
    check(Case(40, torch.float32, params=torch.float32, n=3, rows=35), library)
    check(Case(21, params=torch.float32, n=3, rows=35), library)
    check(Case(65 * 8, params=torch.bfloat16, rows=3), library)
    case = Case(24, params=torch.bfloat16)
    case.weight = misplaced(case.weight)
    check(case, library)


@pytest.mark.parametrize(("file", "line", "mistake", "finding"), PLANTED)
def test_a_planted_fault_is_found(tmp_path, file, line, mistake, finding):
    library = faulty_library(tmp_path, file, line, mistake, "layer_norm")
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        check_all(library)


def test_nothing_is_found_without_a_fault():
    check_all(emulated.library())


def test_a_kernel_that_does_not_wait_is_found(tmp_path):
    line = "  ptx::wait_for_kernel_before();\n  ptx::allow_kernel_after();\n"
    library = faulty_library(tmp_path, KERNELS, line, "", "layer_norm")
    library.set_hopper(1)
    with pytest.raises(RuntimeError, match="has not waited for the kernel before"):
        Case(24).forward(library, overlaps=True)
