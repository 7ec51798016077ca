"""Weights, configurations and strategies of other code bases."""

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "diffusers_config": "unet2d_config",
        "diffusers_state_dict_shapes": "diffusers",
        "edm_config": "edm",
        "edm_state_dict_shapes": "edm",
        "guided_diffusion_config": "guided_diffusion",
        "guided_diffusion_state_dict_shapes": "guided_diffusion",
        "latent_diffusion_config": "latent_diffusion",
        "latent_diffusion_state_dict_shapes": "latent_diffusion",
        "load_diffusers": "diffusers",
        "load_edm": "edm",
        "load_guided_diffusion": "guided_diffusion",
        "load_latent_diffusion": "latent_diffusion",
        "load_official_ddsm": "official_ddsm",
        "load_official_strategy": "official_strategy",
        "official_config": "official_ddsm",
        "official_names": "official_ddsm",
        "official_state_dict_shapes": "official_ddsm",
        "parse_guided_diffusion_flags": "guided_diffusion_flags",
        "parse_official_flags": "official_strategy",
        "parse_official_process": "official_strategy",
        "parse_official_strategy": "official_strategy",
        "to_diffusers_config": "unet2d_config",
        "to_diffusers_state_dict": "diffusers",
        "to_edm_state_dict": "edm",
        "to_guided_diffusion_state_dict": "guided_diffusion",
        "to_latent_diffusion_state_dict": "latent_diffusion",
        "to_official_state_dict": "official_ddsm",
        "to_unet2d": "unet2d_width",
    },
)
