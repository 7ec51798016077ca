"""Checkpoints that are complete or not there: safetensors and JSON under a SHA-256 manifest."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddsm_ext.io.files import naming, parse_json, sync_folder, to_json, write_synced
from ddsm_ext.io.lock import RunLock
from ddsm_ext.io.weights import parse_safetensors
from ddsm_ext.settings import Refusal, TypeRefusal

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "MANIFEST.sha256"
STATE = "state.json"
_STEP = re.compile(r"step-(\d{6,})")
_GROUP = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z][A-Za-z0-9_.-]*\.(?:safetensors|json))")
_MANIFEST_MAX_BYTES = 1 << 16
_NEED = "need a checkpoint that can be read"


class CheckpointError(Refusal):
    """A checkpoint that is incomplete, damaged or not of this project."""


@dataclass(frozen=True)
class Checkpoint:
    """Content of one checkpoint folder."""

    step: int
    tensors: dict[str, dict[str, Tensor]]  # group ("model", "ema", "optim") -> name -> tensor
    state: dict[str, Any]
    path: Path


def checkpoint_path(run: str | Path, step: int) -> Path:
    """Folder of a run's checkpoint of a step, there or not."""
    return Path(run) / "checkpoints" / f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """Steps done at a checkpoint folder, by its name."""
    return int(checkpoint.name.partition("-")[2])


def list_checkpoints(run: str | Path) -> list[Path]:
    """Checkpoint folders of a run by rising step, whole or not."""
    folder = checkpoint_path(run, 0).parent
    if not os.path.lexists(folder):  # a link to what is not there, or a file, is an error
        return []
    with naming(folder, "need a folder of checkpoints"):
        steps = [(int(m[1]), p) for p in folder.iterdir() if (m := _STEP.fullmatch(p.name))]
    return [path for _, path in sorted(steps)]


def _manifest(digests: Mapping[str, str]) -> bytes:
    """Manifest text, also readable by `sha256sum -c`."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()


def save_checkpoint(
    run: str | Path,
    step: int,
    groups: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write `checkpoints/step-000500/` as a whole, then remove all but the newest `keep`.

    The files go to a temporary folder, manifest last, which is renamed at once. Older checkpoints
    go only after the new one was read back and verified. It holds the run's lock meanwhile.

    Args:
        run: run folder.
        step: steps done.
        groups: "model", "ema", "optim" ... -> name -> tensor; one .safetensors file each.
        state: JSON object kept as state.json; gets the entry "step".
        keep: how many checkpoints up to this step stay, this one included.

    Returns:
        The new checkpoint folder.

    Raises:
        ValueError: bad names or counts, a whole checkpoint of this step holds something else, or
            another process writes into the run.
        OSError: the disk is full or not writable; older checkpoints are untouched.
    """
    if step < 0 or keep < 1:
        raise Refusal(f"save_checkpoint: step {step}, keep {keep}; need >= 0 and >= 1")
    for group in groups:
        if not _GROUP.fullmatch(group) or group == "state":
            raise Refusal(f"save_checkpoint: group is {group!r}; need a name like 'model'")
    target = checkpoint_path(run, step)
    parent = target.parent
    text = to_json({**state, "step": step}, indent=2) + "\n"
    with RunLock(run):
        parent.mkdir(exist_ok=True)
        _remove_leftovers(parent)
        temp = parent / f".new-{target.name}-{os.getpid()}-{secrets.token_hex(4)}"
        temp.mkdir()
        try:
            manifest = _write_files(temp, groups, text.encode())
            _verify(temp)
            _publish(temp, target, manifest)
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            raise
        _rotate(run, step, keep)
    return target


def _write_files(temp: Path, groups: Mapping[str, Mapping[str, Tensor]], state: bytes) -> bytes:
    """Write every file and fsync it, the manifest last; encoding and hashing overlap the disk."""
    digests: dict[str, Future[str]] = {}
    written: list[Future[None]] = []
    with ThreadPoolExecutor(2) as pool:
        for name, data in _encoded(groups, state):
            if written:
                written[-1].result()  # at most two encoded files in memory
            written.append(pool.submit(write_synced, temp / name, data))
            digests[name] = pool.submit(_digest, data)
        written[-1].result()
    manifest = _manifest({name: digest.result() for name, digest in digests.items()})
    write_synced(temp / MANIFEST, manifest)
    sync_folder(temp)
    return manifest


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _encoded(
    groups: Mapping[str, Mapping[str, Tensor]], state: bytes
) -> Iterable[tuple[str, bytes]]:
    """Name and content of every file, of tensors in any memory layout, on any device."""
    import torch
    from safetensors.torch import save

    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            if not isinstance(tensor, torch.Tensor):
                raise TypeRefusal(
                    f"save_checkpoint: {group}[{name!r}] is {type(tensor).__name__}; need a tensor"
                )
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        yield f"{group}.safetensors", save(plain)
    yield STATE, state


def _publish(temp: Path, target: Path, manifest: bytes) -> None:
    """Rename the finished folder; a damaged one of the same step makes way, a whole one stays."""
    if target.exists():
        try:
            _verify(target)
        except CheckpointError:
            os.rename(target, target.with_name(f".old-{target.name}-{secrets.token_hex(4)}"))
        else:
            if (target / MANIFEST).read_bytes() != manifest:
                raise Refusal(
                    f"{target}: already holds another checkpoint of this step; need a new run"
                )
            shutil.rmtree(temp)
            return
    os.rename(temp, target)
    sync_folder(target.parent)


