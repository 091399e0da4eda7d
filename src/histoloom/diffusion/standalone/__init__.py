"""What an exported generator carries along so that diffusers draws with it where there is no Histoloom.

These files are copied as they are: they import torch, diffusers and safetensors alone.
"""
