"""The networks of Rumman et al. 2025, where they differ from those of diffusers."""

from histoloom.paper.networks import Clusterer, Decoder, Discriminator, Encoder, UNet, UNetOutput

__all__ = ["Clusterer", "Decoder", "Discriminator", "Encoder", "UNet", "UNetOutput"]
