"""The CUDA group norm kernels on the emulator beside an fp64 reference. No GPU takes part."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cuda_kernels import emulated
from cuda_kernels.emulated import take_launches
from cuda_kernels.group_norm_cases import DTYPES, Case, check, check_close, norm
from ops.op_checks import FORWARD_RATIO, as_layout, check_error


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
    case = Case(channels, 4, height=4, width=6, modulated=True)
    take_launches()
    case.forward(down=True)
    assert names(take_launches()) == ["group_norm_moments", "group_norm_apply_down"]
    grads = [torch.zeros_like(case.scale) for _ in range(2)]
    case.backward(torch.zeros_like(case.weight), None, None, *grads)
    names_backward.insert(2, "group_norm_grad_modulation")
    assert names(take_launches()) == names_backward


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
    with emulated.hopper():
        case = Case((24, 8), 4)
        moments = (case.moments(0, 1), case.moments(1, 1))
        for given in (moments, (None, None)):
            take_launches()
            check_close(case.forward(given, overlaps=True), case.exact()[0], 4e-6)
            assert all(launch.endswith("+") for launch in take_launches())
        case = Case((24, 8), 4, height=4, width=6, modulated=True)
        for given in ((case.moments(0, 1), case.moments(1, 1)), (None, None)):
            exact = F.avg_pool2d(case.exact()[0], 2)
            check_close(case.forward(given, overlaps=True, down=True), exact, 4e-6)
            assert all(launch.endswith("+") for launch in take_launches())
        take_launches()
        case = Case((24, 8), 4)
        case.forward(moments)
        assert not take_launches()[0].endswith("+")


def test_repeatable():
    case = Case((24, 8), 4, n=3, height=12, width=12, modulated=True)
    y = case.forward()
    assert case.forward().equal(y)
    assert case.forward(down=True).equal(case.forward(down=True))
    results = []
    for _ in range(2):
        grads = [torch.zeros_like(case.weight) for _ in range(2)]
        grads += [torch.zeros_like(case.scale) for _ in range(2)]
        results.append((case.backward(*grads[:2], None, *grads[2:]), *grads))
    for first, second in zip(*results, strict=True):
        assert first.equal(second)
