"""Every family of networks: it trains, resumes, searches, samples, and goes back to others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ddsm_ext.compat.edm import load_edm, to_edm_state_dict
from ddsm_ext.compat.guided_diffusion import load_guided_diffusion
from ddsm_ext.models.families import FAMILIES
from ddsm_ext.run import Run, configure

SIZES: dict[str, Any] = {
    "image_size": 8, "image_channels": 1, "ch_mult": [1, 2], "attn": [1], "num_res_blocks": 1,
    "dropout": 0.0, "widths": [1.0, 0.75, 0.5, 0.25],
}  # fmt: skip
BETAS = {"diffusion": {"schedule": "cosine", "timesteps": 100}}
EDM = {
    "diffusion": {"schedule": "edm", "parameterisation": "edm"},
    "train": {"noise_levels": "log_normal"},
    "sampler": {"kind": "heun", "spacing": "karras", "steps": 6},
}
# Network and process of each family, in the kinds that differ by what is trained
CASES: dict[str, dict[str, Any]] = {
    "unet": {"model": {"ch": 16, "groups": 4}, **BETAS},
    "adm": {
        "model": {"family": "adm", "ch": 32, "groups": 32, "head_channels": 16, "num_classes": 10},
        **BETAS,
    },
    "song-unet": {
        "model": {"family": "song-unet", "ch": 32, "groups": 4, "num_classes": 10},
        **EDM, "train": {"noise_levels": "log_normal", "augment": 0.12},
    },
    "ncsnpp": {
        "model": {"family": "song-unet", "ch": 32, "groups": 4, "fourier": True, "time_mult": 2,
                  "aux_residual": True, "taps": 4, "augment_channels": None},
        "diffusion": {"schedule": "edm", "parameterisation": "ve", "sigma_min": 0.02,
                      "sigma_max": 100.0},
        "sampler": EDM["sampler"],
    },
    "dhariwal-unet": {
        "model": {"family": "dhariwal-unet", "ch": 32, "groups": 4},
        **EDM,
    },
}  # fmt: skip


def made(case: str, root: Path, steps: int, **train: Any) -> Run:
    settings = CASES[case]
    sections: dict[str, Any] = {
        "model": {**SIZES, **settings["model"]},
        "diffusion": settings["diffusion"],
        "data": {"source": "digits", "split": "all", "limit": 200},
        "train": {"steps": steps, "batch_size": 16, "lr": 2e-3, "checkpoint_every": 1000,
                  "warmup_steps": 5, "log_every": 5, "ema_decay": 0.95,
                  **settings.get("train", {}), **train},
        "sampler": settings.get("sampler", {"kind": "ddim", "steps": 6}),
        "eval": {"features": "none", "sensitivity_images": 16},
    }  # fmt: skip
    return Run.create(root, case, configure(**sections))


@pytest.fixture(scope="module", params=CASES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = made(request.param, tmp_path_factory.mktemp("runs"), 50)
    run.train()
    return run


def test_the_loss_of_every_width_falls(trained: Run) -> None:
    rows = [json.loads(row) for row in (trained.folder / "log.jsonl").read_text().splitlines()]
    for width in (1.0, 0.25):
        losses = [row[f"loss_w{width}"] for row in rows]
        assert np.mean(losses[-3:]) < 0.85 * losses[0]


def test_samples_are_seeds_in_any_batch_and_by_any_sampler(trained: Run) -> None:
    for sampler in (trained.config.sampler.to_dict(), {"kind": "dpmpp_2m", "steps": 5}):
        run = Run.open(trained.folder.parent, trained.folder, {"sampler": sampler})
        whole = run.sample(range(6), 0.5).images
        assert whole.std() > 5
        few = run.sample(range(6), 0.5, batch_size=4, out=trained.folder / f"b{sampler['kind']}")
        assert np.abs(few.images.astype(int) - whole).max() <= 1


def test_a_search_chooses_a_strategy(trained: Run) -> None:
    point = trained.search(method="proxy", budget_macs=0.6)
    assert len({*point.strategy.widths}) > 1
    assert trained.sample(range(2)).images.shape == (2, 8, 8, 1)
    assert trained.report().is_file()


def test_a_width_is_exported_as_plain_torch(trained: Run) -> None:
    net = trained.network()
    folder = trained.export(0.5)
    state = load_file(folder / "model.safetensors")
    dense = net.export_subnet(0.5)
    assert state.keys() == dense.state_dict().keys()
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.3, 0.7, 1.1])
    labels = [torch.tensor([0, 1, 2])] if trained.config.model.label_count else []
    with torch.no_grad():
        torch.testing.assert_close(dense(x, t, *labels), net(x, t, 0.5, *labels),
                                   rtol=1e-4, atol=1e-5)  # fmt: skip


def test_weights_go_back_to_the_code_that_they_are_named_for(trained: Run) -> None:
    net, family = trained.network(), trained.config.model.family
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.3, 0.7, 1.1])
    labels = [torch.tensor([0, 1, 2])] if trained.config.model.label_count else []
    if family == "unet":
        pytest.skip("the reference of this family is tested in compat/test_official_ddsm.py")
    if family == "adm":
        again = load_guided_diffusion(
            load_file(trained.export_to("guided-diffusion")),
            {"image_size": 8, "in_channels": 1, "model_channels": 32, "out_channels": 2,
             "num_res_blocks": 1, "attention_resolutions": (2,), "channel_mult": (1, 2),
             "num_classes": 10, "num_head_channels": 16, "use_scale_shift_norm": True,
             "resblock_updown": True},
        )  # fmt: skip
    else:
        again = load_edm(to_edm_state_dict(net), edm_arguments(trained.config.model))
    with torch.no_grad():
        expected = net(x, t, 1.0, *labels)
        assert expected.std() > 1e-3
        torch.testing.assert_close(again(x, t, 1.0, *labels), expected, rtol=1e-4, atol=1e-5)


def edm_arguments(model: Any) -> dict[str, Any]:
    """The constructor's arguments in EDM's code."""
    common = {
        "img_resolution": 8, "in_channels": 1, "out_channels": 1,
        "label_dim": model.label_count, "augment_dim": model.augment_count,
        "model_channels": model.ch, "channel_mult": [*model.ch_mult], "num_blocks": 1,
        "attn_resolutions": [4], "dropout": 0.0,
    }  # fmt: skip
    if model.family == "dhariwal-unet":
        return {**common, "cls": "DhariwalUNet"}
    ncsn = {"encoder_type": "residual", "resample_filter": [1, 3, 3, 1],
            "embedding_type": "fourier", "channel_mult_noise": 2}  # fmt: skip
    return {
        **common,
        "cls": "SongUNet",
        "channel_mult_emb": 4,
        **(ncsn if model.fourier else {}),
    }


@pytest.mark.parametrize("case", CASES)
def test_it_resumes_bit_for_bit(case: str, tmp_path: Path) -> None:
    """Stopped after 4 of 7 steps, with a batch in two parts and an average of a length."""
    how = {"micro_batches": 2, "ema_lengths": [0.1], "lr_final": 1.0}
    whole = made(case, tmp_path / "whole", 7, **how)
    whole.train()
    parts = made(case, tmp_path / "parts", 4, **how)
    parts.train()
    again = made(case, tmp_path / "parts", 7, **how)
    assert again.folder == parts.folder
    again.train()
    for weights in ("model", "ema", "ema-0.1"):
        ours, theirs = (run.network(weights).state_dict() for run in (whole, again))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_every_family_is_here() -> None:
    assert {case["model"].get("family", "unet") for case in CASES.values()} == {*FAMILIES}
