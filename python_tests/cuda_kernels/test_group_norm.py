"""The CUDA group norm kernels on the emulator beside an fp64 reference. No GPU takes part."""

from __future__ import annotations

import ctypes
import math
from ctypes import c_char_p, c_int64

import pytest
import torch
import torch.nn.functional as F
from cuda_kernels import emulated
from ops.op_checks import FORWARD_RATIO, as_layout, check_error, normal, seeded
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
EPS = 1e-5


def norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, silu: bool) -> Tensor:
    y = F.group_norm(x, groups, weight, bias, EPS)
    return F.silu(y) if silu else y


class Case:
    """One or two sources with a gap between their parameters."""

    def __init__(
        self,
        channels: tuple[int, ...],
        groups: int,
        *,
        n: int = 2,
        height: int = 5,
        width: int = 7,
        silu: bool = True,
        dtype: torch.dtype = torch.bfloat16,
        param_dtype: torch.dtype | None = None,
        layout: str = "channels_last",
    ) -> None:
        generator = seeded(1)
        self.groups, self.silu = groups, silu
        self.offsets = [0, channels[0] + 3][: len(channels)]
        self.size = (n, height, width)
        make = lambda c: normal(generator, n, c, height, width)  # noqa: E731
        # A mean far from zero: squares that cancel would show.
        self.x = [as_layout((make(c) + 4).to(dtype), layout) for c in channels]
        self.grad_y = [as_layout(make(c).to(dtype), layout) for c in channels]
        count = self.offsets[-1] + channels[-1] + 2
        used = torch.zeros(count, dtype=torch.bool)
        for c, offset in zip(channels, self.offsets, strict=True):
            used[offset : offset + c] = True
        self.used = used
        param = lambda: normal(generator, count, dtype=param_dtype or dtype)  # noqa: E731
        self.weight = torch.where(used, param() + 1, torch.nan)
        self.bias = torch.where(used, param(), torch.nan)
        self.mean, self.rstd = (torch.full((n, groups), torch.nan) for _ in range(2))

    def empty(self) -> list[Tensor]:
        return [torch.full_like(x, torch.nan, memory_format=torch.channels_last) for x in self.x]

    def args(self, outputs: list[Tensor], *, backward: bool) -> emulated.GroupNormArgs:
        n, height, width = self.size
        args = emulated.GroupNormArgs(
            dtype=emulated.DTYPES[self.x[0].dtype],
            param_dtype=emulated.DTYPES[self.weight.dtype],
            n=n,
            pixels=height * width,
            groups=self.groups,
            source_count=len(self.x),
            weight=self.weight.data_ptr(),
            bias=self.bias.data_ptr(),
            eps=EPS,
            silu=self.silu,
            mean=self.mean.data_ptr(),
            rstd=self.rstd.data_ptr(),
        )
        for i, (x, grad_y, out) in enumerate(zip(self.x, self.grad_y, outputs, strict=True)):
            args.sources[i] = emulated.GroupNormSource(
                c=x.size(1),
                param_offset=self.offsets[i],
                x=x.data_ptr(),
                x_pixel_stride=x.stride(3),
                grad_y=grad_y.data_ptr(),
                grad_y_pixel_stride=grad_y.stride(3),
                y=None if backward else out.data_ptr(),
                grad_x=out.data_ptr() if backward else None,
            )
        return args

    def forward(
        self,
        moments: tuple[Tensor | None, ...] = (None, None),
        *,
        statistics: bool = True,
        overlaps: bool = False,
        library: ctypes.CDLL | None = None,
    ) -> Tensor:
        """The output, its channels joined; moments: [N, classes, blocks, c, 2] of a source."""
        y = self.empty()
        given = (emulated.GroupNormMoments * 2)()
        for place, of_source in zip(given, moments, strict=True):
            if of_source is not None:
                place.data, place.classes = of_source.data_ptr(), of_source.size(1)
        reads = [*self.x, self.weight, self.bias, *moments]
        args = self.args(y, backward=False)
        if not statistics:
            args.mean = args.rstd = None
        writes = [*y, self.mean, self.rstd] if statistics else y
        more = [given, int(overlaps)]
        emulated.call("group_norm_forward", args, reads, writes, library, more)
        return torch.cat(y, dim=1)

    def moments(self, source: int, classes: int) -> Tensor:
        """What a convolution leaves of a source: [N, classes, blocks, c, 2], NaN for no pixels."""
        x = self.x[source]
        n, c, height, width = x.shape
        # Of classes (h % 2, w % 2) if there are four.
        every = math.isqrt(classes)
        apart = x.double().reshape(n, c, height // every, every, width // every, every)
        lists = apart.permute(0, 3, 5, 2, 4, 1).reshape(n, classes, -1, c)
        pixels = lists.size(2)
        library = emulated.library()
        library.moment_block_pixels.restype = c_int64
        blocks = library.moment_blocks(c_int64(pixels))
        moments = torch.full((n, classes, blocks, c, 2), torch.nan)
        for image in range(n):
            first = 0
            for block in range(blocks):
                place = [c_int64(v) for v in (pixels, image, block)]
                rows = library.moment_block_pixels(*place)
                part = lists[image, :, first : first + rows]  # [classes, rows, c]
                if rows:
                    mean = part.mean(1)
                    moments[image, :, block, :, 0] = mean
                    moments[image, :, block, :, 1] = (part - mean[:, None]).square().sum(1)
                first += rows
            assert first == pixels
        return moments

    def backward(
        self,
        grad_weight: Tensor | None,
        grad_bias: Tensor | None,
        library: ctypes.CDLL | None = None,
    ) -> Tensor:
        grad_x = self.empty()
        args = self.args(grad_x, backward=True)
        args.grad_weight = None if grad_weight is None else grad_weight.data_ptr()
        args.grad_bias = None if grad_bias is None else grad_bias.data_ptr()
        reads = [*self.x, *self.grad_y, self.weight, self.bias, self.mean, self.rstd]
        writes = [*grad_x, grad_weight, grad_bias]
        emulated.call("group_norm_backward", args, reads, writes, library)
        return torch.cat(grad_x, dim=1)

    def exact(self) -> tuple[Tensor, ...]:
        """Output and gradients of x, weight and bias, the active channels joined."""
        x, grad_y = (torch.cat(t, dim=1).double() for t in (self.x, self.grad_y))
        leaves = [t.requires_grad_() for t in (x, self.weight[self.used].double(),
                                               self.bias[self.used].double())]  # fmt: skip
        y = norm(*leaves, self.groups, self.silu)
        return y.detach(), *torch.autograd.grad(y, leaves, grad_y)


def check_close(got: Tensor, exact: Tensor, relative: float) -> None:
    rounding = 0.0 if got.dtype == torch.float32 else 0.51 * torch.finfo(got.dtype).eps
    atol = relative * exact.abs().max().item()
    torch.testing.assert_close(got.double(), exact, rtol=rounding, atol=atol)


def check(case: Case, library: ctypes.CDLL | None = None) -> None:
    y, grad_x, grad_weight, grad_bias = case.exact()
    check_close(case.forward(library=library), y, 4e-6)
    n, groups = case.mean.shape
    joined = torch.cat(case.x, dim=1).double().reshape(n, groups, -1)
    check_close(case.mean, joined.mean(2), 1e-6)
    check_close(case.rstd, (joined.var(2, correction=0) + EPS).rsqrt(), 1e-6)
    before = [torch.where(case.used, torch.ones_like(p), torch.nan) for p in (case.weight,) * 2]
    after = [b.clone() for b in before]
    check_close(case.backward(*after, library), grad_x, 1e-5)
    for got, exact in zip(after, (grad_weight, grad_bias), strict=True):
        check_close(got[case.used], exact + 1, 1e-5)
        assert got.isnan().equal(~case.used)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "groups"), [((32,), 8), ((7,), 1), ((5,), 5), ((33,), 3)])
