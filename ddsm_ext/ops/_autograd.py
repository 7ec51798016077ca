"""The ops' gradients: kernels called by autograd, and torch's own operations for second ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ddsm_ext.ops._call import warn_of_plain_torch
from ddsm_ext.settings import Refusal

_is_batched = torch._C._functorch.is_legacy_batchedtensor  # what is_grads_batched makes

# Outputs, made by torch's own operations, and {position of an input: the tensor it was}.
Replayed = tuple[tuple[Tensor, ...], dict[int, Any]]
# Makes them of ctx, its saved tensors and the gradients of the outputs.
Replay = Callable[[Any, list[Any], tuple[Tensor, ...]], Replayed]


def needs_grad(*tensors: Tensor | None) -> bool:
    """True if autograd will want a gradient of one of these inputs."""
    if torch.is_grad_enabled():
        for tensor in tensors:  # any() over a generator takes twice as long
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def wants_grad(ctx: Any, position: int) -> bool:
    """True if a backward is to return the gradient of this input, which a raw call may omit."""
    return position < len(ctx.needs_input_grad) and ctx.needs_input_grad[position]


# Past the autograd layer that register_autograd gave an op, which on a 4x4 image took 22 of 31 us:
# for calls that need no gradient.
below_autograd = torch._C._AutoDispatchBelowAutograd


def differentiable(
    op: str,
    save: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., dict[int, Tensor | None]],
    *,
    parameters: Mapping[str, int] | None = None,
    run: Callable[..., Any] | None = None,
    replay: Replay | None = None,
    name: str | None = None,
) -> Callable[..., Any]:
    """Give a raw op its gradients, in eager calls and under torch.compile.

    Returns call(*inputs, needs_grad=..., accumulate_grad=False) -> the raw op's outputs.

    Args:
        op: name without namespace.
        save: (ctx, inputs of the raw op, output) keeps what the backward reads.
        backward: (ctx, *gradients of the outputs) -> {position of an input: its gradient}; those of
            parameters are the tensors of `grad_targets`.
        parameters: name -> position among the inputs of what `accumulate_grad` is about.
        run: (training, *inputs) is what an eager call does; None: calls the raw op.
        replay: computes the outputs again for a backward that is itself differentiated; None: the
            backward needs no such help.
        name: of the public function, for its errors; None: `op`.
    """
    raw = getattr(torch.ops.ddsm_ext, op)
    if run is None:
        kernel = raw.default

        def run(training: bool, *inputs: Any) -> Any:
            with below_autograd():
                return kernel(*inputs)

    function = eager_function(op, run, save, backward, parameters=parameters, replay=replay)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        function.setup_context(ctx, (*inputs, False), output)

    torch.library.register_autograd(
        f"ddsm_ext::{op}", partial(_gradients, backward), setup_context=setup_context
    )

    def call(*inputs: Any, needs_grad: bool, accumulate_grad: bool = False) -> Any:
        if torch.compiler.is_compiling():
            return raw(*inputs)
        try:
            if needs_grad:
                return function.apply(*inputs, accumulate_grad)
            return run(False, *inputs)
        except RuntimeError as error:
            refusal = _refusal(op, name or op, error)
            if refusal is None:
                raise
            raise refusal from error

    return call


def _refusal(op: str, name: str, error: RuntimeError) -> Refusal | None:
    """Return what a check of the C++ bindings says as a refusal; None: it is no such check's."""
    found = re.search(rf"csrc/bindings/\w+\.(?:h|cpp):\d+, {op}: ([^\n]*)", str(error))
    return None if found is None else Refusal(f"{name}: {found[1]}")


