"""Derivatives of every kind: forward mode, second ones, batched ones, and saved tensors' hooks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from ops.derivative_cases import CASES, Case
from ops.op_checks import run_python
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.graph import save_on_cpu
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from ddsm_ext.ops import sliced_attention, sliced_conv2d, sliced_embedding, sliced_linear

pytestmark = pytest.mark.filterwarnings("ignore:ddsm_ext")
every_op = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_op
@pytest.mark.parametrize("frozen", [False, True])
def test_tangents_equal_torchs(case: Case, frozen: bool) -> None:
    inputs, tangents = case.inputs(0), case.inputs(1)
    if not frozen:
        inputs = tuple(x.requires_grad_() for x in inputs)
    want, want_tangent = jvp(case.torchs, inputs, tangents)
    got, tangent = jvp(case.ours, inputs, tangents)
    assert_close((got, tangent), (want, want_tangent))
    with torch.no_grad(), forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(inputs, tangents, strict=True)]
        got, tangent = forward_ad.unpack_dual(case.ours(*duals))
        assert tangent is not None
        assert_close((got, tangent), (want.detach(), want_tangent.detach()))


@every_op
def test_gradcheck_in_both_modes(case: Case) -> None:
    inputs = tuple(x.requires_grad_() for x in case.inputs(0))
    batched = {"check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(case.ours, inputs, check_forward_ad=True, fast_mode=True, **batched)
    assert gradgradcheck(case.ours, inputs, check_fwd_over_rev=True, fast_mode=True)


@every_op
def test_jacobians_and_hessians_equal_torchs(case: Case) -> None:
    inputs = case.inputs(0)
    want = jacrev(case.torchs)(*inputs)
    assert_close(jacfwd(case.ours)(*inputs), want)
    assert_close(jacrev(case.ours)(*inputs), want)

    def loss(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x: op(x, *inputs[1:]).sin().sum()

    assert_close(hessian(loss(case.ours))(inputs[0]), hessian(loss(case.torchs))(inputs[0]))


@every_op
def test_vmap_with_and_without_gradients(case: Case) -> None:
    batch = [torch.stack(pair) for pair in zip(case.inputs(0), case.inputs(1), strict=True)]
    assert_close(vmap(case.ours)(*batch), vmap(case.torchs)(*batch))

    def loss(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *inputs: op(*inputs).sin().sum()

    # One gradient a sample, and autograd's own over all of them.
    want = vmap(grad(loss(case.torchs)))(*batch)
    assert_close(vmap(grad(loss(case.ours)))(*batch), want)
    leaves = [x.clone().requires_grad_() for x in batch]
    vmap(loss(case.ours))(*leaves).sum().backward()
    assert_close(leaves[0].grad, want)


@every_op
def test_second_derivatives_reach_every_input(case: Case) -> None:
    def penalty(op: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
        y = op(*inputs).sin()
        first = torch.autograd.grad(y.sum(), inputs, create_graph=True)
        (y.sum() + sum(g.square().sum() for g in first)).backward()
        return [x.grad for x in inputs if x.grad is not None]

    ours, torchs = ([x.requires_grad_() for x in case.inputs(0)] for _ in range(2))
    assert_close(penalty(case.ours, ours), penalty(case.torchs, torchs))


def test_second_derivatives_with_accumulate_grad() -> None:
    grads = []
    for accumulate in (False, True):
        x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
        w = nn.Parameter(torch.arange(12, dtype=torch.float64).view(4, 3))
        y = sliced_linear(x, w, None, 2, accumulate_grad=accumulate).square().sum()
        (first,) = torch.autograd.grad(y, x, create_graph=True)
        first.square().sum().backward()
        grads.append(w.grad)
    # d/dw of |2 (x w^T) w|^2, by torch.
    w = torch.arange(12, dtype=torch.float64).view(4, 3).requires_grad_()
    product = torch.ones(2, 3, dtype=torch.float64) @ w[:2].T
    (2 * product @ w[:2]).square().sum().backward()
    assert_close(grads, [w.grad, w.grad])


def test_the_slower_way_is_said_once() -> None:
    code = (
        "import warnings, torch\n"
        "from ddsm_ext.ops import sliced_linear\n"
        "w, x = torch.ones(3, 3), torch.ones(2, 3)\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(3):\n"
        "        torch.func.jvp(lambda x: sliced_linear(x, w, None, 2), (x,), (x,))\n"
        "        torch.func.vmap(lambda x: sliced_linear(x, w, None, 2))(x)\n"
        "print([str(w.message) for w in said])\n"
    )
    said = run_python(code).stdout
    assert said.count("ddsm_ext: sliced_linear has no rules of its own for torch.func's") == 1
    assert said.count("ddsm_ext") == 1


# ---- hooks of saved tensors ----------------------------------------------------------------------


def _conv_call(x: Tensor, parameters: list[Tensor], accumulate: bool) -> Tensor:
    weight, bias = parameters
    x, x2 = x[:, :9], x[:, 9:]
    return sliced_conv2d(
        x, weight, bias, 12, padding=1, x2=x2, accumulate_grad=accumulate, algo="winograd_4x4"
    )


def _linear_call(x: Tensor, parameters: list[Tensor], accumulate: bool) -> Tensor:
    return sliced_linear(x, *parameters, 5, accumulate_grad=accumulate)


def _embedding_call(x: Tensor, parameters: list[Tensor], accumulate: bool) -> Tensor:
    rows = torch.tensor([2, 0, 2])
    return x.sum() * sliced_embedding(*parameters, rows, 3, accumulate_grad=accumulate)


def _attention_call(x: Tensor, parameters: list[Tensor], accumulate: bool) -> Tensor:
    return sliced_attention(x * parameters[0], x, x + 1)


HOOKED = {
    "conv2d": (_conv_call, (2, 14, 8, 8), ((16, 16, 3, 3), (16,))),
    "linear": (_linear_call, (3, 6), ((7, 8), (7,))),
    "embedding": (_embedding_call, (1,), ((3, 4),)),
    "attention": (_attention_call, (2, 2, 5, 4), ((4,),)),
}


@pytest.fixture(params=["reentrant", "not reentrant", "save_on_cpu"])
def hooked(request: pytest.FixtureRequest) -> Iterator[Callable[..., Tensor]]:
    """Runs a function of x so that its saved tensors go through hooks."""
    if request.param == "save_on_cpu":
        with save_on_cpu():
            yield lambda function, x: function(x)
    else:
        reentrant = request.param == "reentrant"
        yield lambda function, x: checkpoint(function, x, use_reentrant=reentrant)


@pytest.mark.parametrize("name", HOOKED)
@pytest.mark.parametrize("accumulate", [False, True])
def test_checkpointing_changes_no_bit(name: str, accumulate: bool, hooked: Callable) -> None:
    call, x_shape, shapes = HOOKED[name]

    def grads(run: Callable[..., Tensor], accumulate: bool) -> list[Tensor]:
        torch.manual_seed(0)
        x = torch.randn(x_shape, requires_grad=True)
        parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        run(lambda x: call(x, parameters, accumulate), x).square().sum().backward()
        return [tensor.grad for tensor in (x, *parameters)]

    want = grads(lambda function, x: function(x), False)
    got = grads(hooked, accumulate)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_accumulation_into_shared_memory_is_refused() -> None:
    weight = nn.Parameter(torch.ones(3, 4))
    weight.grad = torch.zeros(1, 4).expand(3, 4)
    y = sliced_linear(torch.ones(2, 4), weight, None, 2, accumulate_grad=True)
    with pytest.raises(ValueError, match=r"weight.grad has strides \(0, 1\).*need one with memory"):
        y.sum().backward()


def test_ordinary_calls_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for case in CASES.values():
            inputs = [x.requires_grad_() for x in case.inputs(0, torch.float32)]
            case.ours(*inputs).sum().backward()
