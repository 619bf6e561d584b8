"""Triton kernels: the operators of vae_fast on NVIDIA and AMD GPUs. Importing this needs triton, not a GPU."""
