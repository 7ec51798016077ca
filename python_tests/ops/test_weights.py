"""Changes of weights are seen by the next call, however they are made."""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrize
import torch.nn.utils.prune
from ops.weight_edits import EDITS, one_process, received
from torch import Tensor, nn

import ddsm_ext
from ddsm_ext._fixed_weights import fixed_weights
from ddsm_ext.ops import sliced_conv2d, weights_changed
from ddsm_ext.ops._packed import packed_bytes
from ddsm_ext.ops._weights import WatchedPlaces, WatchedWeights, content_of


def weight_of(channels: int) -> nn.Parameter:
    generator = torch.Generator().manual_seed(channels)
    return nn.Parameter(0.02 * torch.randn(channels, channels, 3, 3, generator=generator))


@torch.no_grad()
def check_conv(weight: Tensor) -> None:
    """The convolution is that of plain torch with the weight as it is now."""
    x = torch.randn(1, weight.shape[1], 8, 8, generator=torch.Generator().manual_seed(1))
    y = sliced_conv2d(x, weight, None, weight.shape[0], padding=1, algo="winograd_4x4")
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    assert (y.double() - exact).abs().max() <= 1e-4 * exact.abs().max()
    assert packed_bytes([weight]) > 0  # else nothing is tested


@pytest.mark.parametrize("channels", [64, 107, 256])
@pytest.mark.parametrize("edit", EDITS)
def test_an_op_sees(edit: str, channels: int) -> None:
    weight = weight_of(channels)
    check_conv(weight)
    for _ in range(2):
        EDITS[edit](weight)
        check_conv(weight)
        check_conv(weight)


@pytest.mark.parametrize(("shape", "turned"), [((4, 4), (0, 1)), ((3, 5, 5), (1, 2))])
def test_a_weight_turned_in_its_memory_is_seen(
    shape: tuple[int, ...], turned: tuple[int, int]
) -> None:
    """Address and shape stay: that of a linear layer, and of one of several blocks."""
    for watch in (WatchedPlaces, WatchedWeights):
        module = nn.Module()
        module.weight = nn.Parameter(torch.arange(75.0)[: torch.Size(shape).numel()].view(shape))
        watched = watch(module)
        watched.changed()
        assert not watched.changed()
        module.weight.data = module.weight.data.transpose(*turned)
        assert watched.changed()


@pytest.mark.parametrize("channels", [64, 107, 256])
def test_an_op_sees_what_is_written_through_a_view_that_is_kept(channels: int) -> None:
    weight = weight_of(channels)
    for view in (weight.detach().numpy(), weight.data):
        check_conv(weight)
        view[-1, -1, -1, -1] += 1
        check_conv(weight)
        view[:, 1:] = 0
        check_conv(weight)
        del view
        check_conv(weight)


@pytest.mark.parametrize("channels", [64, 107, 256])
def test_an_op_sees_edits_of_memory_that_others_own(channels: int) -> None:
    array = weight_of(channels).detach().numpy().copy()
    weight = nn.Parameter(torch.from_numpy(array))
    check_conv(weight)
    array[-1, -1] += 1
    check_conv(weight)


def test_an_op_sees_what_another_process_writes() -> None:
    weight = weight_of(64)
    weight.share_memory_()
    check_conv(weight)
    child = os.fork()
    if child == 0:
        ctypes.memset(weight.data_ptr(), 0, 4096)
        os._exit(0)
    os.waitpid(child, 0)
    assert not weight[0, 0].any()
    check_conv(weight)


def test_an_op_sees_what_collectives_write() -> None:
    weight = weight_of(64)
    check_conv(weight)
    with one_process():
        received(weight)
        check_conv(weight)
        received(weight)
        check_conv(weight)


def test_an_op_sees_edits_in_inference_mode() -> None:
    with torch.inference_mode():
        weight = nn.Parameter(weight_of(64).detach() * 1.0)
        check_conv(weight)
        weight[-1, -1] += 1
        check_conv(weight)


