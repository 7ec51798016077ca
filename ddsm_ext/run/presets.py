"""Complete settings of a run by name; the model of a preset is `models.preset(name)`."""

from __future__ import annotations

from typing import Any

# How the DDSM paper trains on CIFAR-10 (arXiv 2310.03337), in one process.
_PAPER_TRAIN: dict[str, Any] = {
    "steps": 450_000,
    "batch_size": 256,
    "lr": 4e-4,
    "warmup_steps": 5000,
    "ema_decay": 0.9999,
    "sample_every": 5000,
    "checkpoint_every": 5000,
    "log_every": 100,
}
_EDM_PROCESS: dict[str, Any] = {"schedule": "edm", "parameterisation": "edm"}
_EDM_SAMPLER: dict[str, Any] = {"kind": "heun", "spacing": "karras", "clip_denoised": False}
_EDM_TRAIN: dict[str, Any] = {
    "steps": 390_625,
    "batch_size": 512,
    "lr": 1e-3,
    "warmup_steps": 19_531,  # ten million images
    "ema_decay": 0.99929,  # half of the weights' share is gone after half a million images
    "noise_levels": "log_normal",
    "augment": 0.12,
    "grad_clip": None,
    "sample_every": 5000,
    "checkpoint_every": 5000,
    "log_every": 100,
}
_PAPER_RUN: dict[str, dict[str, Any]] = {
    "train": _PAPER_TRAIN,
    "sampler": {"kind": "ddim", "steps": 100},
    # 8 ranges of these are 20,000 samples a strategy: 2 million network evaluations, hours on two
    # processor cores by the README's times of a step; the usual 10,000 would take four times that.
    # An interval comes of the differences between ranges, and one range already has four times the
    # samples that the 320 features of "auto" for photographs need.
    "eval": {"features": "auto", "images": 2500},
}

# Rombach et al. 2022, "linear" in their code; and their samples' steps, in a range of 50 to 500.
_LATENT_PROCESS: dict[str, Any] = {
    "schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195,
}  # fmt: skip
_LATENT_RUN: dict[str, dict[str, Any]] = {
    "diffusion": _LATENT_PROCESS,
    "train": {**_PAPER_TRAIN, "warmup_steps": 0, "grad_clip": None},
    "sampler": {"kind": "ddim", "steps": 100, "clip_denoised": False},
    "eval": _PAPER_RUN["eval"],
}