def eager_function(
    op: str,
    run: Callable[..., Any],
    save: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., dict[int, Tensor | None]],
    *,
    parameters: Mapping[str, int] | None = None,
    replay: Replay | None = None,
) -> type[torch.autograd.Function]:
    """Return the autograd function of eager calls: arguments as `differentiable`'s.

    It takes a fifth of register_autograd's time a call; its last input is `accumulate_grad`.
    """
    positions = dict(parameters or {})

    def gradients(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        if replay is not None:
            again = torch.is_grad_enabled()  # create_graph=True
            if again or any(map(_is_batched, grads)):  # is_grads_batched=True
                return _gradients_by_torch(replay, ctx, grads, create_graph=again)
        return _gradients(backward, ctx, *grads)

    class Eager(torch.autograd.Function):
        @classmethod
        def apply(cls, *inputs: Any) -> Any:
            # Function's own first binds the inputs to forward's signature, 9 of 40 us a call, and
            # looks for transforms of torch.func, which `in_transform` keeps from here.
            # mypy: the base is torch's own in C, which its stubs leave out.
            return super(torch.autograd.Function, cls).apply(*inputs)  # type: ignore[misc]

        @staticmethod
        def forward(*inputs: Any) -> Any:
            return run(True, *inputs[:-1])

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.op, ctx.parameters, ctx.accumulate_grad = op, positions, inputs[-1]
            # The leaves themselves: saved_tensors may give other objects with the same values.
            held = [inputs[position] for position in positions.values()]
            ctx.owners = [t if t is not None and t.is_leaf else None for t in held]
            save(ctx, inputs[:-1], output)

        backward = staticmethod(gradients)

    Eager.__name__ = Eager.__qualname__ = op
    return Eager


def _gradients(backward: Callable[..., Any], ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    """Return the gradient of every input that was given, None for most."""
    found: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    for position, grad in backward(ctx, *grads).items():
        if grad is not None and not (ctx.accumulate_grad and position in ctx.parameters.values()):
            found[position] = grad
    return tuple(found)


def _gradients_by_torch(
    replay: Replay, ctx: Any, grads: tuple[Tensor, ...], *, create_graph: bool
) -> tuple[Any, ...]:
    """Return what `_gradients` does by torch's operations, which have gradients and batch.

    Autograd adds the parameters' itself, whatever `accumulate_grad` says.
    """
    why = "create_graph" if create_graph else "is_grads_batched"
    warn_of_plain_torch(f"the backward of {ctx.op} has no kernels for {why}=True")
    with torch.enable_grad():
        # Views, so that an input given twice, as q and as k, gets the gradient of each place; of
        # tensors that need a gradient even if the saved ones were unpacked without.
        saved = [_tracked(t) for t in ctx.saved_tensors]
        outputs, inputs = replay(ctx, saved, grads)
    found: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    wanted = [position for position in inputs if ctx.needs_input_grad[position]]
    gradients = torch.autograd.grad(
        outputs,
        [inputs[position] for position in wanted],
        grads[: len(outputs)],
        create_graph=create_graph,
        allow_unused=True,
    )
    for position, gradient in zip(wanted, gradients, strict=True):
        found[position] = gradient
    return tuple(found)


def _tracked(saved: Tensor | None) -> Tensor | None:
    if saved is None or not saved.is_floating_point():
        return saved
    return saved.view_as(saved) if saved.requires_grad else saved.detach().requires_grad_()


def grad_targets(ctx: Any, *parameters: Tensor | None) -> list[Tensor | None]:
    """Return the full-size tensors to whose prefixes a backward adds the parameters' gradients.

    Args:
        ctx: of an op that `differentiable` or `eager_function` made.
        parameters: as saved for the backward, in the order said there.

    Returns:
        `.grad` of each parameter itself with accumulate_grad (made of zeros where there is none;
        autograd is not told), else new zeros; None for what nobody wants. Vectors and biases are
        contiguous.

    Raises:
        ValueError: `.grad` is a vector or a bias that is not contiguous, or an expanded tensor.
    """
    targets: list[Tensor | None] = [None] * len(parameters)
    for i, (name, position) in enumerate(ctx.parameters.items()):
        parameter = parameters[i]
        if parameter is None or not ctx.needs_input_grad[position]:
            continue
        is_row = parameter.dim() == 1 or name == "bias"
        layout = torch.contiguous_format if is_row else torch.preserve_format
        if not ctx.accumulate_grad:
            targets[i] = torch.zeros_like(parameter, memory_format=layout)
        else:
            own = ctx.owners[i]
            if own.grad is None:
                own.grad = torch.zeros_like(own, memory_format=layout)
            if torch._debug_has_internal_overlap(own.grad) == 1:
                raise Refusal(
                    f"{ctx.op}: {name}.grad has strides {own.grad.stride()}, by which elements "
                    "share memory; need one with memory for each"
                )
            if is_row and not own.grad.is_contiguous():
                stride = ", ".join(map(str, own.grad.stride()))
                raise Refusal(f"{ctx.op}: {name}.grad has stride {stride}; need a contiguous one")
            targets[i] = own.grad
    return targets