def test_pruned_and_parametrised_modules() -> None:
    class Half(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    conv = nn.Conv2d(64, 64, 3)
    check_conv(conv.weight)
    torch.nn.utils.prune.ln_structured(conv, "weight", 0.5, 2, dim=1)
    check_conv(conv.weight)
    torch.nn.utils.prune.remove(conv, "weight")
    check_conv(conv.weight)
    torch.nn.utils.parametrize.register_parametrization(conv, "weight", Half())
    check_conv(conv.weight)
    with torch.no_grad():
        conv.parametrizations.weight.original.mul_(3)
    check_conv(conv.weight)


def test_memory_is_read_only_as_long_as_somebody_else_holds_it() -> None:
    weight = weight_of(64)
    check_conv(weight)
    content = content_of(weight)
    assert content.is_counted()
    view = weight.data
    check_conv(weight)
    assert not content.is_counted()
    del view
    check_conv(weight)
    assert content.is_counted()
    weight.data.mul_(2)
    assert not content.is_counted()
    check_conv(weight)
    assert content.is_counted()


def test_copies_and_pickles_carry_nothing_along() -> None:
    weight = weight_of(64)
    check_conv(weight)
    for other in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        with torch.no_grad():
            other.mul_(-3)
        check_conv(other)
        check_conv(weight)


def test_what_was_made_goes_with_the_memory() -> None:
    weight = weight_of(64)
    check_conv(weight)
    other = nn.Parameter(weight.detach())  # the same memory
    assert packed_bytes([other]) == packed_bytes([weight])
    del weight
    gc.collect()
    assert packed_bytes([other]) > 0
    content = content_of(other)
    other.data = torch.zeros(1)
    assert packed_bytes([other]) == 0
    assert content.made


FORKED = """
import os, signal, torch
from ddsm_ext.ops import sliced_conv2d, _packed, _weights
weight, x = torch.nn.Parameter(torch.randn(8, 8, 3, 3)), torch.randn(1, 8, 8, 8)
torch.set_num_threads(1)
with torch.no_grad(), _packed._lock, _weights._lock:  # as another thread may
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        y = sliced_conv2d(x, weight, None, 8, padding=1, algo="winograd_4x4")
        os._exit(0 if torch.allclose(y, torch.conv2d(x, weight, padding=1), atol=1e-4) else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_forked_beside_a_working_thread_works() -> None:
    ran = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "0"


def test_threads_that_edit_in_turn() -> None:
    """Whoever comes after an edit sees it, whichever thread looked at the weight before."""
    weight, barrier, failures = weight_of(64), threading.Barrier(3), []

    def work(number: int) -> None:
        try:
            for turn in range(12):
                barrier.wait(60)
                if turn % 3 == number:
                    weight.data[turn] += 1
                barrier.wait(60)
                check_conv(weight)
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# ---- what torch's own methods do is unchanged ---------------------------------------------------


def test_the_methods_that_note_are_those_of_torch() -> None:
    t = torch.arange(4.0, requires_grad=True)
    assert not t.data.requires_grad
    assert t.data.data_ptr() == t.data_ptr()
    with pytest.raises(RuntimeError, match=r"Can't call numpy\(\) on Tensor that requires grad"):
        t.numpy()
    t.data = torch.ones(2)
    assert t.tolist() == [1, 1]
    assert torch.Tensor.numpy.__doc__ == torch._C.TensorBase.numpy.__doc__
    with pytest.raises((RuntimeError, TypeError)):
        t.data = None  # type: ignore[assignment]

    class Sub(Tensor):
        pass

    assert type(torch.ones(2).as_subclass(Sub).data) is Sub
    doubled = torch.compile(lambda x: x.data * 2, backend="eager", fullgraph=True)
    assert doubled(t).tolist() == [2, 2]
    assert torch.func.grad(lambda x: (x * x.detach().data).sum())(torch.ones(2)).tolist() == [1, 1]
    with torch._subclasses.FakeTensorMode():
        assert torch.empty(3).data.shape == (3,)
    assert torch.empty(3, device="meta").data.untyped_storage().nbytes() == 12
    assert torch.ones(2).set_().shape == (0,)


# ---- networks -----------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.Linear(100, 7), nn.GroupNorm(4, 32))


@torch.no_grad()
def in_place(net: nn.Module) -> None:
    net[1].bias.view(-1)[-1] += 1


def through_data(net: nn.Module) -> None:
    net[0].weight.data.view(-1)[-1] += 1


def replaced(net: nn.Module) -> None:
    net[2].weight = nn.Parameter(net[2].weight.detach().clone())


def moved(net: nn.Module) -> None:
    net[1].weight.data = net[1].weight.data.clone()


def loaded(net: nn.Module) -> None:
    net.load_state_dict(copy.deepcopy(net.state_dict()))


def told_of_the_network(net: nn.Module) -> None:
    weights_changed(net)


def told_of_one(net: nn.Module) -> None:
    ddsm_ext.weights_changed(net[1].weight)


SEEN = (in_place, through_data, replaced, moved, loaded, told_of_the_network, told_of_one)


@pytest.mark.parametrize("change", SEEN, ids=lambda change: change.__name__)
@pytest.mark.parametrize("whole", [False, True])
def test_a_change_of_a_network_is_seen_once(
    change: Callable[[nn.Module], None], whole: bool
) -> None:
    net = network()
    watched = WatchedWeights(net)
    assert watched.changed(whole=whole)
    assert not watched.changed(whole=whole)
    change(net)
    assert watched.changed(whole=whole)
    assert not watched.changed(whole=whole)


def test_places_change_by_moves_alone() -> None:
    for change, moves in ((in_place, False), (told_of_the_network, False), (moved, True)):
        net = network()
        places = WatchedPlaces(net)
        change(net)
        assert places.changed() == moves


def test_an_address_that_was_kept_is_seen_by_a_whole_look_or_told() -> None:
    net = network()
    address = net[0].weight.data_ptr()
    watched = WatchedWeights(net)
    assert watched.changed(whole=True)
    ctypes.memset(address, 0, 4)
    assert watched.changed(whole=True)
    assert not watched.changed()
    ctypes.memset(address, 0, 8)
    weights_changed(net)
    assert watched.changed()


def test_tensors_of_inference_mode() -> None:
    with torch.inference_mode():
        net = network()
        watched = WatchedWeights(net)
        assert watched.changed()
        assert not watched.changed()
        net[0].weight.view(-1)[-1] += 1
        assert watched.changed()
        assert not watched.changed()
        weights_changed(net)  # as it is read anyway, nothing is told


def test_fixed_weights_belong_to_their_thread() -> None:
    from ddsm_ext._fixed_weights import found_good

    assert found_good() is None
    with fixed_weights():
        good = found_good()
        good.add("this")
        with fixed_weights():
            assert found_good() == set()
        assert found_good() == {"this"}
        other: list[object] = []
        thread = threading.Thread(target=lambda: other.append(found_good()))
        thread.start()
        thread.join()
        assert other == [None]
        weights_changed(torch.ones(1))
        assert found_good() == set()
    assert found_good() is None


def test_a_backward_that_is_yet_to_come_is_refused() -> None:
    linear = nn.Linear(4, 4)
    y = linear(torch.ones(2, 4, requires_grad=True)).sum()
    weights_changed(linear)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_other_things_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^weights_changed: got list, need a torch\.nn\.Module or"):
        weights_changed([torch.ones(1)])  # type: ignore[arg-type]
