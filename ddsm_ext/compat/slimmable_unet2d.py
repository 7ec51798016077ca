"""`SlimmableUNet2D`: a slimmable network as a model of diffusers, whose stock pipelines run it.

Loading this file imports diffusers (the extra "diffusers"); `ddsm_ext.SlimmableUNet2D` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, cast

import torch
from torch import Tensor

from ddsm_ext._optional import import_diffusers
from ddsm_ext.compat.ddpm_as_adm import as_adm
from ddsm_ext.compat.unet2d_config import DEFAULTS, slimmable_config, to_diffusers_config
from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.diffusion.schedule import NoiseSchedule, make_schedule
from ddsm_ext.models.adm import ADMConfig
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.sampling.strategy import Strategy, as_strategy
from ddsm_ext.settings import Refusal, check_choice

_diffusers: Any = import_diffusers("ddsm_ext.SlimmableUNet2D")
# diffusers looks its base class up where a class is recorded to come from: in `ddsm_ext`.
ModelMixin: Any = _diffusers.ModelMixin
_Config: Any = _diffusers.ConfigMixin
_register: Any = _diffusers.configuration_utils.register_to_config
_Output: Any = _diffusers.models.unets.unet_2d.UNet2DOutput
TIME_KINDS = ("ddpm", "edm", "flow")
_FLOW_TIMES = 1000.0


class SlimmableUNet2D(ModelMixin, _Config):
    """A slimmable `UNet2DModel`: each timestep runs at the width that a strategy gives its noise.

    Stock pipelines call it as any other; saved and loaded with one, it is found after
    `import ddsm_ext`. In eval mode and without gradients it runs compiled steps.

    Args:
        widths: to train and search, descending; any other usable width runs too.
        strategy: widths and cuts, as `Strategy.to_dict` has them; None: the full width throughout.
        schedule: settings of `DiffusionConfig`, by which a timestep of "ddpm" has its log-SNR.
        time_kind: what timesteps are: "ddpm", the schedule's; "edm", ln(sigma) / 4, as
            `EDMEulerScheduler` gives them; "flow", 1000 times the noise's share.
        heads: attention heads at full width in place of `attention_head_dim`; None: that.
        null_class: the last of `num_class_embeds` labels stands for no class, which is taken where
            a call has no labels.
        sample_size and all others: `UNet2DModel`'s, of the full width.

    Raises:
        TypeError, ValueError: an argument is refused, or asks for what a slimmable network has not.
    """

    __module__ = "ddsm_ext"

    @_register
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: float = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: Sequence[str] = DEFAULTS["down_block_types"],
        mid_block_type: str = "UNetMidBlock2D",
        up_block_types: Sequence[str] = DEFAULTS["up_block_types"],
        block_out_channels: Sequence[int] = DEFAULTS["block_out_channels"],
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
        widths: Sequence[float] = (1.0, 0.75, 0.5, 0.25),
        strategy: Mapping[str, Any] | None = None,
        schedule: Mapping[str, Any] | None = None,
        time_kind: str = "ddpm",
        heads: int | None = None,
        null_class: bool = False,
    ) -> None:
        super().__init__()
        self.network = SlimmableNetwork(slimmable_config(self.config))
        check_choice("SlimmableUNet2D: time_kind", time_kind, TIME_KINDS)
        process = DiffusionConfig.from_dict(schedule or {})
        self._schedule: NoiseSchedule = make_schedule(process)
        self._time_scale = 1000 / process.timesteps if process.rescale_timesteps else 1.0
        self._strategy = self._checked(1.0 if strategy is None else Strategy.from_dict(strategy))

    @classmethod
    def from_network(
        cls,
        net: SlimmableNetwork,
        strategy: Strategy | float = 1.0,
        diffusion: DiffusionConfig | None = None,
    ) -> Self:
        """Return a model of a network's weights, which it copies.

        Args:
            net: of an `ADMConfig`, or of a `UNetConfig` that is sliced as these are.
            strategy: a width for each noise level, or one for all.
            diffusion: the process that it was trained for; None: `DiffusionConfig()`.

        Raises:
            TypeError, ValueError: the network or the process is of another kind than diffusers has.
        """
        net, diffusion = as_adm(net), diffusion or DiffusionConfig()
        adm = cast(ADMConfig, net.config)
        several = (adm.heads or 1) > 1
        form = replace(adm, heads=1, head_channels=None) if several else adm
        kinds = {"epsilon": "ddpm", "x0": "ddpm", "v": "ddpm", "edm": "edm", "flow": "flow"}
        row = check_choice("diffusion.parameterisation", diffusion.parameterisation, kinds)
        model = cls(
            **to_diffusers_config(form),
            widths=list(adm.widths),
            strategy=as_strategy(strategy).to_dict(),
            schedule=diffusion.to_dict(),
            time_kind=kinds[row],
            heads=adm.heads if several else None,
            null_class=adm.null_class,
        )
        weight = next(net.parameters())
        model.train(net.training).network.to(weight.device, weight.dtype)
        model.network.load_state_dict(net.state_dict())
        return model

    @property
    def strategy(self) -> Strategy:
        """Which width a noise level has; a strategy or width that is set is saved, too."""
        return self._strategy

    @strategy.setter
    def strategy(self, strategy: Strategy | float) -> None:
        self._strategy = self._checked(strategy)
        self.register_to_config(strategy=self._strategy.to_dict())

    def _checked(self, strategy: Strategy | float) -> Strategy:
        strategy = as_strategy(strategy)
        for width in strategy.widths:
            self.network.config.check_width(width)
        return strategy

    def width_at(self, timestep: float) -> float:
        """Return the width of a timestep."""
        return self._strategy.width_at(self._log_snr(timestep))

    def _log_snr(self, t: float) -> float:
        """Log-SNR of a timestep; beyond those of the schedule, of its ends."""
        kind = self.config.time_kind
        if kind == "edm":
            return -8.0 * t
        if kind == "flow":
            share = min(max(t / _FLOW_TIMES, 0.0), 1.0)
            if share in (0.0, 1.0):
                return math.inf if share == 0.0 else -math.inf
            return 2.0 * math.log((1.0 - share) / share)
        return self._schedule.log_snr(min(max(t, 0.0), self._schedule.timesteps - 1.0))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        *,
        width: float | None = None,
        **ignored: Any,
    ) -> Any:
        """Predict from noisy images at the widths that the strategy gives their timesteps.

        Args:
            sample: noisy images [N, C, H, W].
            timestep: one number or tensor for all images, or [N]; on a GPU it is waited for, unless
                `width` is given.
            class_labels: [N] int64, of a class-conditional network; None: no class, where a label
                stands for that.
            return_dict: False returns a tuple of the prediction alone.
            width: for all images, in place of the strategy's.
            ignored: what else a pipeline passes.

        Returns:
            A `UNet2DOutput`, or a tuple, with [N, C', H, W].

        Raises:
            TypeError, ValueError: an argument that cannot be used, in one sentence.
        """
        if class_labels is None and self.config.null_class:
            label = self.config.num_class_embeds - 1
            class_labels = torch.full((len(sample),), label, device=sample.device)
        if not isinstance(timestep, Tensor):
            timestep = torch.tensor(timestep, device="cpu")
        timesteps = timestep.flatten()
        if len(timesteps) not in (1, len(sample)):
            raise Refusal(
                f"SlimmableUNet2D: timestep has {len(timesteps)} values, sample {len(sample)} "
                "images; need one timestep, or one an image"
            )
        if width is None:
            y = self._at_own_widths(sample, timesteps, class_labels)
        else:
            t = self._scaled(timesteps.to(sample.device)).expand(len(sample))
            y = self.network(sample, t, width, class_labels)
        return _Output(sample=y) if return_dict else (y,)

    def _at_own_widths(self, sample: Tensor, timesteps: Tensor, y: Tensor | None) -> Tensor:
        """Run each image at the width of its timestep."""
        times = timesteps.tolist()  # a GPU is waited for, as what it runs depends on them
        widths = [self.width_at(time) for time in times]
        if len({*times}) == 1:  # one number is embedded once, as its stride 0 tells
            t = torch.full((1,), times[0], dtype=timesteps.dtype, device=sample.device)
            return self.network(sample, self._scaled(t).expand(len(sample)), widths[0], y)
        t, parts, order = self._scaled(timesteps.to(sample.device)), [], list[int]()
        for width in dict.fromkeys(widths):
            rows = [i for i, own in enumerate(widths) if own == width]
            index = torch.tensor(rows, device=sample.device)
            labels = None if y is None else y[index]
            parts.append(self.network(sample[index], t[index], width, labels))
            order += rows
        return torch.cat(parts)[torch.tensor(order, device=sample.device).argsort()]

    def _scaled(self, t: Tensor) -> Tensor:
        return t if self._time_scale == 1.0 else t * self._time_scale
