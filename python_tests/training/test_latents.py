"""Training on latents: their noise and mirrored images by (seed, rank, step), exact resume."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from data.made_latents import write_archive, write_photos
from torch import nn
from training.same_run import assert_same_run
from training.toy_net import SCHEDULE, StopAt, ToyNet, config

from ddsm_ext.data.config import CodecConfig, DataConfig
from ddsm_ext.data.latent_dataset import LatentDataset
from ddsm_ext.settings import Refusal
from ddsm_ext.training.batches import StepBatches, Stream
from ddsm_ext.training.loop import train

COUNT = 10


@pytest.fixture(scope="module", params=["kl", "vq"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp(request.param)
    write_archive(folder / "latents", write_photos(folder / "photos", COUNT), request.param)
    return LatentDataset.load(DataConfig(source=str(folder / "latents")))


def of_latents(net: ToyNet) -> ToyNet:
    """The network with two channels."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net.first, net.last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
    return net.to(memory_format=torch.channels_last)


def run(folder: Path, data: LatentDataset, net: ToyNet | None = None, **changes: object):
    cfg = config(steps=12, **changes)
    return train(of_latents(net or ToyNet()), data, SCHEDULE, cfg, folder)


def test_streams_keep_their_numbers() -> None:
    """They are what seeds mean: a new one comes last."""
    names = ["ORDER", "FLIP", "NOISE", "WIDTH", "MODULE", "ROUTE", "LABEL", "AUGMENT", "LATENT"]
    assert [(stream.name, stream.value) for stream in Stream] == list(
        zip(names, range(1, 10), strict=True)
    )


def test_a_batch_is_a_function_of_seed_rank_and_step(dataset: LatentDataset) -> None:
    batches = StepBatches(dataset, 4, seed=3)
    first = batches[5].images
    assert torch.equal(first, StepBatches(dataset, 4, seed=3)[5].images)
    assert torch.equal(first, pickle.loads(pickle.dumps(batches))[5].images)
    single = StepBatches(dataset, 1, seed=3)  # which takes the same image again, as mirrored
    again = next(step for step in range(6, 400) if _same_moments(single, 5, step))
    one, two = single[5].images, single[again].images
    assert one.dtype == torch.float32
    assert torch.equal(one, two) == (dataset.codec.kind == "vq")
    other = StepBatches(dataset, 4, seed=3, rank=1, world_size=2)
    assert not torch.equal(other[5].images, first)


def _same_moments(batches: StepBatches, one: int, other: int) -> bool:
    """Whether two steps have the same images, each mirrored or not as in the other."""
    plain = StepBatches(_without_noise(batches.dataset), batches.batch_size, batches.seed)
    return torch.equal(plain[one].images, plain[other].images)


def _without_noise(dataset: LatentDataset) -> LatentDataset:
    class Means(LatentDataset):
        def batch(self, indices, mirrored, noise):
            return torch.from_numpy(self.moments(indices.numpy(), mirrored)[:, 0])

    return Means(**vars(dataset))


def test_mirrored_images_are_taken_by_the_stream_of_flips(dataset: LatentDataset) -> None:
    means = _without_noise(dataset)
    every = [means.moments(np.arange(COUNT), torch.full((COUNT,), turn)) for turn in (False, True)]
    rows = {e[0].tobytes(): turn for turn, of_turn in enumerate(every) for e in of_turn}
    turns = [rows[image.numpy().tobytes()] for step in range(40)
             for image in StepBatches(means, 5, seed=3)[step].images]  # fmt: skip
    assert 0.35 < np.mean(turns) < 0.65
    one_way = LatentDataset.load(DataConfig(source=str(dataset.folder), flip=False))
    plain = StepBatches(_without_noise(one_way), 5, seed=3)
    assert {rows[i.numpy().tobytes()] for step in range(9) for i in plain[step].images} == {0}


def test_interrupted_and_resumed_equals_uninterrupted(
    dataset: LatentDataset, tmp_path: Path
) -> None:
    run(tmp_path / "whole", dataset)
    for step in (3, 4):
        assert run(tmp_path / "parts", dataset, StopAt(step)).interrupted
    assert run(tmp_path / "parts", dataset, ToyNet(seed=99)).finished
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_loader_processes_change_nothing(dataset: LatentDataset, tmp_path: Path) -> None:
    run(tmp_path / "none", dataset)
    assert run(tmp_path / "some", dataset, StopAt(5), workers=2).interrupted
    run(tmp_path / "some", dataset, workers=2)
    assert_same_run(tmp_path / "none", tmp_path / "some")


def test_latents_of_other_images_do_not_continue_a_run(
    dataset: LatentDataset, tmp_path: Path
) -> None:
    run(tmp_path / "run", dataset)
    photos = write_photos(tmp_path / "photos", COUNT + 1)
    write_archive(tmp_path / "latents", photos, dataset.codec.kind)
    other = LatentDataset.load(DataConfig(source=str(tmp_path / "latents")))
    with pytest.raises(Refusal, match="was trained on other images"):
        run(tmp_path / "run", other)


def test_scale_and_shift_are_the_runs(dataset: LatentDataset) -> None:
    codec = CodecConfig(**{**dataset.codec.to_dict(), "scale": 3.0, "shift": 0.0})
    other = LatentDataset.load(DataConfig(source=str(dataset.folder)), codec)
    own, theirs = StepBatches(dataset, 4, seed=3)[0], StepBatches(other, 4, seed=3)[0]
    assert torch.allclose(theirs.images / 3.0, own.images / 0.5 + 0.25, atol=1e-6)
    foreign = CodecConfig(**{**dataset.codec.to_dict(), "digest": "another"})
    with pytest.raises(Refusal, match=r"holds latents of an autoencoder .* other than"):
        LatentDataset.load(DataConfig(source=str(dataset.folder)), foreign)