def _remove_leftovers(parent: Path) -> None:
    """Remove what interrupted saves and removals left; hidden folders are never read."""
    for path in parent.iterdir():
        if path.name.startswith((".new-step-", ".old-step-")):
            shutil.rmtree(path, ignore_errors=True)


def _rotate(run: str | Path, step: int, keep: int) -> None:
    """Remove old checkpoints; each is renamed first, so that a half-removed one is never seen."""
    done = [path for path in list_checkpoints(run) if step_of(path) <= step]
    for path in done[:-keep]:
        hidden = path.with_name(f".old-{path.name}-{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):
            os.rename(path, hidden)
            shutil.rmtree(hidden, ignore_errors=True)


def _read_manifest(path: Path) -> dict[str, str]:
    try:
        with naming(path / MANIFEST, _NEED), open(path / MANIFEST, "rb") as file:
            content = file.read(_MANIFEST_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path}: has no {MANIFEST}; need a complete checkpoint") from None
    lines = content.decode("latin-1").split("\n")
    matches = [_LINE.fullmatch(line) for line in lines[:-1]]
    digests = {match[2]: match[1] for match in matches if match}
    if _manifest(digests) != content or STATE not in digests:
        raise CheckpointError(f"{path}: {MANIFEST} is damaged; need a complete checkpoint")
    return digests


def _read_checked(path: Path, name: str, digest: str, *, keep: bool = True) -> bytes:
    """Content of a file that equals the manifest's; without `keep` b"", and nothing is held."""
    try:
        with naming(path / name, _NEED), open(path / name, "rb") as file:
            data = file.read() if keep else b""
            found = _digest(data) if keep else hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: {name} is missing; need a complete checkpoint") from None
    if found != digest:
        raise CheckpointError(
            f"{path}: {name} does not match its SHA-256 in {MANIFEST}; need an undamaged checkpoint"
        )
    return data


def _verify(path: Path) -> None:
    """Read every file back and compare with the manifest."""
    for name, digest in _read_manifest(path).items():
        _read_checked(path, name, digest, keep=False)


def load_checkpoint(path: str | Path, groups: Iterable[str] | None = None) -> Checkpoint:
    """Read a checkpoint folder; what is returned is what was verified.

    Args:
        path: a `step-...` folder.
        groups: which tensor files to load; None loads all.

    Returns:
        Tensors on the CPU, and state.json.

    Raises:
        FileNotFoundError: no such folder.
        CheckpointError: incomplete, damaged, or without a wanted group.
        OSError: it is there and cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; need a checkpoint such as step-000500")
    digests = _read_manifest(path)
    ending = ".safetensors"
    stored = [name.removesuffix(ending) for name in digests if name.endswith(ending)]
    wanted = stored if groups is None else list(groups)
    for group in wanted:
        if group not in stored:
            raise CheckpointError(
                f"{path}: holds no {group}.safetensors (has {', '.join(stored)}); need that file"
            )
    state = parse_json(_read_checked(path, STATE, digests[STATE]), str(path / STATE))
    if not isinstance(state, dict) or type(state.get("step")) is not int:
        raise CheckpointError(f"{path}: {STATE} has no step; need a checkpoint of this project")
    tensors = {}
    for group in wanted:
        name = f"{group}.safetensors"
        data = _read_checked(path, name, digests[name])
        try:
            tensors[group] = parse_safetensors(data, str(path / name))
        except ValueError as error:
            raise CheckpointError(str(error)) from None
    return Checkpoint(state["step"], tensors, state, path)


def load_newest(
    run: str | Path,
    groups: Iterable[str] | None = None,
    *,
    on_damage: Callable[[str], None] | None = None,
) -> Checkpoint | None:
    """Read the newest whole checkpoint of a run, which a training may save further ones to.

    Args:
        run: run folder.
        groups: as of `load_checkpoint`.
        on_damage: as of `newest_complete`.

    Returns:
        the checkpoint; None where there are none.

    Raises:
        CheckpointError: all are damaged, or it lacks a wanted group.
        OSError: one is there and cannot be read.
    """
    while (path := newest_complete(run, on_damage=on_damage)) is not None:
        try:
            return load_checkpoint(path, groups)
        except (CheckpointError, FileNotFoundError):
            if os.path.lexists(path):
                raise  # else the training removed it: there are newer ones
    return None


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def newest_complete(
    run: str | Path, *, on_damage: Callable[[str], None] | None = None
) -> Path | None:
    """Newest checkpoint of a run whose every file matches the manifest; None where there are none.

    Args:
        run: run folder.
        on_damage: called with one sentence for each damaged one passed over; None warns.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged: what began anew would
            put itself in their place.
        OSError: one is there and cannot be read.
    """
    found = list_checkpoints(run)
    for path in reversed(found):
        try:
            _verify(path)
        except CheckpointError as error:
            if not os.path.lexists(path):  # a training beside this removed it: there are newer ones
                return newest_complete(run, on_damage=on_damage)
            damage = error
        else:
            return path
        if path != found[0]:
            (on_damage or _warn)(f"{damage}; taking the next older one")
    if found:
        raise CheckpointError(
            f"{run}: none of its {len(found)} checkpoints is whole ({damage}); need a good copy of "
            "one, or a new run (--new)"
        )
    return None
