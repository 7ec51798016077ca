"""Notices modules that are not as a network makes them: replaced, wrapped, hooked or set anew."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import repeat
from operator import contains, getitem, itemgetter
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as registry

from ddsm_ext.models.layers import SlicedLayer

_CALL = nn.Module.__call__
_forward_hooks, _pre_hooks = itemgetter("_forward_hooks"), itemgetter("_forward_pre_hooks")
_training = itemgetter("training")
# What an instance may have of its own that a call would run instead of its class's forward.
_OWN = {"forward": "forward", "_compiled_call_impl": "compiled forward"}

Settings = tuple[Any, ...]


class Structure:
    """What a network is made of, asked before every step that runs without its modules.

    Hooks of the root itself are no matter: they run around whatever it does.

    Args:
        root: the network.
        forwards: the types of the modules below it, each with its own forward.
        settings: of each layer by path, the values of the attributes that its type lists as
            SETTINGS.
        drops: whether the network has dropout, which modules in training mode apply.
    """

    def __init__(
        self,
        root: nn.Module,
        forwards: Mapping[Any, Any],
        settings: Mapping[str, Settings],
        drops: bool,
    ) -> None:
        self._root = root
        self._forwards = tuple(forwards.items())
        self._settings = settings
        self._drops = drops
        self.scans = 0  # how often its modules were found to be other ones
        self._scan()

    def _scan(self) -> None:
        self.scans += 1
        known = {kind for kind, _ in self._forwards}
        self._names, self._modules = zip(*list(self._root.named_modules())[1:], strict=True)
        slots = [(m._modules, name) for m in self._root.modules() for name in m._modules]
        self._dicts, self._keys = zip(*slots, strict=True)
        self._held = [modules[name] for modules, name in slots]
        self._types = list(map(type, self._modules))
        self._attributes = [module.__dict__ for module in self._modules]
        self._stranger = next((i for i, kind in enumerate(self._types) if kind not in known), None)
        # None in the replicas of DataParallel.
        self._parameters = next((m._parameters for m in self._modules if m._parameters), None)
        self._seen_changes = -1

    def first_parameter(self) -> Tensor | None:
        """Return the first parameter; None: there is none, as in the replicas of DataParallel."""
        return None if self._parameters is None else next(iter(self._parameters.values()))

    def problem(self) -> str | None:
        """Return what is not as it was made, or None."""
        # A module has no equality but identity, and lists are compared in C.
        try:
            now: list[Any] = list(map(getitem, self._dicts, self._keys))
            same = now == self._held
        except KeyError:
            same = False
        if not same or list(map(type, self._modules)) != self._types:
            self._scan()
        if self._stranger is not None:
            kind = self._types[self._stranger].__name__
            return f"{self._names[self._stranger]} is a {kind}"
        if any(map(_forward_hooks, self._attributes)) or any(map(_pre_hooks, self._attributes)):
            hooked = [bool(_forward_hooks(a) or _pre_hooks(a)) for a in self._attributes]
            return f"{self._names[hooked.index(True)]} has forward hooks"
        for own, name in _OWN.items():
            if any(map(contains, self._attributes, repeat(own))):
                at = next(i for i, a in enumerate(self._attributes) if own in a)
                return f"{self._names[at]} has a {name} of its own"
        for known, forward in self._forwards:
            if known.forward is not forward or known.__call__ is not _CALL:
                return f"{known.__name__} has another forward"
        if registry._global_forward_hooks or registry._global_forward_pre_hooks:
            return "all modules have forward hooks"
        if self._drops and any(map(_training, self._attributes)):
            at = next(i for i, a in enumerate(self._attributes) if _training(a))
            return f"{self._names[at]} is in training mode with dropout"
        if SlicedLayer.changes != self._seen_changes:
            self._seen_changes, self._reset = SlicedLayer.changes, self._reset_layer()
        return self._reset

    def _reset_layer(self) -> str | None:
        for name, module in zip(self._names, self._modules, strict=True):
            if settings_of(module) != self._settings.get(name, ()):
                return f"{name} has other settings than it was made with"
        return None


def settings_of(module: nn.Module) -> Settings:
    """Return the values of a layer's settings."""
    return tuple(getattr(module, name) for name in getattr(module, "SETTINGS", ()))
