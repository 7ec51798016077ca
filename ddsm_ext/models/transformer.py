"""The transformer that latent diffusion has in a U-Net's place of self-attention. No torch.

Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section
3.3 and appendix E.
"""

from __future__ import annotations

from ddsm_ext.graph.graph import Graph
from ddsm_ext.graph.node import Node
from ddsm_ext.graph.slicing import Role

_NORM_EPS = 1e-6  # of the group norm before it
_ROLE: Role = "qkv"


def spatial_transformer(
    g: Graph, name: str, x: Node, context: Node, head: int | None, depth: int
) -> Node:
    """x + out(blocks(in(norm(x)))) with 1x1 projections, over all pixels.

    Args:
        g: where it is appended.
        name: its module path.
        x: its input.
        context: tokens to attend to; or one row an image, one token.
        head: channels of a head; None: one head over all.
        depth: blocks.
    """
    c = x.out.c_max
    h = g.norm(f"{name}.norm", x, eps=_NORM_EPS)
    h = g.conv(f"{name}.project_in", h, c, 1)
    for i in range(depth):
        h = _block(g, f"{name}.blocks.{i}", h, context, head)
    return g.conv(f"{name}.project_out", h, c, 1, residual=x, gain=0.0)


def _block(g: Graph, name: str, x: Node, context: Node, head: int | None) -> Node:
    """x + self-attention, + attention to the context, + feed-forward, each of a layer norm."""
    c = x.out.c_max
    one_token = context.is_row
    of_context = _of_one_token(g, name, x, context, head) if one_token else None
    h = g.layer_norm(f"{name}.norm1", x)
    qkv = g.pointwise(f"{name}.attn1.qkv", h, c, blocks=3, role=_ROLE, head=head, bias=False)
    h = g.attention(f"{name}.attn1.products", qkv)
    h = g.pointwise(f"{name}.attn1.out", h, c, residual=x, shift=of_context)
    if not one_token:
        q = g.layer_norm(f"{name}.norm2", h)
        q = g.pointwise(f"{name}.attn2.q", q, c, role=_ROLE, head=head, bias=False)
        kv = g.pointwise(
            f"{name}.attn2.kv", context, c, blocks=2, role=_ROLE, head=head, bias=False
        )
        products = g.cross_attention(f"{name}.attn2.products", q, kv)
        h = g.pointwise(f"{name}.attn2.out", products, c, residual=h)
    hidden = g.layer_norm(f"{name}.norm3", h)
    hidden = g.pointwise(f"{name}.ff.project", hidden, 4 * c, blocks=2, activation="geglu")
    return g.pointwise(f"{name}.ff.out", hidden, c, residual=h)


def _of_one_token(g: Graph, name: str, x: Node, token: Node, head: int | None) -> Node:
    """What attention to one token adds to every pixel: a softmax over one is 1.

    Queries and keys are kept, as checkpoints have them, and never computed.
    """
    c = x.out.c_max
    g.layer_norm(f"{name}.norm2", x, idle=True)
    g.pointwise(f"{name}.attn2.q", x, c, role=_ROLE, head=head, bias=False, idle=True)
    g.linear(f"{name}.attn2.k", token, c, role=_ROLE, head=head, bias=False, idle=True)
    v = g.linear(f"{name}.attn2.v", token, c, role=_ROLE, head=head, bias=False)
    return g.linear(f"{name}.attn2.out", v, c, role="conv")