RUN_PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # The 1797 real 8x8 digits of scikit-learn: minutes on two processor cores. Measured there:
    # attention at 4x4 costs a fifth of a step for 0.004 of the loss; small batches learn more from
    # an image (loss 0.333 after 25,600 images in batches of 64, 0.360 in batches of 128), and 32
    # take 0.6 of the time of 64; noise of its own for each width of a step, without distillation,
    # takes 0.37 +- 0.15 off the 1.43 of a strategy at 55 % of the MACs, for as many MACs of
    # training (docs/method.md); between stochastic DDIM steps (eta 1, in which an early step's
    # error fades) and deterministic ones no difference is seen at the full width (three trainings,
    # 4 x 1024 samples).
    "digits": {
        "model": {"attn": []},
        "diffusion": {"schedule": "cosine", "parameterisation": "v"},
        "data": {"source": "digits", "split": "all"},
        "train": {
            "steps": 2400,
            "batch_size": 32,
            "lr": 2e-3,
            "lr_final": 0.0,
            "ema_decay": 0.998,
            "shared_noise": False,
            "accumulate_grad": True,
            "sample_every": 0,
        },
        "sampler": {"kind": "ddim", "steps": 20, "eta": 1.0},
        "search": {
            "pool": 20,
            "population": 6,
            "generations": 3,
            "samples": 256,
            "most_samples": 1024,
            "finalists": 6,
            "final_samples": 1024,
            "budget_macs": 0.55,
        },
        "eval": {"features": "digits-classifier"},
    },
    "cifar10": {**_PAPER_RUN, "data": {"source": "cifar10"}},
    # The recipe above with the lower rates usual for 64x64 images; no run has tuned them.
    "celeba64": {
        **_PAPER_RUN,
        "data": {"source": "celeba64"},
        "train": {**_PAPER_TRAIN, "batch_size": 128, "lr": 2e-4},
    },
    "imagenet64": {
        **_PAPER_RUN,
        "diffusion": {"schedule": "cosine"},
        "data": {"source": "imagenet64"},
        "train": {**_PAPER_TRAIN, "steps": 1_000_000, "lr": 1e-4},
    },
    "adm-cifar10": {
        **_PAPER_RUN,
        "diffusion": {"schedule": "cosine"},
        "data": {"source": "cifar10"},
        "train": {**_PAPER_TRAIN, "batch_size": 128},
    },
    # Nichol and Dhariwal 2021 (arXiv 2102.09672, appendix A) train it for 500,000 steps of 128.
    "iddpm-cifar10": {
        **_PAPER_RUN,
        "diffusion": {"schedule": "cosine", "timesteps": 4000, "rescale_timesteps": True},
        "data": {"source": "cifar10"},
        "train": {**_PAPER_TRAIN, "steps": 500_000, "batch_size": 128, "lr": 1e-4},
    },
    # Dhariwal and Nichol 2021 (arXiv 2105.05233, table 11): 540,000 steps of 2048, lr 3e-4.
    "adm-imagenet64": {
        **_PAPER_RUN,
        "diffusion": {"schedule": "cosine"},
        "data": {"source": "imagenet64"},
        "train": {**_PAPER_TRAIN, "steps": 540_000, "batch_size": 2048, "lr": 3e-4},
    },
    # Karras et al. 2022, table 7: 200 million images, 2500 million of ImageNet.
    **{
        name: {
            "diffusion": _EDM_PROCESS,
            "data": {"source": source},
            "train": {**_EDM_TRAIN, **train},
            "sampler": {**_EDM_SAMPLER, "steps": steps},
            "eval": _PAPER_RUN["eval"],
        }
        for name, source, steps, train in (
            ("edm-cifar10-vp", "cifar10", 18, {}),
            ("edm-cifar10-ve", "cifar10", 18, {}),
            ("edm-ffhq64", "ffhq64", 40, {
                "steps": 781_250, "batch_size": 256, "lr": 2e-4, "augment": 0.15,
                "ema_decay": 0.99965,
            }),
            ("edm-imagenet64", "imagenet64", 40, {
                "steps": 610_352, "batch_size": 4096, "lr": 1e-4, "augment": 0.0,
                "ema_decay": 0.99994, "label_dropout": 0.0,  # guidance would want 0.1
            }),
        )
    },
    # Small enough for two processor cores; the recipe of the digits, no run has tuned it.
    "ldm2-cifar10": {
        "diffusion": {"schedule": "cosine", "parameterisation": "v"},
        "data": {"source": "latents"},
        "train": {
            "steps": 20_000,
            "batch_size": 64,
            "lr": 1e-3,
            "lr_final": 0.0,
            "ema_decay": 0.999,
            "shared_noise": False,
            "accumulate_grad": True,
        },
        "sampler": {"kind": "ddim", "steps": 50, "clip_denoised": False},
        "eval": {"features": "auto", "images": 1024},
    },
    # Rombach et al. 2022 (arXiv 2112.10752, tables 12 and 13). Their page has no AFHQ, whose 15,000
    # images are half of CelebA-HQ's: half of its steps; no run has tuned them.
    **{
        name: {
            **_LATENT_RUN,
            "data": {"source": f"{name.partition('-')[2]}-latents"},
            "diffusion": {**_LATENT_PROCESS, "beta_end": beta_end},
            "train": {**_LATENT_RUN["train"], "steps": steps, "batch_size": batch, "lr": lr},
        }
        for name, steps, batch, lr, beta_end in (
            ("ldm4-lsun-bedroom", 1_900_000, 48, 9.6e-5, 0.0195),
            ("ldm4-celebahq", 410_000, 48, 9.6e-5, 0.0195),
            ("ldm4-afhq", 205_000, 48, 9.6e-5, 0.0195),
            ("ldm8-lsun-church", 500_000, 96, 5e-5, 0.0155),
            ("ldm4-imagenet", 178_000, 1200, 1e-4, 0.0195),
        )
    },
}
# The digits by class, trained as those without.
RUN_PRESETS["adm-digits"] = {**RUN_PRESETS["digits"], "model": {}}

# What `ddsm quickstart --fast` changes in the preset "digits".
QUICKSTART_FAST: dict[str, dict[str, Any]] = {
    "train": {"steps": 150},
    "sampler": {"steps": 8},
    "search": {
        "pool": 12, "population": 4, "generations": 2, "samples": 128, "most_samples": 256,
        "finalists": 4, "final_samples": 256,
    },
    "eval": {"images": 256, "ranges": 4},
}

# Autoencoders by `training.autoencoder_config.AutoencoderConfig`.
AUTOENCODER_PRESETS: dict[str, dict[str, Any]] = {
    "small-f2": {"block_out_channels": [32, 64]},
    "small-f4": {"block_out_channels": [32, 64, 64]},
    "small-f8": {"block_out_channels": [32, 64, 64, 64]},
}