@pytest.mark.parametrize("silu", [False, True])
def test_one_source(dtype, channels, groups, silu):
    check(Case(channels, groups, dtype=dtype, silu=silu))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "groups"), [((24, 8), 4), ((5, 7), 2), ((40, 3), 1)])
@pytest.mark.parametrize("layout", ["channels_last", "sliced"])
def test_two_sources(dtype, channels, groups, layout):
    check(Case(channels, groups, dtype=dtype, layout=layout))


@pytest.mark.parametrize(("height", "width"), [(1, 2), (4, 4), (8, 8), (9, 15), (16, 16)])
def test_image_sizes(height, width):
    check(Case((9,), 3, n=3, height=height, width=width, dtype=torch.float32))


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_float32_parameters_beside_16_bit_sources(dtype):
    check(Case((16, 5), 7, dtype=dtype, param_dtype=torch.float32))


def test_only_one_parameter_gradient():
    case = Case((8,), 2, dtype=torch.float32)
    _, _, exact, _ = case.exact()
    case.forward()
    grad = torch.zeros(case.weight.shape)
    case.backward(grad, None)
    check_close(grad[case.used], exact, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "groups"),
    [
        ((96,), 32),  # two chunks of 48 channels
        ((72, 56), 2),  # a group beyond a chunk, and over both sources
        ((136,), 1),  # one group of more channels than a block covers
        ((16, 184), 1),
        ((104, 8), 7),  # groups of 16 that straddle chunks of 56
        ((128,), 128),  # groups of one channel
    ],
)
def test_groups_of_any_size(dtype, channels, groups):
    check(Case(channels, groups, n=1, height=3, dtype=dtype))


@pytest.fixture
def multiprocessors():
    """Sets those of the emulated device."""
    yield emulated.library().set_multiprocessors
    emulated.library().set_multiprocessors(4)


@pytest.mark.parametrize("dtype", DTYPES[::2])
@pytest.mark.parametrize("n", [1, 3])
def test_many_blocks_an_image(multiprocessors, dtype, n):
    """Each finds the statistics for itself, one of them stores them."""
    multiprocessors(132)
    check(Case((24, 8), 4, n=n, height=9, width=15, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("classes", [(1, 1), (4, 1), (1, 4), (4, 4)])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (6, 10), (8, 16), (16, 16)])
def test_moments_that_a_convolution_left(dtype, classes, height, width):
    """The same output from given moments, of one source or of both."""
    case = Case((12, 8), 4, n=3, height=height, width=width, dtype=dtype)
    first, second = (case.moments(i, count) for i, count in enumerate(classes))
    y = case.exact()[0]
    for given in ((first, second), (None, second), (first, None)):
        check_close(case.forward(given), y, 4e-6)
    mean = torch.cat(case.x, dim=1).double().reshape(3, 4, -1).mean(2)
    check_close(case.mean, mean, 1e-6)
    case.mean.fill_(torch.nan)
    check_close(case.forward((first, second), statistics=False), y, 4e-6)
    assert case.mean.isnan().all()


@pytest.mark.parametrize(("height", "width"), [(5, 7), (9, 15), (1, 3)])
def test_moments_of_odd_images(height, width):
    case = Case((40, 24), 4, n=4, height=height, width=width)
    given = (case.moments(0, 1), case.moments(1, 1))
    check_close(case.forward(given), case.exact()[0], 4e-6)


@pytest.mark.parametrize("silu", [False, True])
def test_as_exact_as_pytorch(silu):
    """Of float32 numbers, whatever their mean; kernels on a GPU round a little differently."""
    for mean, scale in ((4, 1), (-1000, 1), (0, 30)):
        case = Case((32,), 8, n=2, height=8, width=16, dtype=torch.float32, silu=silu)
        case.x = [as_layout(x * scale + mean, "channels_last") for x in case.x]
        torchs = norm(case.x[0], case.weight[:32], case.bias[:32], 8, silu)
        check_error(case.forward(), torchs, case.exact()[0], FORWARD_RATIO)


def take_launches() -> list[str]:
    """The launches since the last call: "name blocks x blocks_y x threads", "+" if one overlaps."""
    library = emulated.library()
    library.take_launches.restype = c_char_p
    return library.take_launches().decode().split("\n")[:-1]


def names(launches: list[str]) -> list[str]:
    return [launch.split()[0] for launch in launches]


@pytest.mark.parametrize("channels", [(24,), (24, 8)])
def test_launches(channels):
    """One for both sources, one more for moments that are not given; three backward."""
    case = Case(channels, 4)
    moments = [case.moments(i, 1) for i in range(len(channels))] + [None]
    take_launches()
    case.forward((*moments[:2],))
    assert names(take_launches()) == ["group_norm_apply"]
    for given in ((None, moments[1]), (None, None)):
        case.forward(given)
        assert names(take_launches()) == ["group_norm_moments", "group_norm_apply"]
    case.backward(torch.zeros_like(case.weight), None)
    names_backward = ["group_norm_grad_sums", "group_norm_grad_params", "group_norm_grad_apply"]
    assert names(take_launches()) == names_backward
    case.backward(None, None)
    assert names(take_launches()) == names_backward[::2]


@pytest.fixture
def listed_only(multiprocessors):
    """Launches of a device with 132 multiprocessors are listed, kernels do not run."""
    multiprocessors(132)
    emulated.library().want_kernels(0)
    yield
    emulated.library().want_kernels(1)


@pytest.mark.parametrize("c", [128, 64, 32])
def test_blocks_of_a_whole_image(listed_only, c):
    """Enough blocks for one image; for many, blocks that read few moments beside their pixels."""
    for n in (1, 128):
        case = Case((c,), 32, n=n, height=32, width=32)
        given = torch.empty(n, 1, 16, c, 2)
        take_launches()
        case.forward((given, None))
        blocks = int(take_launches()[0].split()[1].split("x")[0])
        assert blocks >= 100
        pixels = n * 1024 * c / blocks / min(c, 64)  # of a block
        if n == 128:
            assert 0.07 * pixels * 2 * 2 >= 16 * 8  # bytes a channel


def test_overlaps_the_kernel_before():
    """It waits for that one: the emulator watches every access."""
    emulated.library().set_hopper(1)
    try:
        case = Case((24, 8), 4)
        moments = (case.moments(0, 1), case.moments(1, 1))
        for given in (moments, (None, None)):
            take_launches()
            check_close(case.forward(given, overlaps=True), case.exact()[0], 4e-6)
            assert all(launch.endswith("+") for launch in take_launches())
        case.forward(moments)
        assert not take_launches()[0].endswith("+")
    finally:
        emulated.library().set_hopper(0)


def test_repeatable():
    case = Case((24, 8), 4, n=3, height=12, width=12)
    y = case.forward()
    assert case.forward().equal(y)
    results = []
    for _ in range(2):
        grads = [torch.zeros_like(case.weight) for _ in range(2)]
        results.append((case.backward(*grads), *grads))
    for first, second in zip(*results, strict=True):
        assert first.equal(second)
